"""Eight-bit weights: how near they are, and what a map may ask for."""

import pytest
import torch
from torch import nn

from talkinghead_lab.errors import CheckpointError
from talkinghead_lab.quantization import (
    QuantizedLinear,
    prepare_for_quantized,
    quantize_linears,
    quantize_rows,
)

# Half a step of 254 levels over a row's range; three mantissa bits round to 1 part in 16.
ROUNDING = {torch.int8: 0.5 / 127, torch.float8_e4m3fn: 1 / 16}


@pytest.mark.parametrize("stored", ROUNDING)
def test_rows_round_trip_within_the_rounding(stored):
    torch.manual_seed(0)
    weight = torch.randn(64, 96) * torch.logspace(-3, 3, 64)[:, None]
    data, scale = quantize_rows(weight, stored)
    assert data.dtype is stored and scale.shape == (64, 1)
    error = (data.float() * scale - weight).abs() / weight.abs().amax(dim=1, keepdim=True)
    assert error.max() <= ROUNDING[stored] * 1.001


@pytest.mark.parametrize("stored", ROUNDING)
def test_quantised_network_is_near(stored):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(96, 128), nn.GELU(), nn.Linear(128, 32, bias=False))
    x = torch.randn(10, 96)
    plain = network(x)
    quantize_linears(network, stored)
    assert sum(isinstance(layer, QuantizedLinear) for layer in network) == 2
    error = (network(x) - plain).norm() / plain.norm()
    assert 1e-5 < error < (0.01 if stored is torch.int8 else 0.05)


def test_zero_rows_stay_zero():
    data, scale = quantize_rows(torch.zeros(2, 4), torch.int8)
    assert (data.float() * scale == 0).all()


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ({"nothing": {"weights": "qint8"}}, "lacks"),
        ({"0": {"weights": "qint4"}}, "not supported"),
        ({"0": {"weights": "qint8", "activations": "qint8"}}, "not supported"),
    ],
)
def test_maps_that_cannot_be_followed(kinds, message):
    with pytest.raises(CheckpointError, match=message):
        prepare_for_quantized(nn.Sequential(nn.Linear(2, 2)), kinds)
