"""What a run costs: seconds and peak memory of every stage."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

GIB = 2**30
PROCESS = Path("/proc/self")


class StageClock:
    """Seconds and peak memory of every named stage; a stage that comes again adds up.

    `stages` maps a name to `seconds`, `peak_host_gib` (resident memory of the whole process, mapped weight
    files included, as Linux counts it) and, once CUDA is in use, `peak_gpu_gib` (allocated by PyTorch on the
    current device) and `reserved_gpu_gib`. What this machine cannot tell is absent. Stages must not overlap.
    """

    def __init__(self) -> None:
        self.stages: dict[str, dict[str, float]] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        gpu = _gpu_in_use()
        if gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        host = _forget_host_peak()
        started = time.perf_counter()
        try:
            yield
        finally:
            gpu = _gpu_in_use()
            if gpu:
                torch.cuda.synchronize()
            stage = self.stages.setdefault(name, {"seconds": 0.0})
            stage["seconds"] += time.perf_counter() - started
            peaks = {"peak_host_gib": host_peak_gib()} if host else {}
            if gpu:
                peaks["peak_gpu_gib"] = torch.cuda.max_memory_allocated() / GIB
                peaks["reserved_gpu_gib"] = torch.cuda.max_memory_reserved() / GIB
            for measure, gib in peaks.items():
                stage[measure] = max(gib, stage.get(measure, 0.0))


def host_peak_gib() -> float:
    """The largest resident memory of this process since its peak was last forgotten, in GiB."""
    for line in (PROCESS / "status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / GIB
    raise OSError("/proc/self/status has no VmHWM")


def _forget_host_peak() -> bool:
    """Start a new peak of resident memory (proc(5), clear_refs 5); False where the kernel tells none."""
    try:
        (PROCESS / "clear_refs").write_text("5")
        host_peak_gib()
    except OSError:
        return False
    return True


def _gpu_in_use() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_initialized()
