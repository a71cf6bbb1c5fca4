"""Many runs from one file: every combination of the axes, for every seed, portrait and recording.

    base: {…}                                  # fields of a request
    axes:
      diffusion_steps: [4, 8]                  # a list of values
      sample_shift: {from: 1, to: 7, step: 2}
      model:                                   # a linked axis, freely named: each value sets several fields
        guided: {}
        fast LoRA: {loras: [{path: sample:fast-lora}], text_guide_scale: 1, audio_guide_scale: 1}
    seeds: [1, 2, 3]
    portraits: [sample:portrait]               # default: that of the base
    recordings: [sample:recording]

The folder of a sweep contains `sweep.yaml`, `cells/` with a run folder per cell, and the table of results.
"""

import itertools
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars
import yaml
from tqdm.auto import tqdm

from talkinghead_lab.errors import InvalidRequest, OutputError, TalkingHeadError, nearest_name
from talkinghead_lab.foundation import digests
from talkinghead_lab.foundation.file_kinds import check_is_sweep
from talkinghead_lab.foundation.files import atomic_path, locked, output_errors
from talkinghead_lab.foundation.paths import project_folder
from talkinghead_lab.foundation.schema import versioned
from talkinghead_lab.params import GenerationParams, read_yaml, typed_value
from talkinghead_lab.pipeline.request import NETWORK_FIELDS
from talkinghead_lab.runs.folder import RECORD, read_record
from talkinghead_lab.runs.origin import InputDigests
from talkinghead_lab.runs.record import video_of
from talkinghead_lab.runs.worker import Job
from talkinghead_lab.sweeps.processes import ThisMachine
from talkinghead_lab.sweeps.ray_cluster import run_on_ray
from talkinghead_lab.sweeps.statistics import PAIRED_BY

REPLICATED = {"seeds": "seed", "portraits": "image_path", "recordings": "audio_path"}  # section: field
SECTIONS = ("base", "axes", *REPLICATED)
MAX_CELLS = 100_000
BEGUN, NOT_BEGUN = "unfinished: the same sweep resumes it", "not begun: the same sweep runs it"
logger = logging.getLogger(__name__)

Axis = tuple[Any, ...] | dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Cell:
    """One run of a sweep: its request and its position on the axes."""

    params: GenerationParams
    position: Mapping[str, Any]

    def key(self, show_progress: bool = False) -> str:
        """Digest of the request and of the content of weights and media; names the cell's folder.

        A missing file changes the key, so that the cell runs again once the file exists.
        """
        try:
            inputs = InputDigests.of(self.params, show_progress=show_progress).digest
        except TalkingHeadError as error:
            inputs = str(error)
        return digests.combined([self.params.model_dump(mode="json"), inputs])[:20]


