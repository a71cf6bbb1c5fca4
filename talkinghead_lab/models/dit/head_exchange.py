"""Self-attention of a forward pass that several processes share, and how they exchange heads for it.

Around attention, tokens with all heads are turned into all tokens with some heads, and back (DeepSpeed
Ulysses, arXiv 2309.14509). Each tensor is sent as soon as it is computed, while the next one is.
"""

import copy
import logging
import os
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from talkinghead_lab.models.lora import LoraLinear

logger = logging.getLogger(__name__)

# Tensors of one self-attention, by their place in the memory that others write to.
KEY, QUERY, VALUE, ATTENDED = range(4)
# What a process waits for: the inputs of attention, and the attended heads.
SIGNALLED = {VALUE: 0, ATTENDED: 1}
# Longest wait for another process while the exchange is tried; later, waits end with the processes.
TRIAL = timedelta(seconds=60)
TRIED_BYTES = 4096


class HeadExchange(ABC):
    """Sends parts of tensors to the processes that share a forward pass, as seen from one of them."""

    # For the record.
    name: str

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self.others = [(rank + step) % size for step in range(1, size)]

    @abstractmethod
    def send(self, tensor: int, part_for: Callable[[int], Tensor]) -> None:
        """Start sending one tensor; all parts have one size, in all processes.

        Args:
            tensor: `KEY`, `QUERY`, `VALUE` or `ATTENDED`.
            part_for: computes the part for a process. It is called for the others first, then for this one.
        """

    @abstractmethod
    def receive(self, *tensors: int) -> list[Tensor]:
        """Wait for the parts of tensors from all processes: one [size, …] each, in rank order.

        The own part of `ATTENDED` may be missing: the process has it.
        """

    def start_sum(self, x: Tensor) -> Any:
        """Start summing a tensor over the processes, in place; `wait` of the result waits."""
        return dist.all_reduce(x, async_op=True)


class CollectiveExchange(HeadExchange):
    """All-to-all collectives of PyTorch's process group."""

    def __init__(self, rank: int, size: int) -> None:
        super().__init__(rank, size)
        self.name = dist.get_backend()
        self.pending: dict[int, tuple[Tensor, Any, Tensor]] = {}

    def send(self, tensor: int, part_for: Callable[[int], Tensor]) -> None:
        """See `HeadExchange.send`."""
        parts = torch.stack([part_for(rank) for rank in range(self.size)])
        received = torch.empty_like(parts)
        # NCCL takes fp8, gloo does not.
        work = dist.all_to_all_single(received.view(torch.uint8), parts.view(torch.uint8), async_op=True)
        self.pending[tensor] = received, work, parts

    def receive(self, *tensors: int) -> list[Tensor]:
        """See `HeadExchange.receive`."""
        arrived = [self.pending.pop(tensor) for tensor in tensors]
        for _, work, _ in arrived:
            work.wait()
        return [received for received, _, _ in arrived]


