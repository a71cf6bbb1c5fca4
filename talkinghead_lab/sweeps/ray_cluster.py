"""Runs the cells of a sweep on a Ray cluster, one GPU for each worker; results come back over the network."""

import shutil
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from talkinghead_lab.errors import MissingExtra
from talkinghead_lab.foundation.files import atomic_path
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.runs.folder import RECORD
from talkinghead_lab.runs.worker import Failure, Job, Worker

TRIES_OF_A_JOB = 3  # a worker that dies is started anew, and its job with it


class RemoteWorker:
    """A worker whose machine need not share a disk with the one that asks; it must see media and weights."""

    def __init__(self) -> None:
        self.worker = Worker()

    def run(self, params: GenerationParams) -> dict[str, bytes] | Failure:
        """The files of a finished run, or why it failed."""
        with tempfile.TemporaryDirectory(prefix="sweep-") as folder:
            job = Job(params, Path(folder) / "run")
            failure = self.worker.attempt(job)
            return failure or {path.name: path.read_bytes() for path in job.run_dir.iterdir()}


def run_on_ray(jobs: list[Job], address: str, done: Callable[[], object]) -> None:
    """Run jobs on a cluster, each of which may lose its worker twice.

    Args:
        jobs: what to run.
        address: of the cluster; `auto`: the one this machine is part of; `local`: one of this machine alone.
            A connection that exists already is used and left open.
        done: called after every job.

    Raises:
        MissingExtra: Ray is not installed.
    """
    ray = _ray()
    connected = ray.is_initialized()
    if not connected:
        ray.init(
            address=None if address == "local" else address, include_dashboard=False, log_to_driver=False
        )
    try:
        _serve(ray, jobs, done)
    finally:
        if not connected:
            ray.shutdown()


def _serve(ray: Any, jobs: list[Job], done: Callable[[], object]) -> None:
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    count = min(len(jobs), gpus or int(resources.get("CPU", 1)))
    options = {"num_cpus": 1, "num_gpus": 1 if gpus else 0, "max_restarts": -1}
    actor = ray.remote(**options, max_task_retries=TRIES_OF_A_JOB - 1)(RemoteWorker)
    waiting = list(reversed(jobs))
    busy = {}
    for worker in [actor.remote() for _ in range(count)]:
        job = waiting.pop()
        busy[worker.run.remote(job.params)] = (worker, job)
    while busy:
        (answer,), _ = ray.wait(list(busy))
        worker, job = busy.pop(answer)
        try:
            _keep(job, ray.get(answer))
        except ray.exceptions.RayError as error:
            job.record_failure(
                Failure(f"the worker was lost ({type(error).__name__})", traceback.format_exc())
            )
        done()
        if waiting:
            job = waiting.pop()
            busy[worker.run.remote(job.params)] = (worker, job)


def _keep(job: Job, answer: dict[str, bytes] | Failure) -> None:
    """Write what came back; the record, by which a run is known as finished, last."""
    if isinstance(answer, Failure):
        return job.record_failure(answer)
    shutil.rmtree(job.run_dir, ignore_errors=True)  # an unfinished run of an earlier call
    job.run_dir.mkdir(parents=True)
    for name in sorted(answer, key=lambda name: name == RECORD):
        with atomic_path(job.run_dir / name) as temporary:
            temporary.write_bytes(answer[name])
    return None


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise MissingExtra(
            "running on a cluster needs Ray", remedy="Install it: pip install 'talkinghead_lab[cluster]'."
        ) from None
    return ray
