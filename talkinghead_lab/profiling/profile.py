"""Profiles of complete runs: time and memory per stage, and the memory model fitted to them.

Each run has a process of its own, whose memory nothing else has used. Without a GPU, host memory is profiled.
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
from numpy.typing import NDArray

from talkinghead_lab.errors import InvalidRequest
from talkinghead_lab.foundation import environment
from talkinghead_lab.foundation.devices import pick_device
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.pipeline.plan import planned
from talkinghead_lab.pipeline.request import resolve
from talkinghead_lab.pipeline.request_media import read_inputs
from talkinghead_lab.runs.folder import RECORD, read_record

SCHEMA = {
    "run": polars.Int64, "setting": polars.String, "device": polars.String, "machine": polars.String,
    "stage": polars.String, "started": polars.Float64, "seconds": polars.Float64,
    "peak_host_gib": polars.Float64,
    "peak_gpu_gib": polars.Float64, "reserved_gpu_gib": polars.Float64, "outside_gpu_gib": polars.Float64,
    "held_gib": polars.Float64, "extra_gib": polars.Float64, "unit_gib": polars.Float64,
    "error": polars.String, "traits": polars.String,
}  # fmt: skip


def combinations(axes: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every combination of the parameter values, as one mapping per run."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def profile(
    base: GenerationParams, settings: Sequence[Mapping[str, Any]], folder: str | Path
) -> polars.DataFrame:
    """Run the request once per setting and measure time and peak memory of every stage.

    Args:
        base: the request.
        settings: fields to change in the request, one mapping per run.
        folder: receives a folder per run, and the table as `profile.csv`. Finished runs are not repeated.

    Returns:
        A row each time a stage ran: `run`, `setting`, `device`, `machine`, `stage`, `started` and `seconds`;
        peaks in GiB; and the inputs of the memory model: `held_gib` (weights on the device), `extra_gib`,
        `unit_gib` (largest activation). A failed run is one row with its `error`.
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
    resolved = resolve(params, read_inputs(params))
    plan = planned(resolved)
    # On a CPU, streamed blocks are in the same memory as their source, so a budget has no effect.
    budget = resolved.budget if device == "cuda" else None
    for stage in read_record(run_dir)["timeline"]:
        yield common | stage | plan.known(stage["stage"], budget)


def read(file: str | Path) -> polars.DataFrame:
    """Read a profile made elsewhere: a JSON list of rows, or the CSV file that `profile` wrote.

    Raises:
        InvalidRequest: the file does not exist or is not a profile.
    """
    file = Path(file)
    try:
        if file.suffix == ".csv":
            table = polars.read_csv(file, schema_overrides=SCHEMA)  # one of an earlier version has no traits
            lacking = {name: polars.lit(None, kind) for name, kind in SCHEMA.items() if name not in table}
            return table.with_columns(**lacking).select(*SCHEMA)
        rows = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(rows, list):
            raise ValueError("not a list of rows")
        return polars.DataFrame(rows, schema=SCHEMA)
    except (OSError, ValueError, polars.exceptions.PolarsError) as error:
        raise InvalidRequest(f"the profile cannot be read ({error})", received=str(file)) from None


def this_machine() -> str:
    """The GPU, or without one the processor: peaks are comparable only on the same one."""
    described = environment.describe()
    return str(described.get("gpu") or described["cpu"] or "this machine")


def label(setting: Mapping[str, Any]) -> str:
    """A setting in one line, without the fields that are None."""
    words = [f"{name.replace('_', ' ')} {value}" for name, value in setting.items() if value is not None]
    return ", ".join(words) or "as it is"


def peak_column(table: polars.DataFrame) -> str:
    """The column of peaks that the model predicts: GPU memory, or host memory if there is no GPU."""
    return "peak_gpu_gib" if "cuda" in table["device"] else "peak_host_gib"


