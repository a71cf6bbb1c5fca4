"""What is on the device when: networks visit for their stage; a stage that fails leaves nothing behind."""

import gc
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn

from talkinghead_lab.devices import GIB, allocator_limit, available_bytes, give_back, is_out_of_memory
from talkinghead_lab.errors import OutOfMemory
from talkinghead_lab.memory import Need, Requirements, coefficients
from talkinghead_lab.offload import on_device

Result = TypeVar("Result")


@contextmanager
def visit(network: nn.Module, device: torch.device, budget: int, need: Need | None = None) -> Iterator[None]:
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
        give_back(device)


def recovering(
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
    give_back(device)
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
