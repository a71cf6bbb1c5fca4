"""Devices: choosing one, its compute types and its memory."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch

from talkinghead_lab.errors import InvalidRequest

GIB = 2**30
# For tests on a newer GPU: the compute capability to believe in, such as 8.9.
CAPABILITY_VARIABLE = "TALKINGHEAD_CAPABILITY"
# Messages of PyTorch's allocators and of the libraries below, on GPUs and CPUs.
OUT_OF_MEMORY_MESSAGES = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")


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


def capability(device: torch.device) -> tuple[int, int]:
    """Compute capability of a GPU, or what `CAPABILITY_VARIABLE` says; (0, 0) of a CPU."""
    if device.type != "cuda":
        return 0, 0
    if believed := os.environ.get(CAPABILITY_VARIABLE):
        if not re.fullmatch(r"[0-9]+\.[0-9]", believed):
            raise InvalidRequest(
                f"{CAPABILITY_VARIABLE} is no compute capability", received=believed, allowed="such as 8.9"
            )
        major, minor = believed.split(".")
        return int(major), int(minor)
    return torch.cuda.get_device_capability(device)


def compute_type(precision: str, device: torch.device) -> torch.dtype:
    """The type the transformer computes in: as requested, otherwise bf16 on a GPU and fp32 on a CPU."""
    if precision in ("fp32", "bf16"):
        return torch.float32 if precision == "fp32" else torch.bfloat16
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def decode_type(compute: torch.dtype, device: torch.device) -> torch.dtype:
    """The type the VAE decodes frames in, for a transformer that computes in `compute`.

    On a GPU this is fp16 unless `compute` is fp32. fp16 has the precision of TF32 matmuls in half the memory;
    with bf16 some pixels differ by 3 of 255 levels. Wan2GP defaults to fp16, too.
    """
    return torch.float16 if device.type == "cuda" and compute != torch.float32 else torch.float32


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed; on a CPU, PyTorch raises a plain RuntimeError for that."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(part in str(error) for part in OUT_OF_MEMORY_MESSAGES)


def empty_cache(device: torch.device) -> None:
    """Return cached, unused memory to the device, for other programs and stages."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def available_bytes(device: torch.device) -> int:
    """Bytes this process can use on a device: free memory, and on a GPU what PyTorch already reserves."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    return psutil.virtual_memory().available


@contextmanager
def allocator_limit(device: torch.device, limit: int | None) -> Iterator[None]:
    """Limit PyTorch to `limit` bytes of a GPU; at the limit it frees its cache, then fails."""
    if limit is None or device.type != "cuda":
        yield
        return
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
