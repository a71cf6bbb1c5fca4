"""Devices: which one a request means, what it computes in, and its memory when it runs out."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch

from talkinghead_lab.errors import InvalidRequest

GIB = 2**30
# What PyTorch's allocators and the libraries below it say, on a GPU and on a CPU.
NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")


def pick_device(name: str) -> torch.device:
    """Choose the device that a request names; `auto` is the first GPU, or the CPU.

    A process that torchrun started as one of several uses the GPU of its rank.

    Raises:
        InvalidRequest: there is no such GPU.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if count else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    if device.type == "cuda" and (device.index or 0) >= count:
        raise InvalidRequest(
            "no such GPU",
            received=name,
            allowed=f"{count} GPUs are visible",
            remedy="Use device auto or cpu.",
        )
    # The allocator's settings require an index.
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def compute_type(precision: str, device: torch.device) -> torch.dtype:
    """The type that the transformer computes in: as asked, else bf16 on a GPU and fp32 on a CPU."""
    if precision in ("fp32", "bf16"):
        return torch.float32 if precision == "fp32" else torch.bfloat16
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def decode_type(compute: torch.dtype, device: torch.device) -> torch.dtype:
    """The type that frames are decoded in, for a transformer that computes in `compute`.

    On a GPU fp16, unless that is fp32: it rounds as the GPU's products of fp32 do (TF32), in half the memory;
    bf16 would cost some pixels three of 255 steps. Wan2GP decodes so by default.
    """
    return torch.float16 if device.type == "cuda" and compute != torch.float32 else torch.float32


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: PyTorch has a class for GPUs, on a CPU it raises a plain RuntimeError."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)


def empty_cache(device: torch.device) -> None:
    """Return memory that nothing uses any more to the device, for other programs and stages."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def available_bytes(device: torch.device) -> int:
    """What this process can have of a device: what is free, and on a GPU what PyTorch holds already."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    return psutil.virtual_memory().available


@contextmanager
def allocator_limit(device: torch.device, limit: int | None) -> Iterator[None]:
    """Let PyTorch keep at most `limit` bytes of a GPU; there it gives cached memory back, then fails."""
    if limit is None or device.type != "cuda":
        yield
        return
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
