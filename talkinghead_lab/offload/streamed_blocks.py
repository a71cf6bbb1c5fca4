"""Networks that visit the device only while they are used, and blocks that stream to it one by one.

The copies run on a stream of their own, from page-locked host memory into a few fixed buffers ("slots") on
the device, while earlier blocks compute; events order the two streams and nothing waits on the host. Plain
PyTorch rather than the hooks of diffusers (group offloading) or accelerate: those allocate device memory in
every step, lock each tensor by itself, which PyTorch rounds up to a power of two, and act inside `forward`,
where `torch.compile` traces them. Here the loop over the blocks is the only place that knows.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from talkinghead_lab.offload.host_buffer import HostBuffer

SLOTS = 2
# Smaller tensors (biases, norms, modulation) stay on the device with the rest of the network: a thousandth of
# a released block.
STREAMED_ELEMENTS = 2**15
ALIGNMENT = 256  # bytes, as the CUDA allocator gives: kernels choose their vector width by it


def large_tensors(block: nn.Module, streamed_elements: int = STREAMED_ELEMENTS) -> list[Tensor]:
    """The parameters and buffers of a block that stream, in a fixed order."""
    tensors = chain(block.parameters(), block.buffers())
    return [tensor for tensor in tensors if tensor.numel() >= streamed_elements]


def slot_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes that tensors take in a slot, each beginning on an aligned address."""
    return sum(-(-tensor.nbytes // ALIGNMENT) * ALIGNMENT for tensor in tensors)


def views_into(buffer: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Consecutive parts of a byte buffer with the shapes and types of other tensors."""
    views, start = [], 0
    for tensor in like:
        part = buffer[start : start + tensor.nbytes]
        views.append(part.view(tensor.dtype).view(tensor.shape))
        start += slot_bytes([tensor])
    return views


@dataclass
class _BlockWeights:
    """The large tensors of one block, where their values lie, and the copy on the device if one stays."""

    tensors: list[Tensor]
    host: list[Tensor]
    buffer: HostBuffer | None
    kept: list[Tensor] | None = None

    @classmethod
    def of(cls, block: nn.Module, streamed_elements: int, page_locked: bool) -> "_BlockWeights":
        """Gather a block's weights into one host buffer, or leave them where they are (files, mostly)."""
        tensors = large_tensors(block, streamed_elements)
        host = [tensor.data for tensor in tensors]
        if not page_locked:
            return cls(tensors, host, None)
        buffer = HostBuffer(slot_bytes(host))
        gathered = views_into(buffer.bytes, host)
        for target, source in zip(gathered, host, strict=True):
            target.copy_(source)
        weights = cls(tensors, gathered, buffer)
        weights.point_to(gathered)
        return weights

    @property
    def bytes(self) -> int:
        return slot_bytes(self.host)

    def point_to(self, values: Sequence[Tensor]) -> None:
        for tensor, value in zip(self.tensors, values, strict=True):
            tensor.data = value


@dataclass
class _Slot:
    """A buffer on the device that holds one block at a time, and the two events that guard it."""

    buffer: Tensor
    filled: Any
    free: Any
    views: list[Tensor] = field(default_factory=list)


class StreamedBlocks(nn.ModuleList):
    """Blocks whose large weights lie in host memory and reach the device just before their turn.

    A loop over it yields every block ready to run, `for block in blocks`; a block's weights are only on the
    device until the loop goes on. The next ones are copied meanwhile, after the last the first ones again.
    Names and values of parameters stay those of the plain list, the parameters the same objects: quantised
    weights stream as they are, and a compiled block sees other addresses but the same shapes.

    Between `open` and `close` it takes device memory, at other times none. One loop at a time.

    Args:
        blocks: with all their weights on the CPU; nothing may replace a parameter afterwards.
        device: where they run. On the CPU the same copies are made, within host memory.
        streamed_elements: smaller tensors are left to `on_device`.
        page_locked: copy the weights into page-locked memory; False streams them from where they are, which
            suits a network that runs once.
    """

    def __init__(
        self,
        blocks: Iterable[nn.Module],
        device: torch.device,
        streamed_elements: int = STREAMED_ELEMENTS,
        page_locked: bool = True,
    ):
        super().__init__()
        self.device = device
        self._runtime = torch.get_device_module(device)
        self._slots: list[_Slot] = []
        self._streamed: list[int] = []
        self._position = 0
        self._weights: list[_BlockWeights] = []
        with torch.inference_mode(False), ThreadPoolExecutor(1) as locking:
            locks: list[Future[None]] = []
            for block in blocks:
                self.append(block)
                weights = _BlockWeights.of(block, streamed_elements, page_locked)
                self._weights.append(weights)
                if weights.buffer is not None:
                    locks.append(locking.submit(weights.buffer.lock, device))
            for lock in locks:
                lock.result()

    def large_tensors(self) -> list[Tensor]:
        """Every tensor that streams."""
        return [tensor for weights in self._weights for tensor in weights.tensors]

    @property
    def block_bytes(self) -> int:
        """Bytes of the largest block on the device."""
        return max(weights.bytes for weights in self._weights)

    def open(self, room: int) -> None:
        """Take `room` bytes of the device, or less, but two blocks at least; what blocks fit stay there."""
        self.close()
        resident = resident_blocks(room, self.block_bytes, len(self))
        stay = evenly_spread(resident, len(self))
        self._streamed = [index for index in range(len(self)) if index not in stay]
        with torch.inference_mode(False):
            for index in stay:
                weights = self._weights[index]
                weights.kept = [tensor.to(self.device, copy=True) for tensor in weights.host]
                weights.point_to(weights.kept)
            for _ in range(SLOTS if self._streamed else 0):
                buffer = torch.empty(self.block_bytes, dtype=torch.uint8, device=self.device)
                self._slots.append(_Slot(buffer, self._runtime.Event(), self._runtime.Event()))
        self._copies = torch.cuda.Stream(self.device) if self.device.type == "cuda" else torch.cpu.Stream()
        self._refill()

    def close(self) -> None:
        """Give the device memory back."""
        if self._slots:
            # Freed slots may be handed to kernels of this stream, which copies under way must not overtake.
            self._runtime.current_stream(self.device).wait_stream(self._copies)
        for weights in self._weights:
            weights.kept = None
            weights.point_to(weights.host)
        self._slots, self._streamed = [], []

    def __iter__(self) -> Iterator[nn.Module]:
        if self._streamed and self._position % len(self._streamed):
            self._refill()  # a loop that was left early
        streamed = set(self._streamed)
        for index, block in enumerate(super().__iter__()):
            if index not in streamed:
                yield block
                continue
            with self._in_slot(index):
                yield block
            self._fetch(self._position + SLOTS)
            self._position += 1

    @contextmanager
    def _in_slot(self, index: int) -> Iterator[None]:
        """The weights of the block whose turn it is, in the slot that was filled with them."""
        slot, weights = self._slots[self._position % SLOTS], self._weights[index]
        compute = self._runtime.current_stream(self.device)
        compute.wait_event(slot.filled)
        weights.point_to(slot.views)
        try:
            yield
        finally:
            weights.point_to(weights.host)
            slot.free.record(compute)

    def _refill(self) -> None:
        """Begin again with the first block that streams."""
        self._position = 0
        for slot in self._slots:
            slot.free.record(self._runtime.current_stream(self.device))
        for position in range(len(self._slots)):
            self._fetch(position)

    def _fetch(self, position: int) -> None:
        """Begin to copy a block into the slot of its position; positions count on from loop to loop."""
        weights = self._weights[self._streamed[position % len(self._streamed)]]
        slot = self._slots[position % SLOTS]
        with torch.inference_mode(False), self._runtime.stream(self._copies):
            self._copies.wait_event(slot.free)
            slot.views = views_into(slot.buffer, weights.host)
            for target, source in zip(slot.views, weights.host, strict=True):
                target.copy_(source, non_blocking=True)
            slot.filled.record(self._copies)


def resident_blocks(room: int, block_bytes: int, blocks: int) -> int:
    """How many of some blocks can stay in `room` bytes beside the slots that the others stream through."""
    if room >= blocks * block_bytes:
        return blocks
    fitting = max(0, room // max(block_bytes, 1) - SLOTS)
    return blocks if blocks - fitting <= SLOTS else fitting


def evenly_spread(count: int, places: int) -> set[int]:
    """`count` of the numbers below `places`, evenly spread: between two copies there is time to compute."""
    return {(2 * number + 1) * places // (2 * count) for number in range(count)}


def stream(
    network: nn.Module,
    blocks: str,
    device: torch.device,
    finish: Callable[[nn.Module], None] = lambda block: None,
    page_locked: bool = True,
) -> None:
    """Let the list of blocks that a dotted name says stream to a device; see `StreamedBlocks`.

    `finish` is called with each block before its weights are gathered, so that converting or quantising a
    network takes the memory of one block.
    """
    parent, _, name = blocks.rpartition(".")

    def finished() -> Iterator[nn.Module]:
        for block in network.get_submodule(blocks).children():
            finish(block)
            yield block

    setattr(network.get_submodule(parent), name, StreamedBlocks(finished(), device, page_locked=page_locked))
