"""Runs the cells of a sweep on a Ray cluster, one worker per GPU; results return over the network."""

import shutil
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from talkinghead_lab.errors import FolderLocked, MissingExtra, NoSpaceLeft
from talkinghead_lab.foundation.files import LOCK, atomic_path, locked
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.runs.folder import RECORD
from talkinghead_lab.runs.worker import Failure, Job, Worker
from talkinghead_lab.sweeps.processes import leave_unfinished

ATTEMPTS_PER_JOB = 3  # Ray restarts a dead worker and its job

Outcome = dict[str, bytes] | Failure | NoSpaceLeft


class RemoteWorker:
    """A worker on any machine of the cluster; it needs media and weights, but no shared disk."""

    def __init__(self) -> None:
        self.worker = Worker()

    def run(self, params: GenerationParams) -> Outcome:
        """Run a request; return the files of the finished run, the failure, or why it is unfinished."""
        with tempfile.TemporaryDirectory(prefix="sweep-") as folder:
            job = Job(params, Path(folder) / "run")
            try:
                failure = self.worker.attempt(job)
            except NoSpaceLeft as error:  # returned, because Ray would wrap it
                return error
            return failure or {path.name: path.read_bytes() for path in job.run_dir.iterdir()}


def run_on_ray(jobs: list[Job], address: str, on_done: Callable[[], object]) -> None:
    """Run jobs on a cluster; a job fails if its worker dies three times.

    Args:
        jobs: what to run.
        address: of the cluster; `auto`: the one this machine is part of; `local`: a new one on this machine.
            An existing connection is used and left open.
        on_done: called after every job, however it ended.

    Raises:
        MissingExtra: Ray is not installed.
        NoSpaceLeft: here or on a worker's machine; the running jobs are unfinished.
    """
    ray = _import_ray()
    connected = ray.is_initialized()
    if not connected:
        ray.init(
            address=None if address == "local" else address, include_dashboard=False, log_to_driver=False
        )
    try:
        _run_on_actors(ray, jobs, on_done)
    finally:
        if not connected:
            ray.shutdown()


def _run_on_actors(ray: Any, jobs: list[Job], on_done: Callable[[], object]) -> None:
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    count = min(len(jobs), gpus or int(resources.get("CPU", 1)))
    options = {"num_cpus": 1, "num_gpus": 1 if gpus else 0, "max_restarts": -1}
    actor = ray.remote(**options, max_task_retries=ATTEMPTS_PER_JOB - 1)(RemoteWorker)
    waiting = list(reversed(jobs))
    busy = {}
    workers = [actor.remote() for _ in range(count)]
    try:
        for worker in workers:
            job = waiting.pop()
            busy[worker.run.remote(job.params)] = (worker, job)
        while busy:
            (ready,), _ = ray.wait(list(busy))
            worker, job = busy.pop(ready)
            try:
                _save(job, ray.get(ready))
            except ray.exceptions.RayError as error:
                job.record_failure(
                    Failure(f"the worker was lost ({type(error).__name__})", traceback.format_exc())
                )
            except FolderLocked as error:
                leave_unfinished(job, error)
            on_done()
            if waiting:
                job = waiting.pop()
                busy[worker.run.remote(job.params)] = (worker, job)
    finally:
        for worker in workers:  # also in the middle of a job
            ray.kill(worker)


def _save(job: Job, outcome: Outcome) -> None:
    """Write the files of a run; the record comes last, because it marks the run as finished."""
    if isinstance(outcome, NoSpaceLeft):
        raise outcome
    if isinstance(outcome, Failure):
        return job.record_failure(outcome)
    job.run_dir.mkdir(parents=True, exist_ok=True)
    with locked(job.run_dir):
        for earlier in job.run_dir.iterdir():  # of an interrupted call
            if earlier.is_dir():
                shutil.rmtree(earlier)
            elif earlier.name != LOCK:
                earlier.unlink()
        for name in sorted(outcome, key=lambda name: name == RECORD):
            with atomic_path(job.run_dir / name) as temporary:
                temporary.write_bytes(outcome[name])
    return None


def _import_ray() -> Any:
    try:
        import ray
    except ImportError:
        raise MissingExtra(
            "running on a cluster needs Ray", remedy="Install it: pip install 'talkinghead_lab[cluster]'."
        ) from None
    return ray
