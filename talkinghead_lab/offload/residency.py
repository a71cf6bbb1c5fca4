"""What is on the device when: networks visit for their stage; a stage that fails leaves nothing behind."""

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
def visit(
    network: nn.Module, device: torch.device, budget: int, need: StageMemory | None = None
) -> Iterator[None]:
    """Have a network on the device for one stage, within a budget of bytes; then give all memory back.

    Args:
        network: in host memory.
        device: where it visits.
        budget: what the whole process may take of the device.
        need: of the stage; the room that it leaves is for blocks. None: streamed blocks stay on the host.
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
    """Do some work; where memory runs out, leave the device clean and say what would fit.

    Raises:
        OutOfMemory: with the numbers of the plan.
    """
    try:
        return work()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        # The frames of the traceback hold the tensors of the failed work.
        traceback.clear_frames(error.__traceback__)
        reason = str(error).split(". ")[0]
    gc.collect()
    empty_cache(device)
    raise out_of_memory(device, reason, plan(), budget)


def out_of_memory(device: torch.device, reason: str, plan: Requirements, budget: int | None) -> OutOfMemory:
    """The error for memory that ran out, with the budget that would fit."""
    available = available_bytes(device)
    fitting = _fitting_budget(plan, available, budget) if device.type == "cuda" else None
    limit = "" if budget is None else f" within a budget of {budget / GIB:.2f} GiB"
    remedy = "Ask for fewer pixels (frame_size) or shorter chunks (chunk_frames), or free memory."
    return OutOfMemory(
        f"the memory of {device} did not suffice{limit} ({reason})",
        received=f"{available / GIB:.2f} GiB available; {plan}",
        remedy=remedy if fitting is None else f"Set vram_budget_gib to {fitting / GIB:.1f}.",
    )


def _fitting_budget(plan: Requirements, available: int, budget: int | None) -> int | None:
    """The budget to try next: what is available, or a quarter more than was too small; None: none fits."""
    least = plan.smallest if budget is None else max(plan.smallest, budget * 5 // 4)
    if least > available:
        return None
    return available if budget is None else least


Network = TypeVar("Network", bound=nn.Module)


@contextmanager
def on_device(network: Network, device: torch.device, room: int | None = None) -> Iterator[Network]:
    """Lend a network that lies in host memory to a device; afterwards nothing of it is left there.

    Args:
        network: its weights on the CPU.
        device: where it is to run.
        room: bytes that streamed blocks may take besides; None leaves them on the host.
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
