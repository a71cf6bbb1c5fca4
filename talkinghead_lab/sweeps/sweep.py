"""Runs the cells of a sweep and writes the table of results.

The folder of a sweep contains `sweep.yaml`, `cells/` with a run folder per cell, and the table of results.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import polars
from tqdm.auto import tqdm

from talkinghead_lab.errors import OutputError, TalkingHeadError
from talkinghead_lab.foundation.files import atomic_path, locked, output_errors
from talkinghead_lab.foundation.paths import project_folder
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.pipeline.request import NETWORK_FIELDS
from talkinghead_lab.runs.folder import RECORD, read_record
from talkinghead_lab.runs.origin import InputDigests
from talkinghead_lab.runs.record import video_of
from talkinghead_lab.sweeps import two_stage
from talkinghead_lab.sweeps.definition import Cell, Sweep
from talkinghead_lab.workers.ray_cluster import run_on_ray
from talkinghead_lab.workers.this_machine import ThisMachine
from talkinghead_lab.workers.worker import Job

BEGUN, NOT_BEGUN = "unfinished: the same sweep resumes it", "not begun: the same sweep runs it"
logger = logging.getLogger(__name__)


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
    chunk. An adaptive sweep runs the seeds that it lists, then those that `two_stage` adds.

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
        run = machine.run if machine else partial(run_on_ray, address=str(ray_address))
        jobs = _jobs(sweep, folder, show_progress)
        _replace_file(folder / "sweep.yaml", sweep.to_yaml().encode())
        try:
            _run_stage([job for _, job in jobs], run, retry_failed, show_progress)
            if sweep.target:
                before = {job.run_dir for _, job in jobs}
                jobs = _jobs(sweep, folder, show_progress)
                added = [job for _, job in jobs if job.run_dir not in before]
                _run_stage(added, run, retry_failed, show_progress)
        except BaseException:
            with suppress(TalkingHeadError):
                _write_table(folder, jobs)
            raise
        table = _write_table(folder, jobs)
        two_stage.warn_of_wide_intervals(sweep, table)
        return table


def _run_stage(jobs: list[Job], run: Callable[..., None], retry_failed: bool, show_progress: bool) -> None:
    waiting = _unfinished(jobs, retry_failed)
    if waiting:
        with tqdm(total=len(waiting), unit="run", disable=not show_progress) as bar:
            run(waiting, on_done=bar.update)


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
    """The jobs of a sweep; those of an adaptive sweep's second stage once no run of its first is missing."""

    def jobs_of(cells: list[Cell]) -> list[tuple[Cell, Job]]:
        return [(cell, Job(cell.params, folder / "cells" / cell.key(show_progress))) for cell in cells]

    jobs = jobs_of(sweep.cells())
    if sweep.target:
        table = _table(folder, jobs)
        if "missing" not in table["state"]:
            return jobs_of(sweep.cells(two_stage.seeds_of_each(sweep, table)))
    return jobs


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


def _replace_file(path: Path, content: bytes) -> None:
    with atomic_path(path, overwrite=True) as temporary:
        temporary.write_bytes(content)
