"""Streamed blocks compute the same bits as resident ones and stay within their memory."""

import copy
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from talkinghead_lab.models.dit.model import DiT
from talkinghead_lab.models.encoders.text import TextEncoder, TextEncoderConfig
from talkinghead_lab.offload.residency import on_device
from talkinghead_lab.offload.streamed_blocks import (
    SLOTS,
    StreamedBlocks,
    evenly_spread,
    resident_blocks,
    slot_bytes,
    stream,
)
from talkinghead_lab.training.networks import build_untrained
from talkinghead_lab.weights.quantization import quantize_linears

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
        ],
    ),
]
BLOCKS = 5


class Block(nn.Module):
    """A linear layer with a residual connection."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 64)

    def forward(self, x):
        return x + self.linear(x).relu()


class Stack(nn.Module):
    """A sequence of blocks after another layer."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(64, 64)
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return x


@pytest.fixture
def plain() -> Stack:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Stack().requires_grad_(False)


def streamed_copy(network: nn.Module, device: str, elements: int = 0, page_locked: bool = True):
    network = copy.deepcopy(network)
    network.blocks = StreamedBlocks(network.blocks, torch.device(device), elements, page_locked)
    return network


def room_for(blocks: StreamedBlocks, resident: int) -> int:
    return (SLOTS + resident) * blocks.block_bytes


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("page_locked", [True, False])
@pytest.mark.parametrize("resident", [0, 1, 2, BLOCKS])
def test_several_forward_passes_equal_the_plain_ones(plain, device, resident, page_locked):
    streamed = streamed_copy(plain, device, page_locked=page_locked)
    x = torch.randn(3, 64).to(device)
    with (
        torch.inference_mode(),
        on_device(streamed, torch.device(device), room_for(streamed.blocks, resident)),
    ):
        got = [streamed(x + n) for n in range(3)]
    plain.to(device)
    for n, out in enumerate(got):
        assert torch.equal(out, plain(x + n))
    assert {tensor.device.type for tensor in streamed.state_dict().values()} == {"cpu"}


@pytest.mark.parametrize("device", DEVICES)
def test_a_loop_that_is_left_early_can_start_again(plain, device):
    streamed, x = streamed_copy(plain, device), torch.randn(3, 64).to(device)
    with on_device(streamed, torch.device(device), 0):
        for index, block in enumerate(streamed.blocks):
            block(x)
            if index == 2:
                break
        del block
        got = streamed(x)
    assert torch.equal(got, plain.to(device)(x))


def test_streamed_parameters_keep_names_values_and_identity(plain):
    before = {name: id(parameter) for name, parameter in plain.named_parameters()}
    values = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    stream(plain, "blocks", torch.device("cpu"))
    assert {name: id(parameter) for name, parameter in plain.named_parameters()} == before
    with on_device(plain, torch.device("cpu"), 0):
        plain(torch.randn(1, 64))
    assert all(torch.equal(tensor, values[name]) for name, tensor in plain.state_dict().items())


def test_weights_are_in_a_slot_only_while_their_block_runs(plain):
    streamed = streamed_copy(plain, "cpu")
    host = [block.linear.weight.data_ptr() for block in streamed.blocks]
    slots = set()
    with on_device(streamed, torch.device("cpu"), 0):
        for index, block in enumerate(streamed.blocks):
            assert block.linear.weight.data_ptr() != host[index]
            assert streamed.blocks[index - 1].linear.weight.data_ptr() == host[index - 1]
            slots.add(block.linear.weight.data_ptr())
    assert len(slots) == SLOTS


@pytest.mark.parametrize("stored", [torch.int8, torch.float8_e4m3fn])
def test_quantised_weights_stream_in_their_stored_type(plain, stored):
    quantize_linears(plain.blocks, stored)
    streamed, x = streamed_copy(plain, "cpu"), torch.randn(3, 64)
    sizes = slot_bytes([torch.empty(64 * 64, dtype=torch.uint8), torch.empty(64), torch.empty(64)])
    assert streamed.blocks.block_bytes == sizes, "a weight takes one byte; a scale or bias four"
    with on_device(streamed, torch.device("cpu"), 0):
        assert torch.equal(streamed(x), plain(x))


