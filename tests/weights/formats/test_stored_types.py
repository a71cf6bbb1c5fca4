"""Quantised files of other programs become the layers that they stand for."""

import json

import pytest
import torch
from safetensors.torch import save_file

from talkinghead_lab.errors import CheckpointError
from talkinghead_lab.models.quantized.rows import RowQuantizedLinear, quantize_rows
from talkinghead_lab.weights.formats.containers import open_file
from talkinghead_lab.weights.formats.stored_types import combined


@pytest.fixture
def quanto(tmp_path):
    """Write a file of one layer in int8, with a map beside it."""

    def write(kinds: dict):
        weight = torch.randn(4, 8)
        data, scale = quantize_rows(weight, torch.int8)
        parts = {"0.weight._data": data, "0.weight._scale": scale, "0.input_scale": torch.ones(())}
        save_file(parts, tmp_path / "a.safetensors")
        (tmp_path / "a.json").write_text(json.dumps(kinds))
        return open_file(tmp_path / "a.safetensors"), weight

    return write


def test_a_map_of_quanto(quanto):
    file, weight = quanto({"0": {"weights": "qint8", "activations": "none"}})
    tensors = combined(file)
    assert tensors.keys() == {"0.weight"}
    layer = tensors["0.weight"]
    assert isinstance(layer, RowQuantizedLinear)
    assert (layer.shape, layer.stored_as) == ((4, 8), "int8")
    assert (layer.dequantized() - weight).abs().max() < weight.abs().max() / 127


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ({"nothing": {"weights": "qint8"}}, "no such quantised layer"),
        ({"0": {"weights": "qint4"}}, "not supported"),
        ({"0": {"weights": "qint8", "activations": "qint8"}}, "not supported"),
        ({"0": {"weights": "qfloat8"}}, "no such quantised layer"),
    ],
)
def test_an_unsupported_map_is_an_error(quanto, kinds, message):
    with pytest.raises(CheckpointError, match=message):
        combined(quanto(kinds)[0])
