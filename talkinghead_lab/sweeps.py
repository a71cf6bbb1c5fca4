"""Many runs from one file: every combination of the axes, for every seed, portrait and recording.

    base: {…}                                  # a request
    axes:
      text_guide_scale: [1, 2, 3]              # values
      audio_guide_scale: {from: 1, to: 5, step: 1}
    seeds: [1, 2, 3]
    portraits: [sample:portrait]               # unset: the base's
    recordings: [sample:recording]

A sweep's folder holds `sweep.yaml`, a run folder for every cell under `cells/`, and the results as one table.
"""

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars
import yaml
from tqdm.auto import tqdm

from talkinghead_lab import fingerprints
from talkinghead_lab.errors import InvalidRequest, OutputError, TalkingHeadError, nearest_name
from talkinghead_lab.files import atomic_path
from talkinghead_lab.params import GenerationParams, project_folder, read_yaml
from talkinghead_lab.ray_workers import run_on_ray
from talkinghead_lab.run_folder import RECORD
from talkinghead_lab.runs import Origin
from talkinghead_lab.sweep_workers import OF_LOADING, Job, run_here

PARTS = ("base", "axes", "seeds", "portraits", "recordings")
COUNTED = ("seed", "portrait", "recording")
MOST_CELLS = 100_000


@dataclass(frozen=True)
class Cell:
    """One run of a sweep: its request, and where on the axes it lies."""

    params: GenerationParams
    place: Mapping[str, Any]

    def key(self) -> str:
        """What tells it from others: the request, the weights and the media, by content.

        Where one is missing, its absence is part of the key: the cell is tried again once it is there.
        """
        try:
            made_from = Origin.of(self.params).digest
        except TalkingHeadError as error:
            made_from = str(error)
        return fingerprints.combined([self.params.model_dump(mode="json"), made_from])[:20]


@dataclass(frozen=True)
class Sweep:
    """A base request and what varies.

    Args:
        base: fields of the request that all cells share.
        axes: values of each field that varies.
        seeds, portraits, recordings: each combination of the axes is run for every one of them, so that
            combinations can be compared in pairs. Empty: the base's own.
    """

    base: Mapping[str, Any]
    axes: Mapping[str, tuple[Any, ...]]
    seeds: tuple[int, ...] = ()
    portraits: tuple[str, ...] = ()
    recordings: tuple[str, ...] = ()

    @classmethod
    def from_yaml(cls, path: str | Path, base: Mapping[str, Any] | None = None) -> "Sweep":
        """Read a sweep's file; fields of `base` win over those that the file's base has.

        Raises:
            InvalidRequest: a part, a field or a range is not understood.
        """
        parts = read_yaml(project_folder() / path)
        return cls.from_parts(parts | {"base": {**(parts.get("base") or {}), **(base or {})}})

    def reduced(self, frames: int = 25) -> "Sweep":
        """The same question in little, to see that all works: the ends of each axis, one portrait and
        recording, at most two seeds, one second in one chunk."""
        ends = {name: values[:1] + values[1:][-1:] for name, values in self.axes.items()}
        base = {**self.base, "max_frames": frames, "chunk_frames": frames}
        return Sweep(base, ends, self.seeds[:2], self.portraits[:1], self.recordings[:1])

    @classmethod
    def from_parts(cls, parts: Mapping[str, Any]) -> "Sweep":
        """A sweep from the parts of its file; all cells' requests are checked."""
        for name in parts:
            if name not in PARTS:
                raise InvalidRequest(
                    "unknown part of a sweep", received=name, remedy=nearest_name(name, PARTS)
                )
        axes = {name: _axis(name, values) for name, values in (parts.get("axes") or {}).items()}
        listed = {name: tuple(parts.get(name) or ()) for name in PARTS[2:]}
        sweep = cls(parts.get("base") or {}, axes, **listed)
        sweep.cells()
        return sweep

    def cells(self) -> list[Cell]:
        """Every run, those of one combination together.

        Raises:
            InvalidRequest: a value is not allowed, or there are too many.
        """
        counted = {
            "seed": self.seeds or (self.base.get("seed", 42),),
            "image_path": self.portraits or (self.base.get("image_path"),),
            "audio_path": self.recordings or (self.base.get("audio_path"),),
        }
        twice = self.axes.keys() & counted.keys()
        if twice:
            raise InvalidRequest(
                "seeds, portraits and recordings are no axes",
                received=", ".join(sorted(twice)),
                remedy="List them under seeds, portraits and recordings.",
            )
        count = int(
            np.prod([len(values) for values in (*self.axes.values(), *counted.values())], dtype=float)
        )
        if not 0 < count <= MOST_CELLS:
            raise InvalidRequest("so many runs", received=count, allowed=f"1 to {MOST_CELLS}")
        return list(self._cells(counted))

    def _cells(self, counted: Mapping[str, tuple[Any, ...]]) -> Iterator[Cell]:
        for values in itertools.product(*self.axes.values()):
            point = dict(zip(self.axes, values, strict=True))
            for repeat in itertools.product(*counted.values()):
                given = dict(zip(counted, repeat, strict=True))
                fields = {name: value for name, value in given.items() if value is not None}
                params = GenerationParams(**{**self.base, **point, **fields})
                places = {name: _shown(value) for name, value in point.items()}
                yield Cell(params, places | dict(zip(COUNTED, repeat, strict=True)))

    def to_yaml(self) -> str:
        """YAML that `from_yaml` reads back."""
        parts = {"base": dict(self.base), "axes": {name: list(values) for name, values in self.axes.items()}}
        listed = {name: list(getattr(self, name)) for name in PARTS[2:] if getattr(self, name)}
        return yaml.safe_dump(json.loads(json.dumps(parts | listed)), sort_keys=False, allow_unicode=True)


