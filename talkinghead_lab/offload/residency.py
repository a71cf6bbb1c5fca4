"""Moves networks to the device for one stage, and frees the device when memory runs out."""

import gc
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import TypeVar

import torch
from torch import nn

from talkinghead_lab.errors import OutOfMemory
from talkinghead_lab.foundation.devices import (
    GIB,
    allocator_limit,
    available_bytes,
    empty_cache,
    is_out_of_memory,
)
from talkinghead_lab.offload.requirements import Requirements, StageMemory, coefficients
from talkinghead_lab.offload.streamed_blocks import StreamedBlocks

Result = TypeVar("Result")


@contextmanager
def within_budget(
    network: nn.Module, device: torch.device, budget: int, need: StageMemory | None = None
) -> Iterator[None]:
    """Move a network to the device for one stage and free the memory afterwards.

    Args:
        network: in host memory.
        device: where it runs.
        budget: bytes of device memory for the process.
        need: memory of the stage, which decides how much is left for streamed blocks. None: they stay on the
            host.
    """
    limit = budget - round(coefficients(device.type)["outside_gib"] * GIB)
    room = None if need is None else need.room(limit)
    try:
        with allocator_limit(device, limit), on_device(network, device, room):
            yield
    finally:
        empty_cache(device)


def handle_out_of_memory(
    work: Callable[[], Result], device: torch.device, plan: Callable[[], Requirements], budget: int | None
) -> Result:
    """Call `work`; if memory runs out, free the device and report a budget that would fit.

    Raises:
        OutOfMemory: the error contains the figures of the plan.
    """
    try:
        return work()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        # The frames of the traceback keep the tensors of the failed work alive.
        traceback.clear_frames(error.__traceback__)
        reason = " ".join([str(error).split(". ")[0], *getattr(error, "__notes__", [])])
    gc.collect()
    empty_cache(device)
    raise out_of_memory(device, reason, plan(), budget)


def out_of_memory(device: torch.device, reason: str, plan: Requirements, budget: int | None) -> OutOfMemory:
    """The error for a device that ran out of memory, with a budget that would fit."""
    available = available_bytes(device)
    fitting = _fitting_budget(plan, available, budget) if device.type == "cuda" else None
    limit = "" if budget is None else f" within a budget of {budget / GIB:.2f} GiB"
    remedy = "Reduce frame_size or chunk_frames, or free memory."
    return OutOfMemory(
        f"{device} ran out of memory{limit} ({reason})",
        received=f"{available / GIB:.2f} GiB available; {plan}",
        remedy=remedy if fitting is None else f"Set vram_budget_gib to {fitting / GIB:.1f}.",
    )


def _fitting_budget(plan: Requirements, available: int, budget: int | None) -> int | None:
    """The budget to try next: the available memory, or 1.25 times the last budget; None: none fits."""
    least = plan.smallest if budget is None else max(plan.smallest, budget * 5 // 4)
    if least > available:
        return None
    return available if budget is None else least


def free_weights(network: nn.Module) -> None:
    """Free the weights of a network for good, also where something still refers to it.

    Compiled blocks are reference cycles, and the frames of an error's traceback hold networks.
    """
    for module in network.modules():
        if isinstance(module, StreamedBlocks):
            module.free_weights()
    with torch.inference_mode(False):
        for tensor in chain(network.parameters(), network.buffers()):
            tensor.data = tensor.data.new_empty(0)


Network = TypeVar("Network", bound=nn.Module)


@contextmanager
def on_device(network: Network, device: torch.device, room: int | None = None) -> Iterator[Network]:
    """Move a network from host memory to a device while the block runs.

    Args:
        network: its weights are on the CPU.
        device: where it runs.
        room: bytes for streamed blocks, in addition to the rest; None leaves them on the host.
    """
    streams = [module for module in network.modules() if isinstance(module, StreamedBlocks)]
    streamed = {id(tensor) for blocks in streams for tensor in blocks.large_tensors()}
    tensors = [t for t in chain(network.parameters(), network.buffers()) if id(t) not in streamed]
    host = [tensor.data for tensor in tensors]
    try:
        with torch.inference_mode(False):
            for tensor in tensors:
                tensor.data = tensor.data.to(device)
        for blocks in streams:
            if room is not None:
                blocks.open(room)
        yield network
    finally:
        for blocks in streams:
            blocks.close()
        for tensor, value in zip(tensors, host, strict=True):
            tensor.data = value
