"""Profiles of whole runs: where time and memory went, and the memory model that is fitted to them.

A run is profiled in a process of its own, whose memory nothing else has touched. On a machine without a GPU
the memory is the host's.
"""

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars

from talkinghead_lab.errors import InvalidRequest
from talkinghead_lab.foundation import environment
from talkinghead_lab.foundation.devices import GIB, pick_device
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.pipeline.plan import planned
from talkinghead_lab.pipeline.request import read_inputs, resolve
from talkinghead_lab.runs.folder import RECORD, read_record

SCHEMA = {
    "run": polars.Int64, "setting": polars.String, "device": polars.String, "machine": polars.String,
    "stage": polars.String, "started": polars.Float64, "seconds": polars.Float64,
    "peak_host_gib": polars.Float64,
    "peak_gpu_gib": polars.Float64, "reserved_gpu_gib": polars.Float64, "outside_gpu_gib": polars.Float64,
    "held_gib": polars.Float64, "extra_gib": polars.Float64, "unit_gib": polars.Float64,
    "error": polars.String,
}  # fmt: skip


def combinations(axes: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every combination of the values of some parameters."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def profile(
    base: GenerationParams, settings: Sequence[Mapping[str, Any]], folder: str | Path
) -> polars.DataFrame:
    """Make a run for each setting and tell what every visit to a stage took.

    Args:
        base: the request.
        settings: what to change in it, one mapping a run.
        folder: gets a folder for each run, and the table as `profile.csv`. Finished runs are not made again.

    Returns:
        A row for each visit: `run`, `setting`, `device`, `machine`, `stage`, `started` and `seconds`; peaks
        in GiB; and what the memory model needs: `held_gib` (weights there), `extra_gib`, `unit_gib` (largest
        activation). A run that fails is one row with its `error`.
    """
    folder = Path(folder)
    rows: list[dict[str, Any]] = []
    for number, setting in enumerate(settings):
        rows += _profile_one(base.replace(**setting), setting, number, folder / f"{number:02}")
    table = polars.DataFrame(rows, schema=SCHEMA)
    table.write_csv(folder / "profile.csv")
    return table