@dataclass(frozen=True)
class Sweep:
    """A base request and the axes along which it varies.

    Args:
        base: fields of the request that all cells share.
        axes: values by field name; or a linked axis: a name that is not a field, with named values that set
            several fields each.
        seeds, portraits, recordings: every combination of the axes runs for each of them, so that
            combinations can be compared in pairs. Empty: those of the base.
    """

    base: Mapping[str, Any]
    axes: Mapping[str, Axis]
    seeds: tuple[int, ...] = ()
    portraits: tuple[str, ...] = ()
    recordings: tuple[str, ...] = ()

    @classmethod
    def from_yaml(cls, path: str | Path, base: Mapping[str, Any] | None = None) -> "Sweep":
        """Read a sweep's file, or the preset of that name; fields of `base` override those of its base.

        Raises:
            InvalidRequest: a section, a field or a range is not valid.
        """
        sections = read_yaml(path, sweep=True)
        check_is_sweep(sections, SECTIONS, GenerationParams.model_fields)
        return cls.from_sections(sections | {"base": {**_section(sections, "base", dict), **(base or {})}})

    def reduced(self, frames: int = 25) -> "Sweep":
        """A small version as a quick check.

        It has the ends of each axis, one portrait and recording, at most two seeds, and one chunk of one
        second.
        """
        ends = {name: _first_and_last(axis) for name, axis in self.axes.items()}
        base = {**self.base, "max_frames": frames, "chunk_frames": frames}
        return Sweep(base, ends, self.seeds[:2], self.portraits[:1], self.recordings[:1])

    @classmethod
    def from_sections(cls, sections: Mapping[str, Any]) -> "Sweep":
        """Build a sweep from the sections of its file and check the requests of all cells."""
        for name in sections:
            if name not in SECTIONS:
                raise InvalidRequest(
                    "unknown section of a sweep", received=name, remedy=nearest_name(name, SECTIONS)
                )
        axes = {name: _parsed_axis(name, axis) for name, axis in _section(sections, "axes", dict).items()}
        replicates = {
            name: tuple(typed_value(field, value) for value in _section(sections, name, list))
            for name, field in REPLICATED.items()
        }
        sweep = cls(_typed(_section(sections, "base", dict)), axes, **replicates)
        sweep.cells()
        return sweep

    def cells(self) -> list[Cell]:
        """Every run; the runs of one combination follow each other.

        Raises:
            InvalidRequest: a value is not valid, or there are too many runs.
        """
        replicates = {
            "seed": self.seeds or (self.base.get("seed", 42),),
            "image_path": self.portraits or (self.base.get("image_path"),),
            "audio_path": self.recordings or (self.base.get("audio_path"),),
        }
        self._check_fields_are_set_once(replicates)
        count = int(
            np.prod([len(values) for values in (*self.axes.values(), *replicates.values())], dtype=float)
        )
        if not 0 < count <= MAX_CELLS:
            raise InvalidRequest("too many or no runs", received=count, allowed=f"1 to {MAX_CELLS}")
        return list(self._cells(replicates))

    def _check_fields_are_set_once(self, replicates: Mapping[str, object]) -> None:
        for name, axis in self.axes.items():
            if isinstance(axis, dict) and name in (*GenerationParams.model_fields, *PAIRED_BY):
                raise InvalidRequest(
                    "an axis that sets several fields has a name of its own",
                    received=name,
                    remedy="Choose a name that is not a parameter, for example `model`.",
                )
        fields = [_fields(name, axis) for name, axis in self.axes.items()]
        repeated = set[str]().union(*fields) & replicates.keys()
        if repeated:
            raise InvalidRequest(
                "seeds, portraits and recordings are not axes",
                received=", ".join(sorted(repeated)),
                remedy="List them under seeds, portraits and recordings.",
            )
        for one, other in itertools.combinations(fields, 2):
            if one & other:
                raise InvalidRequest("two axes set the same field", received=", ".join(sorted(one & other)))

    def _cells(self, replicates: Mapping[str, tuple[Any, ...]]) -> Iterator[Cell]:
        for values in itertools.product(*self.axes.values()):
            fields, position = dict(self.base), {}
            for (name, axis), value in zip(self.axes.items(), values, strict=True):
                fields |= axis[value] if isinstance(axis, dict) else {name: value}
                position[name] = _table_value(value)
            for repeat in itertools.product(*replicates.values()):
                given = dict(zip(replicates, repeat, strict=True))
                known = {name: value for name, value in given.items() if value is not None}
                params = GenerationParams(**{**fields, **known})
                if params.seed == "random":
                    remedy = "List numbers under seeds: by them, finished runs are found again."
                    raise InvalidRequest("a sweep needs its seeds", received="random", remedy=remedy)
                yield Cell(params, position | dict(zip(PAIRED_BY, repeat, strict=True)))

    def values(self) -> dict[str, list[Any]]:
        """The values on each axis as they appear in the table of results."""
        return {name: [_table_value(value) for value in axis] for name, axis in self.axes.items()}

    def to_yaml(self) -> str:
        """YAML that `from_yaml` reads back."""
        axes = {name: axis if isinstance(axis, dict) else list(axis) for name, axis in self.axes.items()}
        sections = {"base": dict(self.base), "axes": axes}
        listed = {name: list(getattr(self, name)) for name in REPLICATED if getattr(self, name)}
        content = json.loads(json.dumps(versioned(sections | listed)))
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def run_sweep(
    sweep: Sweep,
    folder: str | Path,
    *,
    workers: int = 0,
    retry_failed: bool = False,
    ray_address: str | None = None,
    show_progress: bool = True,
) -> polars.DataFrame:
    """Run every unfinished cell and write the table of results.

    An interrupt leaves the running cells unfinished; the next call resumes them after their last finished
    chunk.

    Args:
        sweep: what to run.
        folder: folder of the sweep; its finished cells are not repeated.
        workers: worker processes, each with networks of its own. 0: one per GPU, or this process if there is
            no GPU; 1: this process.
        retry_failed: run failed cells again.
        ray_address: run on this Ray cluster instead; see `ray_cluster.run_on_ray`.
        show_progress: draw a progress bar.

    Returns:
        The table of `results`; failed cells have their error in it.

    Raises:
        NoSpaceLeft: the running cells are unfinished, not failed.
        OutputError: the folder cannot be written, or another process is running a sweep in it.
    """
    folder = project_folder() / folder
    with output_errors("the folder of the sweep cannot be created", folder):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder), nullcontext() if ray_address else _machine(sweep, workers) as machine:
        jobs = _jobs(sweep, folder, show_progress)
        waiting = _unfinished([job for _, job in jobs], retry_failed)
        _replace_file(folder / "sweep.yaml", sweep.to_yaml().encode())
        try:
            with tqdm(total=len(waiting), unit="run", disable=not show_progress) as bar:
                if machine is not None:
                    machine.run(waiting, bar.update)
                elif waiting:
                    run_on_ray(waiting, str(ray_address), bar.update)
        except BaseException:
            with suppress(TalkingHeadError):
                _write_table(folder, jobs)
            raise
        return _write_table(folder, jobs)


