"""Page-locked host memory."""

import logging
import mmap
import weakref
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)


class HostBuffer:
    """Bytes in host memory, page-locked once `lock` has run: the GPU reads them at the full speed of the bus.

    Not `pin_memory`, whose allocator rounds up to a power of two; and filled before it is locked, so that all
    threads take part in touching the pages.
    """

    def __init__(self, size: int):
        pages = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with suppress(AttributeError, OSError):  # a kernel without them locks small pages, more slowly
            pages.madvise(mmap.MADV_HUGEPAGE)
        self.bytes = torch.frombuffer(pages, dtype=torch.uint8)

    def lock(self, device: torch.device) -> None:
        """Lock the pages for this device; where the system refuses, copies are slower and it is logged."""
        if device.type != "cuda":
            return
        runtime: Any = torch.cuda.cudart()
        with torch.cuda.device(device):
            status = runtime.cudaHostRegister(self.bytes.data_ptr(), len(self.bytes), 0)
        if int(status):
            logger.warning("Host memory cannot be page-locked (CUDA error %s): offloading is slower.", status)
            return
        # The bytes are an argument so that they outlive the lock.
        weakref.finalize(self, _unlock, runtime, self.bytes)


def _unlock(runtime: Any, locked: Tensor) -> None:
    runtime.cudaHostUnregister(locked.data_ptr())
