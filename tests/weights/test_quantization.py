"""8-bit weights and their error."""

import pytest
import torch
from torch import nn

from talkinghead_lab.models.kernels.fp8 import E5M2, FP8, QuantizedTokens
from talkinghead_lab.models.quantized.rows import RowQuantizedLinear, quantize_rows
from talkinghead_lab.weights.quantization import (
    fp8_types,
    multiply_fp8,
    quantize_linears,
    stored_type,
)

# Largest error relative to a row's maximum: int8 half of one of 254 steps, fp8 with 3 mantissa bits 1/16.
MAX_ERROR = {torch.int8: 0.5 / 127, torch.float8_e4m3fn: 1 / 16}


@pytest.mark.parametrize("stored", MAX_ERROR)
def test_dequantised_rows_are_within_the_quantisation_error(stored):
    torch.manual_seed(0)
    weight = torch.randn(64, 96) * torch.logspace(-3, 3, 64)[:, None]
    data, scale = quantize_rows(weight, stored)
    assert data.dtype is stored
    assert scale.shape == (64, 1)
    error = (data.float() * scale - weight).abs() / weight.abs().amax(dim=1, keepdim=True)
    assert error.max() <= MAX_ERROR[stored] * 1.001


@pytest.mark.parametrize("stored", MAX_ERROR)
def test_a_quantised_network_has_a_small_error(stored):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(96, 128), nn.GELU(), nn.Linear(128, 32, bias=False))
    x = torch.randn(10, 96)
    plain = network(x)
    quantize_linears(network, stored)
    assert sum(isinstance(layer, RowQuantizedLinear) for layer in network) == 2
    error = (network(x) - plain).norm() / plain.norm()
    assert 1e-5 < error < (0.01 if stored is torch.int8 else 0.05)


def test_zero_rows_stay_zero():
    data, scale = quantize_rows(torch.zeros(2, 4), torch.int8)
    assert (data.float() * scale == 0).all()


def quantised(
    x_type: torch.dtype = torch.float32, stored: torch.dtype = FP8
) -> tuple[nn.Linear, RowQuantizedLinear]:
    torch.manual_seed(0)
    linear = nn.Linear(96, 64).to(x_type)
    return linear, RowQuantizedLinear(*quantize_rows(linear.weight.detach(), stored), linear.bias.detach())


def test_fp8_matmuls_scale_every_row_of_the_input():
    """Rows of very different size have the same relative error; a common scale would lose the small ones."""
    linear, layer = quantised()
    assert multiply_fp8(nn.Sequential(layer)) == 1
    x = torch.randn(3, 5, 96) * torch.logspace(-3, 3, 5)[:, None]
    plain, out = (nn.functional.linear(x, linear.weight), layer(x) - linear.bias)
    errors = (out - plain).norm(dim=-1) / plain.norm(dim=-1)
    assert out.shape == (3, 5, 64)
    assert errors.max() < 0.07


def test_tokens_quantised_beforehand_give_the_same_result():
    _, layer = quantised()
    multiply_fp8(nn.Sequential(layer))
    x = torch.randn(3, 5, 96)
    rows, scale = quantize_rows(x.flatten(0, 1), FP8)
    quantised_tokens = QuantizedTokens(rows.view(3, 5, 96), scale.view(3, 5, 1), x.dtype)
    assert torch.equal(layer(quantised_tokens), layer(x))


def test_int8_layers_get_no_fp8_matmuls():
    network = nn.Sequential(nn.Linear(8, 8))
    quantize_linears(network, torch.int8)
    assert multiply_fp8(network) == 0


@pytest.mark.parametrize(("capability", "stored"), [((9, 0), FP8), ((8, 9), FP8), ((8, 6), torch.int8)])
def test_a_gpu_without_fp8_stores_int8_and_logs_it(monkeypatch, caplog, capability, stored):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "an older GPU")
    assert stored_type("fp8", torch.device("cuda")) is stored
    assert ("an older GPU has no fp8 matmuls" in caplog.text) is (stored is torch.int8)
    assert stored_type("bf16", torch.device("cuda")) is None
    assert stored_type("fp8", torch.device("cpu")) is FP8


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("stored", [FP8, E5M2])
def test_fp8_matmuls_on_a_gpu_match_their_emulation_on_a_cpu(stored):
    if stored not in fp8_types(torch.device("cuda")):
        pytest.skip("this GPU does not multiply this type")
    _, layer = quantised(torch.bfloat16, stored)
    multiply_fp8(nn.Sequential(layer), (stored,))
    x = torch.randn(7, 96).bfloat16()
    expected, out = layer(x).float(), layer.cuda()(x.cuda()).cpu().float()
    assert (out - expected).norm() / expected.norm() < 0.01


def test_a_cpu_multiplies_no_fp8():
    assert fp8_types(torch.device("cpu")) == ()
