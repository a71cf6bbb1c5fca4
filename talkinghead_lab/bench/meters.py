"""Peak memory that must be sampled while it happens: device by driver count, host by kind of memory."""

import threading
import time
from pathlib import Path
from types import TracebackType

import psutil
import torch

from talkinghead_lab.bench.rows import GIB

SAMPLE_SECONDS = 0.005
STATUS = Path("/proc/self/status")


def process_age() -> float:
    """Seconds since this process started."""
    return time.time() - psutil.Process().create_time()


def driver_bytes(device: torch.device) -> int:
    """Bytes in use on a GPU by all programs and the driver; 0 for a CPU.

    Uses NVML (package nvidia-ml-py), which creates no CUDA context. NVML ignores CUDA_VISIBLE_DEVICES.
    """
    if device.type != "cuda":
        return 0
    import pynvml

    pynvml.nvmlInit()  # does nothing the second time
    return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(device.index or 0)).used)


def host_gib() -> dict[str, float]:
    """Memory of this process in GiB: `anonymous` excludes mapped files, `resident` includes them."""
    sizes = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    kinds = {"anonymous": "RssAnon", "resident": "VmRSS"}
    return {kind: int(sizes[name].split()[0]) * 1024 / GIB for kind, name in kinds.items()}


class Peaks:
    """Context manager that samples memory every few milliseconds and keeps the peaks, in GiB.

    `device` is the driver's count above what was in use when the object was created, so create it before
    CUDA initialises. `anonymous` and `resident` are host memory; see `host_gib`.
    """

    def __init__(self, device: torch.device) -> None:
        self.gpu, self.before = device, driver_bytes(device)
        self._reset()

    def _reset(self) -> None:
        self.device, self.anonymous, self.resident = 0.0, 0.0, 0.0

    def now(self) -> float:
        """GiB of device memory that this process and its libraries use now."""
        return (driver_bytes(self.gpu) - self.before) / GIB

    def sample(self) -> None:
        """Update the peaks from the current values."""
        host = host_gib()
        self.device = max(self.device, self.now())
        self.anonymous = max(self.anonymous, host["anonymous"])
        self.resident = max(self.resident, host["resident"])

    def __enter__(self) -> "Peaks":
        self._reset()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        self.sample()

    def _watch(self) -> None:
        while not self._done.wait(SAMPLE_SECONDS):
            self.sample()

    def to_json(self) -> dict[str, float]:
        """The peaks in GiB."""
        return {
            "driver_gib": self.device,
            "anonymous_host_gib": self.anonymous,
            "resident_host_gib": self.resident,
        }