@contextmanager
def _machine(sweep: Sweep, workers: int) -> Iterator[ThisMachine]:
    """The workers of this machine; they load networks while weights are hashed, which names the cells."""
    requests = sorted((cell.params for cell in sweep.cells()), key=_networks)
    machine = ThisMachine(workers, len(requests))
    try:
        if InputDigests.need_hashing(requests[0]):
            machine.begin_to_load(requests[0])
        yield machine
    finally:
        machine.end()


def _networks(request: GenerationParams) -> str:
    """Equal for requests that need the same networks."""
    return str([getattr(request, name) for name in NETWORK_FIELDS])


def _jobs(sweep: Sweep, folder: Path, show_progress: bool = False) -> list[tuple[Cell, Job]]:
    cells = folder / "cells"
    return [(cell, Job(cell.params, cells / cell.key(show_progress))) for cell in sweep.cells()]


def _unfinished(jobs: list[Job], retry_failed: bool) -> list[Job]:
    """The unfinished jobs, sorted so that jobs with the same networks follow each other."""
    unfinished = {}
    for job in jobs:
        finished = (job.run_dir / RECORD).is_file()
        if finished and retry_failed and _damage(job) is not None:
            (job.run_dir / RECORD).unlink()  # then the run is made again
            finished = False
        if retry_failed or finished:
            job.failure.unlink(missing_ok=True)
        if not finished and not job.failure.is_file():
            unfinished[job.run_dir] = job
    return sorted(unfinished.values(), key=lambda job: _networks(job.params))


def _write_table(folder: Path, jobs: list[tuple[Cell, Job]]) -> polars.DataFrame:
    """Write the table, also a partial one, and say so: its rows tell which runs the next call makes."""
    table = _table(folder, jobs)
    _replace_file(folder / "results.csv", table.write_csv().encode())
    with atomic_path(folder / "results.parquet", overwrite=True) as temporary:
        table.write_parquet(temporary)
    if left := table["state"].to_list().count("missing"):
        text = "results.csv is partial: %d of %d runs are left; run the same sweep again to complete it"
        logger.warning(text, left, len(table))
    return table