@pytest.mark.parametrize("device", DEVICES)
def test_compiled_blocks_accept_the_addresses_of_slots(plain, device):
    """Blocks differ only in addresses, on which compiled code does not specialise, so it compiles once."""
    streamed = streamed_copy(plain, device)
    compiled = []

    def count(graph, inputs):
        compiled.append(graph)
        return graph.forward

    for block in streamed.blocks.children():
        block.compile(backend=count, dynamic=False)
    x = torch.randn(3, 64).to(device)
    with torch.no_grad(), on_device(streamed, torch.device(device), 0):
        got = [streamed(x) for _ in range(2)]
    assert len(compiled) == 1
    assert all(torch.equal(out, plain.to(device)(x)) for out in got)


def test_at_most_one_block_is_in_host_memory_twice(plain):
    sources = []
    for block in plain.blocks:
        values = np.zeros((64, 512), dtype=np.float32)
        sources.append(weakref.ref(values))
        block.linear.weight.data = torch.from_numpy(values)
    del values
    held = []
    stream(
        plain, "blocks", torch.device("cpu"), lambda block: held.append(sum(s() is not None for s in sources))
    )
    assert held == [5, 4, 3, 2, 1], "earlier blocks have been moved and their first copy freed"
    assert all(source() is None for source in sources)


def test_small_tensors_stay_with_the_network(plain):
    blocks = StreamedBlocks(plain.blocks, torch.device("cpu"), 65)
    assert {tuple(tensor.shape) for tensor in blocks.large_tensors()} == {(64, 64)}


def test_the_available_memory_decides_how_many_blocks_are_resident():
    assert resident_blocks(room=10, block_bytes=1, blocks=10) == 10
    assert resident_blocks(room=9, block_bytes=1, blocks=10) == 7
    assert resident_blocks(room=0, block_bytes=1, blocks=10) == 0
    assert resident_blocks(room=2, block_bytes=1, blocks=2) == 2
    assert evenly_spread(0, 40) == set()
    assert evenly_spread(2, 8) == {2, 6}
    for count in range(41):
        assert len(evenly_spread(count, 40)) == count


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["plain", "int8"])
def test_a_streamed_transformer_computes_the_same_bits(device, kind):
    dit: DiT = build_untrained(0).dit.eval().requires_grad_(False)
    if kind == "int8":
        quantize_linears(dit.get_submodule("blocks"), torch.int8)
    config = dit.config
    latent, condition = (
        torch.randn(1, config.out_dim, 3, 4, 4),
        torch.randn(1, config.in_dim - config.out_dim, 3, 4, 4),
    )
    features = config.audio_features // 4
    inputs = [
        latent, condition, torch.tensor([500.0]), torch.randn(5, config.text_dim),
        torch.randn(1, 7, config.image_dim), torch.randn(1, 1, 9, config.audio_window, 4, features),
    ]  # fmt: skip
    latent, condition, times, text, image, audio = (tensor.to(device) for tensor in inputs)
    with torch.inference_mode():
        expected = copy.deepcopy(dit).to(device)(latent, condition, times, [text], image, audio)
        stream(dit, "blocks", torch.device(device))
        with on_device(dit, torch.device(device), 0):
            assert torch.equal(dit(latent, condition, times, [text], image, audio), expected)


def test_encoders_stream_too():
    text = TextEncoder(TextEncoderConfig(50, 64, 16, 4, 128, 4, 32)).eval()
    image = build_untrained(0).image_encoder.eval()
    ids, mask = torch.randint(3, 50, (2, 6)), torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    picture = torch.rand(1, 3, 64, 48) * 2 - 1
    with torch.inference_mode():
        hidden, seen = text(ids, mask), image(picture)
        used = []
        for network, name in ((text, "encoder.block"), (image, "vision.encoder.layers")):
            network.requires_grad_(False)
            parent, _, leaf = name.rpartition(".")
            blocks = StreamedBlocks(network.get_submodule(name), torch.device("cpu"), 1000, False)
            setattr(network.get_submodule(parent), leaf, blocks)
            used.append(blocks)
        with on_device(text, torch.device("cpu"), 0), on_device(image, torch.device("cpu"), 0):
            assert all(torch.equal(a, b) for a, b in zip(text(ids, mask), hidden, strict=True))
            assert torch.equal(image(picture), seen)
            assert [blocks._position for blocks in used] == [4, 3], "every block used a slot"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_device_memory_stays_within_the_given_room(plain):
    streamed, device = streamed_copy(plain, "cuda"), torch.device("cuda")
    room = room_for(streamed.blocks, 1)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    with on_device(streamed, device, room):
        rest = slot_bytes(streamed.first.state_dict().values()) + 1024
        assert torch.cuda.max_memory_allocated() - before <= room + rest
    assert torch.cuda.memory_allocated() == before