def run_sweep(
    sweep: Sweep,
    folder: str | Path,
    *,
    workers: int = 0,
    retry_failed: bool = False,
    ray_address: str | None = None,
    show_progress: bool = True,
) -> polars.DataFrame:
    """Make every run that is not finished yet, and the table of all.

    Args:
        sweep: what to run.
        folder: the sweep's folder; cells that are finished there are not made again.
        workers: processes, each with networks of its own; 0: one for each GPU, or this process where there
            is none; 1: this process.
        retry_failed: run failed cells again.
        ray_address: run on this Ray cluster instead (see `ray_workers`).
        show_progress: draw a progress bar.

    Returns:
        A row for every cell, as `results` gives it; a failed one has its error there.
    """
    folder = project_folder() / folder
    jobs = {}
    for cell in sweep.cells():
        job = Job(cell.params, folder / "cells" / cell.key())
        if retry_failed:
            job.failure.unlink(missing_ok=True)
        if not (job.run_dir / RECORD).is_file() and not job.failure.is_file():
            jobs[job.run_dir] = job
    _write(folder, "sweep.yaml", sweep.to_yaml().encode())
    # Those that share their networks run in a row.
    waiting = sorted(jobs.values(), key=lambda job: str([getattr(job.params, name) for name in OF_LOADING]))
    with tqdm(total=len(waiting), unit="run", disable=not show_progress) as bar:
        if ray_address is not None and waiting:
            run_on_ray(waiting, ray_address, bar.update)
        else:
            run_here(waiting, workers, bar.update)
    table = results(sweep, folder)
    _write(folder, "results.csv", table.write_csv().encode())
    with atomic_path(folder / "results.parquet", overwrite=True) as temporary:
        table.write_parquet(temporary)
    return table


def results(sweep: Sweep, folder: str | Path) -> polars.DataFrame:
    """What is known of every cell: a row each, with a column for every axis and every measure.

    `state` is finished, failed or missing; `error` and `not_taken` say why a figure is null. `seconds` are
    those of all chunks, `seconds_per_frame` the same over the video's frames.
    """
    rows = [_row(cell, project_folder() / folder / "cells") for cell in sweep.cells()]
    return polars.DataFrame(rows, infer_schema_length=None, strict=False)


def _row(cell: Cell, cells: Path) -> dict[str, Any]:
    job = Job(cell.params, cells / cell.key())
    row = {**cell.place, "cell": job.run_dir.name, "state": "missing", "error": None}
    if job.failure.is_file():
        failure = json.loads(job.failure.read_text(encoding="utf-8"))
        return row | {"state": "failed", "error": failure["error"]}
    if not (job.run_dir / RECORD).is_file():
        return row
    record = json.loads((job.run_dir / RECORD).read_text(encoding="utf-8"))
    measures, stages = record["measures"], list(record["stages"].values())
    seconds = sum(chunk["seconds"] for chunk in record["chunks"])
    taken = {measure["name"]: measure["value"] for measure in measures}
    costs = {
        "seconds": seconds,
        "seconds_per_frame": seconds / record["result"]["frame_count"],
        **{peak: _largest(stages, peak) for peak in ("peak_host_gib", "peak_gpu_gib")},
    }
    why = [f"{measure['name']}: {measure['why_not']}" for measure in measures if measure["why_not"]]
    path = str(job.run_dir / record["result"]["video_path"])
    found = {"state": "finished", "not_taken": "; ".join(why) or None, "video_path": path}
    return row | taken | costs | found


def _largest(stages: list[dict[str, float]], name: str) -> float | None:
    return max((stage[name] for stage in stages if name in stage), default=None)


def _axis(name: str, values: Any) -> tuple[Any, ...]:
    """The values of an axis: a list, or a range with its end."""
    if isinstance(values, list) and values:
        return tuple(values)
    if isinstance(values, Mapping) and values.keys() == {"from", "to", "step"}:
        first, last, step = (values[key] for key in ("from", "to", "step"))
        if (
            all(isinstance(number, int | float) for number in (first, last, step))
            and step > 0 <= last - first
        ):
            count = int((last - first) / step + 1e-9) + 1
            whole = all(isinstance(number, int) for number in (first, step))
            return tuple(first + k * step if whole else round(first + k * step, 10) for k in range(count))
    raise InvalidRequest(
        f"the axis `{name}` is not valid",
        received=values,
        allowed="a list of values, or {from: 1, to: 5, step: 0.5} with the end included",
    )


def _shown(value: Any) -> Any:
    """A value as a table holds it."""
    return value if value is None or isinstance(value, str | int | float | bool) else json.dumps(value)


def _write(folder: Path, name: str, content: bytes) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"the sweep's folder cannot be made ({error.strerror})", received=str(folder)
        ) from None
    with atomic_path(folder / name, overwrite=True) as temporary:
        temporary.write_bytes(content)