def results(sweep: Sweep, folder: str | Path) -> polars.DataFrame:
    """The table of results: a row per cell, a column per axis and per measure.

    `state` is finished, failed or missing. `error` and `not_taken` give the reason for null measures.
    `video_path` is relative to the folder of the sweep.
    """
    folder = project_folder() / folder
    return _table(folder, _jobs(sweep, folder))


def _table(folder: Path, jobs: list[tuple[Cell, Job]]) -> polars.DataFrame:
    rows = [_row(cell, job, folder) for cell, job in jobs]
    return polars.DataFrame(rows, infer_schema_length=None, strict=False)


def _row(cell: Cell, job: Job, folder: Path) -> dict[str, Any]:
    row = {**cell.position, "cell": job.run_dir.name, "state": "missing", "error": None}
    if not (job.run_dir / RECORD).is_file():
        if job.failure.is_file():
            return row | {"state": "failed", "error": job.reason}
        return row | {"error": BEGUN if job.run_dir.is_dir() else NOT_BEGUN}
    try:
        record = read_record(job.run_dir)
        path = video_of(job.run_dir, record).relative_to(folder)
    except TalkingHeadError as error:
        return row | {"state": "failed", "error": f"{type(error).__name__}: {error}"}
    measures = record["measures"]
    values = {measure["name"]: measure["value"] for measure in measures if measure["name"] not in row}
    reasons = [f"{measure['name']}: {measure['why_not']}" for measure in measures if measure["why_not"]]
    found = {"state": "finished", "not_taken": "; ".join(reasons) or None, "video_path": str(path)}
    return row | values | found


def _damage(job: Job) -> OutputError | None:
    """Why the record of a finished run, or its video, cannot be used; None: it can."""
    try:
        video_of(job.run_dir, read_record(job.run_dir))
    except OutputError as error:
        return error
    return None


def _parsed_axis(name: str, values: Any) -> Axis:
    """Parse an axis: a list of values, a range including its end, or named sets of fields."""
    if isinstance(values, list) and values:
        return tuple(typed_value(name, value) for value in values)
    if (
        isinstance(values, Mapping)
        and values
        and all(isinstance(value, Mapping) for value in values.values())
    ):
        return {str(label): _typed(fields) for label, fields in values.items()}
    if isinstance(values, Mapping) and values.keys() == {"from", "to", "step"}:
        first, last, step = (typed_value(name, values[key]) for key in ("from", "to", "step"))
        if (
            all(isinstance(number, int | float) for number in (first, last, step))
            and step > 0 <= last - first
        ):
            count = int((last - first) / step + 1e-9) + 1
            integers = all(isinstance(number, int) for number in (first, step))
            return tuple(first + k * step if integers else round(first + k * step, 10) for k in range(count))
    raise InvalidRequest(
        f"the axis `{name}` is not valid",
        received=values,
        allowed="a list of values; {from: 1, to: 5, step: 0.5}, which includes its end; or names, each with "
        "a mapping of the fields it sets",
    )


def _section(sections: Mapping[str, Any], name: str, kind: type[Any]) -> Any:
    """A section of the file, empty if it is left out."""
    found = sections.get(name) or kind()
    if not isinstance(found, kind):
        allowed = "a list" if kind is list else "a mapping of names to values"
        raise InvalidRequest(f"the section `{name}` is not valid", received=found, allowed=allowed)
    return found


def _typed(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {str(name): typed_value(str(name), value) for name, value in fields.items()}


def _fields(name: str, axis: Axis) -> set[str]:
    """The fields of the request that an axis sets."""
    return set().union(*axis.values()) if isinstance(axis, dict) else {name}


def _first_and_last(axis: Axis) -> Axis:
    """An axis reduced to its first and last value."""
    if isinstance(axis, dict):
        return {label: axis[label] for label in _first_and_last(tuple(axis))}
    return axis[:1] + axis[1:][-1:]


def _table_value(value: Any) -> Any:
    """A value in the table: lists and mappings become JSON."""
    return value if value is None or isinstance(value, str | int | float | bool) else json.dumps(value)


def _replace_file(path: Path, content: bytes) -> None:
    with atomic_path(path, overwrite=True) as temporary:
        temporary.write_bytes(content)
