"""Many runs from one file: every combination of the axes, for every seed, portrait and recording.

    base: {…}                                  # a request
    axes:
      diffusion_steps: [4, 8]                  # values
      sample_shift: {from: 1, to: 7, step: 2}
      model:                                   # a name of your own: each of its values sets several fields
        guided: {}
        fast LoRA: {loras: [{path: sample:fast-lora}], text_guide_scale: 1, audio_guide_scale: 1}
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

from talkinghead_lab.errors import InvalidRequest, OutputError, TalkingHeadError, nearest_name
from talkinghead_lab.foundation import digests
from talkinghead_lab.foundation.files import atomic_path, locked
from talkinghead_lab.foundation.paths import project_folder
from talkinghead_lab.params import GenerationParams, read_yaml
from talkinghead_lab.runs.folder import RECORD
from talkinghead_lab.runs.origin import InputDigests
from talkinghead_lab.runs.worker import OF_LOADING, Job
from talkinghead_lab.sweeps.processes import run_on_this_machine
from talkinghead_lab.sweeps.ray_cluster import run_on_ray

PARTS = ("base", "axes", "seeds", "portraits", "recordings")
COUNTED = ("seed", "portrait", "recording")
MOST_CELLS = 100_000

Axis = tuple[Any, ...] | dict[str, dict[str, Any]]


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
            made_from = InputDigests.of(self.params).digest
        except TalkingHeadError as error:
            made_from = str(error)
        return digests.combined([self.params.model_dump(mode="json"), made_from])[:20]


@dataclass(frozen=True)
class Sweep:
    """A base request and what varies.

    Args:
        base: fields of the request that all cells share.
        axes: what varies: the values of a field, or under a name of its own a linked axis, whose values have
            names and set several fields each.
        seeds, portraits, recordings: each combination of the axes is run for every one of them, so that
            combinations can be compared in pairs. Empty: the base's own.
    """

    base: Mapping[str, Any]
    axes: Mapping[str, Axis]
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
        recording, at most two seeds, one second in one chunk.
        """
        ends = {name: _ends(axis) for name, axis in self.axes.items()}
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
        self._check_that_each_field_is_set_once(counted)
        count = int(
            np.prod([len(values) for values in (*self.axes.values(), *counted.values())], dtype=float)
        )
        if not 0 < count <= MOST_CELLS:
            raise InvalidRequest("so many runs", received=count, allowed=f"1 to {MOST_CELLS}")
        return list(self._cells(counted))

    def _check_that_each_field_is_set_once(self, counted: Mapping[str, object]) -> None:
        for name, axis in self.axes.items():
            if isinstance(axis, dict) and name in (*GenerationParams.model_fields, *COUNTED):
                raise InvalidRequest(
                    "an axis that sets several fields has a name of its own",
                    received=name,
                    remedy="Choose one that is no parameter's, `model` say.",
                )
        fields = [_fields(name, axis) for name, axis in self.axes.items()]
        repeated = set[str]().union(*fields) & counted.keys()
        if repeated:
            raise InvalidRequest(
                "seeds, portraits and recordings are no axes",
                received=", ".join(sorted(repeated)),
                remedy="List them under seeds, portraits and recordings.",
            )
        for one, other in itertools.combinations(fields, 2):
            if one & other:
                raise InvalidRequest("two axes set the same field", received=", ".join(sorted(one & other)))

    def _cells(self, counted: Mapping[str, tuple[Any, ...]]) -> Iterator[Cell]:
        for values in itertools.product(*self.axes.values()):
            fields, place = dict(self.base), {}
            for (name, axis), value in zip(self.axes.items(), values, strict=True):
                fields |= axis[value] if isinstance(axis, dict) else {name: value}
                place[name] = _shown(value)
            for repeat in itertools.product(*counted.values()):
                given = dict(zip(counted, repeat, strict=True))
                known = {name: value for name, value in given.items() if value is not None}
                params = GenerationParams(**{**fields, **known})
                yield Cell(params, place | dict(zip(COUNTED, repeat, strict=True)))

    def values(self) -> dict[str, list[Any]]:
        """The values on each axis as the table of results shows them."""
        return {name: [_shown(value) for value in axis] for name, axis in self.axes.items()}

    def to_yaml(self) -> str:
        """YAML that `from_yaml` reads back."""
        axes = {name: axis if isinstance(axis, dict) else list(axis) for name, axis in self.axes.items()}
        parts = {"base": dict(self.base), "axes": axes}
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

    Raises:
        OutputError: the folder cannot be written, or another call runs a sweep there.
    """
    folder = project_folder() / folder
    _make(folder)
    with locked(folder):
        waiting = _unfinished(sweep, folder, retry_failed)
        _write(folder / "sweep.yaml", sweep.to_yaml().encode())
        with tqdm(total=len(waiting), unit="run", disable=not show_progress) as bar:
            if ray_address is not None and waiting:
                run_on_ray(waiting, ray_address, bar.update)
            else:
                run_on_this_machine(waiting, workers, bar.update)
        table = results(sweep, folder)
        _write(folder / "results.csv", table.write_csv().encode())
        with atomic_path(folder / "results.parquet", overwrite=True) as temporary:
            table.write_parquet(temporary)
    return table


def _unfinished(sweep: Sweep, folder: Path, retry_failed: bool) -> list[Job]:
    """What is to be run; jobs that share their networks follow each other."""
    jobs = {}
    for cell in sweep.cells():
        job = Job(cell.params, folder / "cells" / cell.key())
        if retry_failed:
            job.failure.unlink(missing_ok=True)
        if not (job.run_dir / RECORD).is_file() and not job.failure.is_file():
            jobs[job.run_dir] = job
    return sorted(jobs.values(), key=lambda job: str([getattr(job.params, name) for name in OF_LOADING]))


def results(sweep: Sweep, folder: str | Path) -> polars.DataFrame:
    """What is known of every cell: a row each, with a column for every axis and every measure.

    `state` is finished, failed or missing; `error` and `not_taken` say why a figure is null. `video_path`
    starts from the sweep's folder.
    """
    rows = [_row(cell, project_folder() / folder) for cell in sweep.cells()]
    return polars.DataFrame(rows, infer_schema_length=None, strict=False)


def _row(cell: Cell, folder: Path) -> dict[str, Any]:
    job = Job(cell.params, folder / "cells" / cell.key())
    row = {**cell.place, "cell": job.run_dir.name, "state": "missing", "error": None}
    if job.failure.is_file():
        failure = json.loads(job.failure.read_text(encoding="utf-8"))
        return row | {"state": "failed", "error": failure["error"]}
    if not (job.run_dir / RECORD).is_file():
        return row
    record = json.loads((job.run_dir / RECORD).read_text(encoding="utf-8"))
    measures = record["measures"]
    taken = {measure["name"]: measure["value"] for measure in measures}
    why = [f"{measure['name']}: {measure['why_not']}" for measure in measures if measure["why_not"]]
    path = (job.run_dir / record["result"]["video_path"]).relative_to(folder)
    found = {"state": "finished", "not_taken": "; ".join(why) or None, "video_path": str(path)}
    return row | taken | found


def _axis(name: str, values: Any) -> Axis:
    """The values of an axis: a list, a range with its end, or names for what sets several fields."""
    if isinstance(values, list) and values:
        return tuple(values)
    if (
        isinstance(values, Mapping)
        and values
        and all(isinstance(value, Mapping) for value in values.values())
    ):
        return {str(label): dict(fields) for label, fields in values.items()}
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
        allowed="a list of values; {from: 1, to: 5, step: 0.5} with the end included; or names, each with a "
        "mapping of the fields that it sets",
    )


def _fields(name: str, axis: Axis) -> set[str]:
    """The fields of the request that an axis sets."""
    return set().union(*axis.values()) if isinstance(axis, dict) else {name}


def _ends(axis: Axis) -> Axis:
    """An axis with its first and last value alone."""
    if isinstance(axis, dict):
        return {label: axis[label] for label in _ends(tuple(axis))}
    return axis[:1] + axis[1:][-1:]


def _shown(value: Any) -> Any:
    """A value as a table holds it."""
    return value if value is None or isinstance(value, str | int | float | bool) else json.dumps(value)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"the sweep's folder cannot be made ({error.strerror})", received=str(folder)
        ) from None


def _write(path: Path, content: bytes) -> None:
    with atomic_path(path, overwrite=True) as temporary:
        temporary.write_bytes(content)
