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
    """Bytes in host memory; once `lock` has page-locked them, the GPU reads them at full bus speed.

    Replaces `pin_memory`, whose allocator rounds sizes up to a power of two. Fill the buffer before locking
    it, so that all threads share the page faults.
    """

    def __init__(self, size: int) -> None:
        pages = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with suppress(AttributeError, OSError):  # without huge pages, locking is slower
            pages.madvise(mmap.MADV_HUGEPAGE)
        self.bytes = torch.frombuffer(pages, dtype=torch.uint8)

    def lock(self, device: torch.device) -> None:
        """Page-lock the buffer for a device; if the system refuses, log it: copies are slower then."""
        if device.type != "cuda":
            return
        runtime: Any = torch.cuda.cudart()
        with torch.cuda.device(device):
            status = runtime.cudaHostRegister(self.bytes.data_ptr(), len(self.bytes), 0)
        if int(status):
            logger.warning("Host memory cannot be page-locked (CUDA error %s): offloading is slower.", status)
            return
        # The finalizer holds the bytes, so they outlive the lock.
        weakref.finalize(self, _unlock, runtime, self.bytes)


def _unlock(runtime: Any, locked: Tensor) -> None:
    runtime.cudaHostUnregister(locked.data_ptr())