def fit(table: polars.DataFrame) -> dict[str, Any]:
    """Fit the memory model to profiles and return an entry for `memory_coefficients.json`.

    For each stage, least squares predict the peak beyond weights and known extras: a constant, and multiples
    of the largest activation, one for all runs and one for each of their traits. A stage profiled at one size
    only gets a constant. The memory outside of all stages is, on a CPU, the smallest constant of a stage (the
    libraries); on a GPU, what the driver reports beyond PyTorch's tensors.

    Raises:
        InvalidRequest: the table has no finished run.
    """
    column = peak_column(table)
    stages: dict[str, dict[str, Any]] = {}
    for (stage,), rows in table.drop_nulls(["unit_gib", column]).group_by("stage", maintain_order=True):
        rest = (rows[column] - rows["held_gib"] - rows["extra_gib"]).to_numpy()
        base, slope, more = _fit_stage(rows["unit_gib"].to_numpy(), rest, _traits_of(rows))
        stages[str(stage)] = {"base_gib": base, "activations": slope} | ({"traits": more} if more else {})
    if not stages:
        raise InvalidRequest("no run of the profile is finished", received=table["error"].to_list()[:1])
    outside = table["outside_gpu_gib"].max()
    if column == "peak_host_gib":
        outside = min(model["base_gib"] for model in stages.values())
        stages = {stage: model | {"base_gib": model["base_gib"] - outside} for stage, model in stages.items()}
    return {"measured_on": table["machine"][0], "outside_gib": outside, "stages": stages}


def _traits_of(rows: polars.DataFrame) -> list[set[str]]:
    return [set(filter(None, (words or "").split(", "))) for words in rows["traits"]]


def _fit_stage(
    sizes: NDArray[np.float64], values: NDArray[np.float64], traits: list[set[str]]
) -> tuple[float, float, dict[str, float]]:
    """Constant, slope, and what each trait adds to the slope."""
    names = sorted(set().union(*traits))
    if np.ptp(sizes) < 1e-9 and not names:
        return float(values.max()), 0.0, {}
    columns = [np.ones_like(sizes), sizes, *(sizes * [name in each for each in traits] for name in names)]
    (base, slope, *more), *_ = np.linalg.lstsq(np.stack(columns, axis=1), values)
    if slope <= 0:
        return float(values.max()), 0.0, {}
    return float(base), float(slope), dict(zip(names, map(float, more), strict=True))


def predicted_peaks(table: polars.DataFrame, fitted: Mapping[str, Any]) -> polars.DataFrame:
    """Predicted and measured peak per run: `setting`, `measured_gib`, `predicted_gib`, `error_percent`."""
    column = peak_column(table)
    outside = fitted["outside_gib"] if column == "peak_host_gib" else 0.0
    multiples = [_multiples(fitted["stages"].get(row["stage"]), row["traits"]) for row in table.to_dicts()]
    known = table.with_columns(
        polars.Series("base", [base for base, _ in multiples], polars.Float64),
        polars.Series("slope", [slope for _, slope in multiples], polars.Float64),
    )
    predicted = (
        polars.col("held_gib")
        + polars.col("extra_gib")
        + polars.col("base")
        + polars.col("slope") * polars.col("unit_gib")
        + outside
    )
    peaks = (
        known.drop_nulls(["unit_gib"])
        .group_by("run", "setting")
        .agg(polars.col(column).max().alias("measured_gib"), predicted.max().alias("predicted_gib"))
    )
    error = 100 * (polars.col("predicted_gib") / polars.col("measured_gib") - 1)
    return peaks.with_columns(error.alias("error_percent")).sort("run").drop("run")


def _multiples(model: Mapping[str, Any] | None, traits: str | None) -> tuple[float, float]:
    """Constant in GiB, and how many of its largest activations a stage holds; zeros without a model."""
    if model is None:
        return 0.0, 0.0
    more = [model.get("traits", {}).get(trait, 0.0) for trait in (traits or "").split(", ")]
    return float(model["base_gib"]), float(model["activations"] + sum(more))


def cross_validated_peaks(table: polars.DataFrame) -> polars.DataFrame:
    """`predicted_peaks` of each run by a model fitted to the other runs (leave-one-out)."""
    runs = table.drop_nulls(["unit_gib"])["run"].unique(maintain_order=True)
    splits = [
        (table.filter(polars.col("run") != run), table.filter(polars.col("run") == run)) for run in runs
    ]
    return polars.concat([predicted_peaks(one, fit(others)) for others, one in splits])