def _profile_one(
    params: GenerationParams, setting: Mapping[str, Any], number: int, run_dir: Path
) -> Iterator[dict[str, Any]]:
    device = pick_device(params.device).type
    common = {"run": number, "setting": label(setting), "device": device, "machine": this_machine()}
    if not (run_dir / RECORD).is_file():
        run_dir.parent.mkdir(parents=True, exist_ok=True)
        request = run_dir.with_suffix(".yaml")
        request.write_text(params.to_yaml(), encoding="utf-8")
        command = [sys.executable, "-m", "talkinghead_lab", "generate", str(request), "--run", str(run_dir)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            yield common | {"error": done.stderr.strip().splitlines()[-1]}
            return
    plan = planned(resolve(params, read_inputs(params)))
    # On a CPU the streamed copies are in the same memory as what they are copied from.
    gib = params.vram_budget_gib if device == "cuda" else None
    budget = None if gib is None else round(gib * GIB)
    for visit in read_record(run_dir)["timeline"]:
        yield common | visit | plan.known(visit["stage"], budget)


def read(file: str | Path) -> polars.DataFrame:
    """The table of a profile that was made elsewhere: a JSON list of rows, or what `profile` wrote.

    Raises:
        InvalidRequest: there is no such file, or it is no profile.
    """
    file = Path(file)
    try:
        if file.suffix == ".csv":
            return polars.read_csv(file, schema=SCHEMA)
        rows = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(rows, list):
            raise ValueError("not a list of rows")
        return polars.DataFrame(rows, schema=SCHEMA)
    except (OSError, ValueError, polars.exceptions.PolarsError) as error:
        raise InvalidRequest(f"no profile can be read ({error})", received=str(file)) from None


def this_machine() -> str:
    """What the memory of a profile depends on: the GPU, or without one the processor."""
    described = environment.describe()
    return str(described.get("gpu") or described["cpu"] or "this machine")


def label(setting: Mapping[str, Any]) -> str:
    """A setting in one line, without what is unset."""
    told = [f"{name.replace('_', ' ')} {value}" for name, value in setting.items() if value is not None]
    return ", ".join(told) or "as it is"


def peak_column(table: polars.DataFrame) -> str:
    """The column of the memory that the model is about: the GPU's, or without one the host's."""
    return "peak_gpu_gib" if "cuda" in table["device"] else "peak_host_gib"


def fit(table: polars.DataFrame) -> dict[str, Any]:
    """Fit the memory model to profiles: an entry for `memory_coefficients.json`.

    For each stage, least squares of what its peak has beyond weights and known extras, against its largest
    activation; a stage that was only seen at one size gets a constant. On a CPU the constant of the leanest
    stage is the libraries'; on a GPU what the driver counts beside PyTorch's tensors lies outside of all.

    Raises:
        InvalidRequest: the table has no finished run.
    """
    column, stages = peak_column(table), {}
    for (stage,), visits in table.drop_nulls(["unit_gib", column]).group_by("stage", maintain_order=True):
        beyond = visits[column] - visits["held_gib"] - visits["extra_gib"]
        stages[str(stage)] = _line(visits["unit_gib"].to_numpy(), beyond.to_numpy())
    if not stages:
        raise InvalidRequest("no run of the profile is finished", received=table["error"].to_list()[:1])
    outside = table["outside_gpu_gib"].max()
    if column == "peak_host_gib":
        outside = min(base for base, _ in stages.values())
        stages = {stage: (base - outside, slope) for stage, (base, slope) in stages.items()}
    return {
        "measured_on": table["machine"][0],
        "outside_gib": outside,
        "stages": {
            stage: {"base_gib": base, "activations": slope} for stage, (base, slope) in stages.items()
        },
    }


def _line(sizes: Any, values: Any) -> tuple[float, float]:
    """(constant, slope ≥ 0) that fit best."""
    if np.ptp(sizes) < 1e-9:
        return float(values.max()), 0.0
    slope, constant = np.polyfit(sizes, values, 1)
    return (float(constant), float(slope)) if slope > 0 else (float(values.max()), 0.0)


def foreseen(table: polars.DataFrame, fitted: Mapping[str, Any]) -> polars.DataFrame:
    """Predicted beside measured for each run's peak: `setting`, `measured_gib`, `predicted_gib`, `error`."""
    column = peak_column(table)
    outside = fitted["outside_gib"] if column == "peak_host_gib" else 0.0
    base = {stage: float(model["base_gib"]) for stage, model in fitted["stages"].items()}
    slope = {stage: float(model["activations"]) for stage, model in fitted["stages"].items()}
    stage = polars.col("stage")
    predicted = (
        polars.col("held_gib")
        + polars.col("extra_gib")
        + stage.replace_strict(base, default=0.0)
        + stage.replace_strict(slope, default=0.0) * polars.col("unit_gib")
        + outside
    )
    peaks = (
        table.drop_nulls(["unit_gib"])
        .group_by("run", "setting")
        .agg(polars.col(column).max().alias("measured_gib"), predicted.max().alias("predicted_gib"))
    )
    error = polars.col("predicted_gib") / polars.col("measured_gib") - 1
    return peaks.with_columns(error.alias("error")).sort("run").drop("run")


def left_out(table: polars.DataFrame) -> polars.DataFrame:
    """`foreseen` for each run by a model that was fitted to the others."""
    runs = table.drop_nulls(["unit_gib"])["run"].unique(maintain_order=True)
    others = [
        (table.filter(polars.col("run") != run), table.filter(polars.col("run") == run)) for run in runs
    ]
    return polars.concat([foreseen(one, fit(rest)) for rest, one in others])
