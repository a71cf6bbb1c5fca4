"""Linear layers in the block types of GGUF: dequantised, compiled, streamed, requantised."""

import copy

import pytest
import torch
from torch import nn

from talkinghead_lab.bench.forwards import random_latent, relative_error, velocity
from talkinghead_lab.bench.sizes import SIZES, random_conditions, random_dit
from talkinghead_lab.models.kernels.block_types import BLOCK_TYPES, BlockType
from talkinghead_lab.models.kernels.optional_kernels import kernels_of
from talkinghead_lab.models.quantized import blocks
from talkinghead_lab.models.quantized.blocks import BlockQuantizedLinear
from talkinghead_lab.offload.residency import on_device
from talkinghead_lab.offload.streamed_blocks import large_tensors, slot_bytes, stream
from talkinghead_lab.weights.reading import convert, replace_module
from tests.offload.test_streamed_blocks import DEVICES
from tests.weights.formats.gguf_files import dequantized, quantized, random_blocks


def random_layer(kind: str, out: int = 20, width: int = 512, bias: torch.Tensor | None = None):
    return BlockQuantizedLinear(torch.from_numpy(random_blocks(kind, out, width)), kind, bias)


@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_a_layer_multiplies_by_the_dequantised_weight(kind):
    torch.manual_seed(0)
    layer = random_layer(kind, bias=torch.randn(20))
    weight = dequantized(layer.weight.numpy(), kind)
    assert (layer.shape, layer.stored_as) == ((20, 512), kind)
    assert torch.equal(layer.dequantized(), weight)
    x = torch.randn(2, 3, 512)
    assert torch.equal(layer(x), nn.functional.linear(x, weight, layer.bias))
    x = x.bfloat16()
    assert torch.equal(layer(x), nn.functional.linear(x, weight.bfloat16(), layer.bias.bfloat16()))


def test_large_weights_are_dequantised_by_slices(monkeypatch):
    layer = random_layer("Q4_K", out=23)
    whole = layer.weight_as(torch.bfloat16)
    sizes, dequantize = [], BlockType.dequantize

    def noted(block, stored):
        sizes.append(len(stored))
        return dequantize(block, stored)

    monkeypatch.setattr(BlockType, "dequantize", noted)
    monkeypatch.setattr(blocks, "SLICE_WEIGHTS", 2000)  # three rows and a bit
    assert torch.equal(layer.weight_as(torch.bfloat16), whole)
    assert sizes == [3] * 7 + [2]


def test_another_weight_becomes_q8_0():
    torch.manual_seed(0)
    layer = random_layer("Q4_0", bias=torch.randn(20))
    weight = torch.randn(20, 512)
    changed = layer.requantized(weight)
    assert changed.stored_as == "Q8_0"
    assert torch.equal(changed.bias, layer.bias)
    assert changed.weight._base is None, "memory is freed when the weight moves"
    assert 0.004 < relative_error(changed.dequantized(), weight) < 0.006


def test_conversion_leaves_stored_bytes_alone():
    layer = random_layer("Q6_K", bias=torch.randn(20))
    before = layer.weight.clone()
    convert(layer, torch.bfloat16)
    assert torch.equal(layer.weight, before)
    assert layer.bias.dtype is torch.bfloat16


def test_a_layer_without_weights_has_its_size():
    with torch.device("meta"):
        layer = BlockQuantizedLinear(torch.empty(7, 2 * 144, dtype=torch.uint8), "Q4_K")
    assert layer.weight.nbytes == 7 * 288
    assert layer.weight_as(torch.float16).shape == layer.shape == (7, 512)
    assert layer(torch.empty(3, 512, device="meta")).shape == (3, 7)


def test_the_operation_is_opaque_to_the_compiler():
    arguments = (random_layer("Q4_K").weight, "Q4_K", torch.bfloat16)
    torch.library.opcheck(torch.ops.talkinghead_lab.dequantize_blocks.default, arguments)
    graphs = []

    def note(graph, inputs):
        graphs.append(str(graph.code))
        return graph

    layer, x = random_layer("Q5_K", bias=torch.randn(20)), torch.randn(3, 512)
    expected = layer(x)
    layer.compile(backend=note, fullgraph=True)
    assert torch.equal(layer(x), expected)
    assert "talkinghead_lab.dequantize_blocks" in graphs[0]


@pytest.mark.parametrize("device", DEVICES)
def test_a_transformer_streams_stored_bytes_and_computes_the_same_bits(device):
    size, device = SIZES["tiny"], torch.device(device)
    dit = random_dit(size.dit, torch.device("cpu"), torch.float32)
    layers = dit.get_submodule("blocks")
    plain_bytes = slot_bytes(large_tensors(layers[0]))
    for number, (name, layer) in enumerate(list(layers.named_modules())):
        if isinstance(layer, nn.Linear):
            replace_module(layers, name, quantized(layer, ("Q8_0", "Q4_0", "Q5_1")[number % 3]))
    streamed = copy.deepcopy(dit)
    dit = dit.to(device)
    latent, conditions = random_latent(size, device), random_conditions(dit, size.grid, device)
    expected = velocity(dit, latent, conditions)
    stream(streamed, "blocks", device)
    assert 0.15 < streamed.blocks.block_bytes / plain_bytes < 0.27
    with on_device(streamed, device, 0):
        assert torch.equal(velocity(streamed, latent, conditions), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_the_kernel_equals_the_plain_path(kind, dtype):
    layer = random_layer(kind, out=123, width=1280)
    assert kernels_of(torch.device("cuda")).status("dequantize").passed
    assert torch.equal(copy.deepcopy(layer).cuda().weight_as(dtype).cpu(), layer.weight_as(dtype))
