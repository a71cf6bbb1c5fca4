"""Complete jobs within device-memory budgets: peak memory, and the cost of streaming per step."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from talkinghead_lab.bench.rows import Results, Row
from talkinghead_lab.bench.sizes import Size
from talkinghead_lab.bench.whole_job import request_of, run_in_process
from talkinghead_lab.foundation.files import atomic_path

BUDGETS = (8, 12, 16, 24)  # GiB
# Larger frame sizes to measure.
LARGER = {"released": ("1024x576", "1280x720"), "tiny": ("96x64",)}
# At the larger sizes a few blocks stand for all: every block copies and computes the same amount, and the
# smallest budget holds two.
LARGER_BLOCKS = 8
LOADED = "offload: process start to all networks in host memory"


def measure_offload(size: Size, device: torch.device, results: Results, folder: Path) -> None:
    """Measure encoders, sampling and decoding of one chunk within every budget.

    All runs share one process, and each frame size starts with all blocks resident, so that memory which
    libraries allocate once is included for every budget.
    """
    own = f"{size.grid.width}x{size.grid.height}"
    larger = LARGER["released" if size.grid.width > 500 else "tiny"]
    runs: list[dict[str, Any]]
    runs = [{"frame_size": own, "vram_budget_gib": budget} for budget in ("all", *BUDGETS)]
    if device.type == "cuda":  # a CPU has no memory limit to exceed
        runs.insert(1, {"frame_size": larger[-1], "vram_budget_gib": BUDGETS[0]})
    for frame_size in larger:
        few = {"frame_size": frame_size, "blocks": min(LARGER_BLOCKS, size.dit.num_layers)}
        runs += [few | {"vram_budget_gib": budget} for budget in ("all", "smallest")]
    request = request_of(size, device, folder) | {"vram_budget_gib": BUDGETS[0]}
    jobs, resident = run_in_process(request, runs), dict[str, float]()
    loaded = next(jobs)
    results.add(Row(LOADED, loaded["begun"]["loaded"], conditions=_peaks(loaded)))
    for job in jobs:
        row = results.add(_row(job, resident))
        add_profile(results, device, row.name, job)


def _row(job: Mapping[str, Any], resident: dict[str, float]) -> Row:
    """Row of seconds per step; `resident` collects the seconds with all blocks resident, by frame size."""
    frame_size, budget = job["run"]["frame_size"], f"{job['budget_gib']:.1f} GiB"
    if "blocks" in job["run"]:
        frame_size += f", {job['run']['blocks']} blocks"
    conditions = _peaks(job) | {"smallest_gib": job["smallest_gib"], "job": job["seconds"]}
    if job["error"]:
        name = f"offload: {frame_size}, {budget}, refused"
        return Row(name, job["seconds"], conditions=conditions | {"error": job["error"]} | _left(job))
    step = min(job["steps"])
    if job["run"].get("vram_budget_gib") == "all":
        budget, resident[frame_size] = "all blocks stay", step
    if frame_size in resident:
        conditions["slow_down"] = step / resident[frame_size]
    conditions["stages"] = stages(job)
    return Row(f"offload: {frame_size}, {budget}", step, peak_gib=job["peak_gpu_gib"], conditions=conditions)


def _left(job: Mapping[str, Any]) -> dict[str, float]:
    """Device memory still in use after an error, CUDA context and libraries included."""
    return {"left_gib": job["left_gib"], "left_by_pytorch_gib": job["left_by_pytorch_gib"]}


def stages(job: Mapping[str, Any]) -> dict[str, float]:
    """Total seconds of each stage."""
    seconds: dict[str, float] = {}
    for entry in job["timeline"]:
        seconds[entry["stage"]] = seconds.get(entry["stage"], 0.0) + entry["seconds"]
    return seconds


def _peaks(report: Mapping[str, Any]) -> dict[str, float]:
    return {key: report[key] for key in ("driver_gib", "anonymous_host_gib", "resident_host_gib")}


def measure_small_host(size: Size, device: torch.device, results: Results, folder: Path) -> None:
    """Measure fp8 weights within the smallest budget, loading included, with one and two speakers."""
    run = {"frame_size": f"{size.grid.width}x{size.grid.height}"}
    request = request_of(size, device, folder) | {"precision": "fp8", "vram_budget_gib": BUDGETS[0]}
    for speakers, label in (({}, "fp8"), ({"second_audio_path": "none"}, "fp8, two speakers")):
        loaded, job = run_in_process(request | speakers, [run])
        row = _row(job, {})
        larger = {key: max(peak, row.conditions[key]) for key, peak in _peaks(loaded).items()}
        conditions = row.conditions | larger | {"loaded": loaded["begun"]["loaded"]}
        row = results.add(replace(row, name=f"{row.name}, {label}", conditions=conditions))
        add_profile(results, device, row.name, job)


def add_profile(results: Results, device: torch.device, name: str, job: Mapping[str, Any]) -> None:
    """Append every stage of a job to `profile.json` next to the results, for the memory-profile notebook.

    The setting is the part of `name` after the colon.
    """
    if results.path is None:
        return
    path = results.path.with_name("profile.json")
    rows = json.loads(path.read_text()) if path.exists() else []
    common = {
        **{"run": 1 + max((row["run"] for row in rows), default=-1), "device": device.type},
        **{"machine": results.machine["device"], "setting": name.partition(": ")[2]},
    }
    entries = [{"error": job["error"]}] if job["error"] else job["timeline"]
    with atomic_path(path, overwrite=True) as unfinished:
        unfinished.write_text(json.dumps(rows + [common | entry for entry in entries], indent=0) + "\n")
