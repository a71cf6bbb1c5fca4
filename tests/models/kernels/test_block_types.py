"""The block types of GGUF equal those of the package `gguf` bit by bit."""

import gguf
import pytest
import torch

from talkinghead_lab.models.kernels.block_types import BLOCK_TYPES, quantize_q8_0
from tests.weights.formats.gguf_files import dequantized, random_blocks


@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_sizes_and_values(kind):
    quantized_type = gguf.GGMLQuantizationType[kind]
    assert (BLOCK_TYPES[kind].weights, BLOCK_TYPES[kind].nbytes) == gguf.GGML_QUANT_SIZES[quantized_type]
    stored = random_blocks(kind, 37, 768)
    ours = BLOCK_TYPES[kind].dequantize(torch.from_numpy(stored))
    assert ours.shape == (37, 768)
    assert torch.equal(ours.view(torch.int32), dequantized(stored, kind).view(torch.int32))


def test_quantising_to_q8_0():
    torch.manual_seed(0)
    weight = torch.randn(64, 320)
    weight[3] = 0
    # Halves and their neighbours: a scale of 1, and codes that are rounded.
    weight[0, :32] = torch.arange(32) - 16.5
    weight[1, :32] = torch.nextafter(weight[0, :32], torch.zeros(32))
    weight[:2, 31] = 127
    stored = quantize_q8_0(weight)
    expected = gguf.quants.quantize(weight.numpy(), gguf.GGMLQuantizationType.Q8_0)
    assert torch.equal(stored, torch.from_numpy(expected))


def test_the_error_of_q8_0():
    torch.manual_seed(0)
    weight = torch.randn(500, 640)
    error = BLOCK_TYPES["Q8_0"].dequantize(quantize_q8_0(weight)) - weight
    assert 0.005 < error.norm() / weight.norm() < 0.0055
    largest = weight.unflatten(1, (-1, 32)).abs().amax(dim=2)
    # Half a step, and half a unit in the last place of float16.
    assert (error.unflatten(1, (-1, 32)).abs().amax(dim=2) / largest).max() < 1 / 254 + 2**-11
