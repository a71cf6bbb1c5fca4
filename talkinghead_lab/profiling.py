"""What a run costs: seconds and peak memory of every stage, measured, and memory planned ahead."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from talkinghead_lab.devices import GIB, available_bytes, pick_device
from talkinghead_lab.memory import planned
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.pipeline import read_inputs

PROCESS = Path("/proc/self")


class StageClock:
    """Seconds and peak memory of every named stage; a stage that comes again adds up.

    `stages` maps a name to `seconds`, `peak_host_gib` (resident memory of the whole process, mapped weight
    files included, as Linux counts it) and, once CUDA is in use, `peak_gpu_gib` (allocated by PyTorch on the
    current device), `reserved_gpu_gib`, and `outside_gpu_gib`, what the driver counts besides, other programs
    included. What this machine cannot tell is absent. `timeline` holds every visit to a stage by itself, with
    the seconds from the making of the clock to its start. Stages must not overlap.
    """

    def __init__(self) -> None:
        self.made = time.perf_counter()
        self.stages: dict[str, dict[str, float]] = {}
        self.timeline: list[dict[str, float | str]] = []

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


def _gpu_peaks() -> dict[str, float]:
    free, total = torch.cuda.mem_get_info()
    return {
        "peak_gpu_gib": torch.cuda.max_memory_allocated() / GIB,
        "reserved_gpu_gib": torch.cuda.max_memory_reserved() / GIB,
        "outside_gpu_gib": (total - free - torch.cuda.memory_reserved()) / GIB,
    }


def _gpu_in_use() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_initialized()


@dataclass(frozen=True)
class Plan:
    """The memory that a request will need, in GiB.

    Args:
        device: what it is to run on.
        weights_gib: of each network, as loaded.
        work_gib: what the stage that takes most takes besides, libraries and driver included.
        needed_gib: on the device: with everything resident, or within `vram_budget_gib` at the least.
        smallest_budget_gib: the smallest `vram_budget_gib` that runs.
        stages_gib: what each stage needs at the least, when networks visit in turn and blocks stream.
        free_gib: what this process can have of the device now.
        measured_on: the machine whose profiles the model was fitted to; None: estimates, not calibrated.
        fits: None where only estimates say that it does.
    """

    device: str
    weights_gib: dict[str, float]
    work_gib: float
    needed_gib: float
    smallest_budget_gib: float
    stages_gib: dict[str, float]
    free_gib: float
    measured_on: str | None
    fits: bool | None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def __str__(self) -> str:
        verdict = {True: "fits", False: "does not fit", None: "may fit: not calibrated for this device"}
        rows = {f"weights, {name}": size for name, size in self.weights_gib.items()}
        rows |= {"work": self.work_gib, "needed": self.needed_gib}
        rows |= {
            "smallest vram_budget_gib": self.smallest_budget_gib,
            f"free on {self.device}": self.free_gib,
        }
        source = f"fitted on {self.measured_on}" if self.measured_on else "estimates, not calibrated"
        return "\n".join(
            [verdict[self.fits], *(f"{row}: {gib:.2f} GiB" for row, gib in rows.items()), source]
        )


def plan(params: GenerationParams) -> Plan:
    """Predict the memory of a request before it runs; no weight is read.

    Raises:
        InvalidRequest: there is no such GPU.
        MediaError, CheckpointError: what the request names is missing or cannot be used.
    """
    device, inputs = pick_device(params.device), read_inputs(params)
    needs = planned(params, inputs.frame_size, inputs.seconds)
    # A budget spares a GPU its memory; on a CPU the streamed copies are in the same memory.
    offloaded = params.vram_budget_gib is not None and device.type == "cuda"
    needed, free = needs.smallest if offloaded else needs.resident, available_bytes(device)
    allowed = min(free, params.vram_budget_gib * GIB) if offloaded and params.vram_budget_gib else free
    return Plan(
        device=str(device),
        weights_gib={name: size / GIB for name, size in needs.weights.items()},
        work_gib=(needs.outside + needs.work) / GIB,
        needed_gib=needed / GIB,
        smallest_budget_gib=needs.smallest / GIB,
        stages_gib={stage: need.smallest / GIB for stage, need in needs.needs.items()},
        free_gib=free / GIB,
        measured_on=needs.measured_on,
        fits=False if needed > allowed else True if needs.measured_on else None,
    )
