"""Measures time and peak memory of the stages of a run."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from talkinghead_lab.foundation.devices import GIB

PROCESS = Path("/proc/self")


class StageClock:
    """Measures seconds and peak memory of every named stage; repeated stages add up.

    `stages` maps a name to `seconds`, `peak_host_gib` (resident memory of the process, mapped weight files
    included) and, once CUDA is in use, `peak_gpu_gib` (allocated by PyTorch on the current device),
    `reserved_gpu_gib`, and `outside_gpu_gib` (what the driver counts in addition, other programs included).
    Figures that this machine cannot give are absent. `timeline` lists every visit to a stage, with its start
    in seconds since the clock was made. Stages must not overlap. `first_frame` tells when the first frames
    could be played: `seconds` since the clock was made, and `after_loading` the networks; None: not measured.

    Args:
        on_stage: called with the name of every stage that begins.
    """

    def __init__(self, on_stage: Callable[[str], None] = lambda name: None) -> None:
        self.on_stage = on_stage
        self.made = time.perf_counter()
        self.stages: dict[str, dict[str, float]] = {}
        self.timeline: list[dict[str, float | str]] = []
        self.first_frame: dict[str, float] | None = None

    def record_first_frame(self, moment: float) -> None:
        """Record when the first frames could be played, by `time.perf_counter`."""
        visits = [visit for visit in self.timeline if visit["stage"] == "load"]
        loaded = max((float(visit["started"]) + float(visit["seconds"]) for visit in visits), default=0.0)
        seconds = moment - self.made
        self.first_frame = {"seconds": seconds, "after_loading": seconds - loaded}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Measure the named stage; an exception that leaves it gets a note that names it."""
        self.on_stage(name)
        gpu = _gpu_in_use()
        if gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        host = _reset_host_peak()
        started = time.perf_counter()
        try:
            yield
        except BaseException as error:
            error.add_note(f"during {name}")
            raise
        finally:
            gpu = _gpu_in_use()
            if gpu:
                torch.cuda.synchronize()
            seconds = time.perf_counter() - started
            peaks = {"peak_host_gib": host_peak_gib()} if host else {}
            if gpu:
                peaks |= _gpu_peaks()
            stage = self.stages.setdefault(name, {"seconds": 0.0})
            stage["seconds"] += seconds
            for measure, gib in peaks.items():
                stage[measure] = max(gib, stage.get(measure, 0.0))
            self.timeline.append({"stage": name, "started": started - self.made, "seconds": seconds, **peaks})


def host_peak_gib() -> float:
    """Peak resident memory of this process since the last reset, in GiB."""
    for line in (PROCESS / "status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / GIB
    raise OSError("/proc/self/status has no VmHWM")


def _reset_host_peak() -> bool:
    """Reset the peak of resident memory (proc(5), clear_refs 5); False where the kernel has none."""
    try:
        (PROCESS / "clear_refs").write_text("5")
        host_peak_gib()
    except OSError:
        return False
    return True


def _gpu_peaks() -> dict[str, float]:
    free, total = torch.cuda.mem_get_info()
    return {
        "peak_gpu_gib": torch.cuda.max_memory_allocated() / GIB,
        "reserved_gpu_gib": torch.cuda.max_memory_reserved() / GIB,
        "outside_gpu_gib": (total - free - torch.cuda.memory_reserved()) / GIB,
    }


def _gpu_in_use() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_initialized()
