"""Peaks that nobody tells afterwards: of the device as its driver counts, of the host by kind of memory."""

import threading
import time
from pathlib import Path
from types import TracebackType

import psutil
import torch

from talkinghead_lab.bench.rows import GIB

PERIOD = 0.005  # seconds
STATUS = Path("/proc/self/status")


def process_age() -> float:
    """Seconds since this process was started."""
    return time.time() - psutil.Process().create_time()


def driver_bytes(device: torch.device) -> int:
    """Bytes of a GPU that are in use, by all programs, the driver's own included.

    By NVML (package nvidia-ml-py), which makes no CUDA context of its own; it counts GPUs without regard to
    CUDA_VISIBLE_DEVICES.
    """
    if device.type != "cuda":
        return 0
    import pynvml

    pynvml.nvmlInit()  # does nothing the second time
    return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(device.index or 0)).used)


def host_gib() -> dict[str, float]:
    """Memory of this process in GiB: `anonymous` is what no file holds, `resident` all, mapped files too."""
    sizes = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    kinds = {"anonymous": "RssAnon", "resident": "VmRSS"}
    return {kind: int(sizes[name].split()[0]) * 1024 / GIB for kind, name in kinds.items()}


class Peaks:
    """Looks at memory every few milliseconds while it is entered.

    `device` is the most that the driver counted beside what was in use when this object was made, in GiB:
    make it before CUDA is. `anonymous` and `resident` are the host's; see `host_gib`.
    """

    def __init__(self, device: torch.device):
        self.where, self.before = device, driver_bytes(device)
        self._forget()

    def _forget(self) -> None:
        self.device, self.anonymous, self.resident = 0.0, 0.0, 0.0

    def now(self) -> float:
        """GiB of the device that this process and its libraries take."""
        return (driver_bytes(self.where) - self.before) / GIB

    def look(self) -> None:
        """Take the present into the peaks."""
        host = host_gib()
        self.device = max(self.device, self.now())
        self.anonymous = max(self.anonymous, host["anonymous"])
        self.resident = max(self.resident, host["resident"])

    def __enter__(self) -> "Peaks":
        self._forget()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        self.look()

    def _watch(self) -> None:
        while not self._done.wait(PERIOD):
            self.look()

    def to_json(self) -> dict[str, float]:
        """The peaks in GiB."""
        return {
            "driver_gib": self.device,
            "anonymous_host_gib": self.anonymous,
            "resident_host_gib": self.resident,
        }