class PeerMemoryExchange(HeadExchange):
    """Copy engines write into the memory of the other GPUs, which their processes share (no multicast).

    Copies run beside matmuls, which leave no multiprocessor to kernels of NCCL. Every GPU waits for a signal
    that follows the last copy. A process that is sent keys has read those of the layer before: their sender
    has received the heads that were attended with them.
    """

    name = "peer memory"

    def __init__(self, rank: int, size: int, device: torch.device) -> None:
        super().__init__(rank, size)
        self.device, self.stream = device, torch.cuda.Stream(device)
        self.arrived = torch.ones(1, dtype=torch.int32, device=device)
        self.sent: list[Tensor] = []
        self.shapes: dict[int, tuple[torch.Size, torch.dtype]] = {}
        self.capacity = 0

    def reserve(self, part_bytes: int) -> None:
        """Share memory for parts of this size; all processes call this with one size, in one order."""
        if part_bytes <= self.capacity:
            return
        from torch.distributed import _symmetric_memory as symmetric

        assert dist.group.WORLD is not None
        with torch.inference_mode(False):
            size = (len((KEY, QUERY, VALUE, ATTENDED)) * self.size * part_bytes,)
            memory = symmetric.empty(*size, dtype=torch.uint8, device=self.device)
            handle = symmetric.rendezvous(memory, dist.group.WORLD.group_name)
            self.buffers = [handle.get_buffer(rank, size, torch.uint8) for rank in range(self.size)]
            self.signals = {
                (rank, channel): handle.get_signal_pad(
                    rank, (1,), torch.int32, self.size * channel + self.rank
                )
                for rank in self.others
                for channel in SIGNALLED.values()
            }
        self.memory, self.handle, self.capacity = memory, handle, part_bytes

    def send(self, tensor: int, part_for: Callable[[int], Tensor]) -> None:
        """See `HeadExchange.send`."""
        for rank in (*self.others, self.rank):
            if rank == self.rank and tensor == ATTENDED:
                continue  # stays where it is
            part = part_for(rank).contiguous()
            self.reserve(part.nbytes)
            self.shapes[tensor] = part.shape, part.dtype
            self.stream.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(self.stream):
                self._parts(rank, tensor)[self.rank].copy_(part)
                if rank != self.rank and tensor in SIGNALLED:
                    self.signals[rank, SIGNALLED[tensor]].copy_(self.arrived)
            self.sent.append(part)

    def receive(self, *tensors: int) -> list[Tensor]:
        """See `HeadExchange.receive`."""
        torch.cuda.current_stream(self.device).wait_stream(self.stream)
        self.sent.clear()
        for rank in self.others:
            self.handle.wait_signal(rank, SIGNALLED[tensors[-1]])
        return [self._parts(self.rank, tensor) for tensor in tensors]

    def _parts(self, rank: int, tensor: int) -> Tensor:
        """The memory of a process for one tensor, [size, …] by sender."""
        shape, dtype = self.shapes[tensor]
        start = tensor * self.size * self.capacity
        used = self.size * shape.numel() * dtype.itemsize
        return self.buffers[rank][start : start + used].view(dtype).view(self.size, *shape)

    def check(self) -> None:
        """Exchange a pattern without waiting on the GPU.

        Raises:
            RuntimeError: something else arrived.
        """
        pattern = torch.arange(64, device=self.device) + 1000 * self.rank
        for tensor in SIGNALLED:
            self.send(tensor, lambda rank: pattern + 100 * rank)
        torch.cuda.synchronize(self.device)
        dist.barrier()
        pads = self.handle.get_signal_pad(self.rank, (self.size * len(SIGNALLED),), torch.int32)
        signals = pads.view(-1, self.size)[:, self.others]
        parts = [self._parts(self.rank, tensor)[self.others] for tensor in SIGNALLED]
        expected = torch.stack(
            [pattern + 1000 * (other - self.rank) + 100 * self.rank for other in self.others]
        )
        if not (signals == 1).all() or not all(part.equal(expected) for part in parts):
            raise RuntimeError("other bytes arrived than were sent")
        for tensor in SIGNALLED:
            self.receive(tensor)
        torch.cuda.synchronize(self.device)


def open_exchange(rank: int, size: int, device: torch.device) -> HeadExchange:
    """Peer memory, if the processes are on one host and it works there; otherwise collectives.

    All processes call this together. If peer memory does not work, the first logs why.
    """
    if device.type != "cuda" or len(set(_gathered(_host(), size))) > 1:
        return CollectiveExchange(rank, size)
    # PyTorch would otherwise also set up NVLink multicast, which nothing here uses.
    os.environ["TORCH_SYMM_MEM_DISABLE_MULTICAST"] = "1"
    exchange = PeerMemoryExchange(rank, size, device)
    store = dist.distributed_c10d._get_default_store()
    longest = store.timeout  # type: ignore[attr-defined]
    store.set_timeout(TRIAL)
    try:
        for attempt in (partial(exchange.reserve, TRIED_BYTES), exchange.check):
            if problem := next(filter(None, _gathered(_problem_of(attempt), size)), None):
                break
    finally:
        store.set_timeout(longest)
    if problem is None:
        return exchange
    if rank == 0:
        logger.warning("the GPUs exchange heads by NCCL, not by peer memory: %.300s", problem)
    return CollectiveExchange(rank, size)


def _host() -> str:
    """Tells hosts apart, also where containers have the same name."""
    return socket.gethostname() + Path("/proc/sys/kernel/random/boot_id").read_text()


def _gathered(value: Any, size: int) -> list[Any]:
    values = [None] * size
    dist.all_gather_object(values, value)
    return values


def _problem_of(attempt: Callable[[], None]) -> str | None:
    try:
        attempt()
    except Exception as error:  # PyTorch raises many kinds
        return f"{type(error).__name__}: {error}"
    return None


def of_rows(layer: nn.Module, rows: slice) -> nn.Module:
    """A linear layer of any stored type with some of its output channels; it shares their memory."""
    if isinstance(layer, LoraLinear):
        return layer.of_rows(of_rows(layer.base, rows), rows)
    part = copy.copy(layer)
    for name in ("_parameters", "_buffers"):
        tensors = {key: each if each is None else each[rows] for key, each in vars(layer)[name].items()}
        vars(part)[name] = tensors
    return part
