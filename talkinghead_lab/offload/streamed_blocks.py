"""Blocks that stream from host memory to the device one by one.

Copies run on their own CUDA stream, from page-locked host memory into a few fixed buffers ("slots") on the
device, while earlier blocks compute. Events order the two streams; the host never waits. This is plain
PyTorch instead of the hooks of diffusers (group offloading) or accelerate: those allocate device memory in
every step, page-lock each tensor separately, which PyTorch rounds up to a power of two, and run inside
`forward`, where `torch.compile` traces them. Here only the loop over the blocks is involved.
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
# Smaller tensors (biases, norms, modulation) stay on the device with the rest of the network; together they
# are a thousandth of a released block.
STREAMED_ELEMENTS = 2**15
ALIGNMENT = 256  # bytes, like the CUDA allocator; kernels choose their vector width by it


def large_tensors(block: nn.Module, streamed_elements: int = STREAMED_ELEMENTS) -> list[Tensor]:
    """The parameters and buffers of a block that are large enough to stream, in a fixed order."""
    tensors = chain(block.parameters(), block.buffers())
    return [tensor for tensor in tensors if tensor.numel() >= streamed_elements]


def slot_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors in a slot, with each at an aligned address."""
    return sum(-(-tensor.nbytes // ALIGNMENT) * ALIGNMENT for tensor in tensors)


def views_into(buffer: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Consecutive views into a byte buffer with the shapes and types of the tensors `like`."""
    views, start = [], 0
    for tensor in like:
        part = buffer[start : start + tensor.nbytes]
        views.append(part.view(tensor.dtype).view(tensor.shape))
        start += slot_bytes([tensor])
    return views


@dataclass
class _BlockWeights:
    """The large tensors of one block, with their values on the host and, if it is resident, on the device."""

    tensors: list[Tensor]
    host: list[Tensor]
    buffer: HostBuffer | None
    kept: list[Tensor] | None = None

    @classmethod
    def of(cls, block: nn.Module, streamed_elements: int, page_locked: bool) -> "_BlockWeights":
        """Copy a block's weights into one host buffer, or leave them in place, mostly in mapped files."""
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
    """A device buffer for one block at a time, and the events that tell when it is filled and free."""

    buffer: Tensor
    filled: Any
    free: Any
    views: list[Tensor] = field(default_factory=list)


class StreamedBlocks(nn.ModuleList):
    """Blocks whose large weights are in host memory and are copied to the device just before use.

    `for block in blocks` yields every block ready to run; its weights are on the device until the next
    iteration. The next blocks are copied at the same time, and after the last block the first ones for the
    next loop. Only one loop may run at a time. Parameters stay the same objects with the same names and
    values as in a plain list: quantised weights stream in their stored type, and a compiled block sees new
    addresses but the same shapes.

    Uses device memory only between `open` and `close`.

    Args:
        blocks: all their weights are on the CPU; nothing may replace a parameter afterwards.
        device: where they run. On a CPU, the same copies are made within host memory.
        streamed_elements: smaller tensors do not stream; `on_device` moves them.
        page_locked: copy the weights into page-locked memory; False streams them from where they are, which
            suits a network that runs only once.
    """

    def __init__(
        self,
        blocks: Iterable[nn.Module],
        device: torch.device,
        streamed_elements: int = STREAMED_ELEMENTS,
        page_locked: bool = True,
    ) -> None:
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
        """All tensors that stream."""
        return [tensor for weights in self._weights for tensor in weights.tensors]

    @property
    def block_bytes(self) -> int:
        """Bytes of the largest block on the device."""
        return max(weights.bytes for weights in self._weights)

    def open(self, room: int) -> None:
        """Allocate up to `room` bytes on the device, at least the slots; blocks that fit become resident."""
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
        self._copies = _stream(self.device)
        self._refill()

    def close(self) -> None:
        """Free the device memory."""
        if self._slots:
            # Wait for pending copies; otherwise the allocator may reuse memory that is still being written.
            self._runtime.current_stream(self.device).wait_stream(self._copies)
        for weights in self._weights:
            weights.kept = None
            weights.point_to(weights.host)
        self._slots, self._streamed = [], []

    def free_weights(self) -> None:
        """Free the weights on the host as well; the blocks cannot run afterwards."""
        self.close()
        self._weights = []

    def __iter__(self) -> Iterator[nn.Module]:
        if self._streamed and self._position % len(self._streamed):
            self._refill()  # the last loop was left early
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
        """Point a block's weights to the slot that holds them while the block runs."""
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
        """Fill the slots with the first blocks that stream."""
        self._position = 0
        for slot in self._slots:
            slot.free.record(self._runtime.current_stream(self.device))
        for position in range(len(self._slots)):
            self._fetch(position)

    def _fetch(self, position: int) -> None:
        """Start to copy a block into the slot of its position; positions continue from loop to loop."""
        weights = self._weights[self._streamed[position % len(self._streamed)]]
        slot = self._slots[position % SLOTS]
        with torch.inference_mode(False), self._runtime.stream(self._copies):
            self._copies.wait_event(slot.free)
            slot.views = views_into(slot.buffer, weights.host)
            for target, source in zip(slot.views, weights.host, strict=True):
                target.copy_(source, non_blocking=True)
            slot.filled.record(self._copies)


def _stream(device: torch.device) -> Any:
    """A stream for copies; on a CPU, PyTorch's placeholder for one."""
    if device.type != "cuda":
        return torch.cpu.Stream()
    return torch.cuda.Stream(device)


def resident_blocks(room: int, block_bytes: int, blocks: int) -> int:
    """How many of `blocks` blocks can be resident in `room` bytes, next to the slots for the others."""
    if room >= blocks * block_bytes:
        return blocks
    fitting = max(0, room // max(block_bytes, 1) - SLOTS)
    return blocks if blocks - fitting <= SLOTS else fitting


def evenly_spread(count: int, places: int) -> set[int]:
    """`count` evenly spread numbers below `places`; spread blocks leave time to compute between copies."""
    return {(2 * number + 1) * places // (2 * count) for number in range(count)}


def stream(
    network: nn.Module,
    blocks: str,
    device: torch.device,
    finish: Callable[[nn.Module], None] = lambda block: None,
    page_locked: bool = True,
) -> None:
    """Replace the list of blocks with a dotted name by `StreamedBlocks`.

    `finish` is called with each block before its weights are copied, so that converting or quantising a
    network takes the memory of one block.
    """
    parent, _, name = blocks.rpartition(".")

    def finished() -> Iterator[nn.Module]:
        for block in network.get_submodule(blocks).children():
            finish(block)
            yield block

    setattr(network.get_submodule(parent), name, StreamedBlocks(finished(), device, page_locked=page_locked))
