"""Runs tasks on a Ray cluster, one worker per GPU.

Results return over the network.
"""

import os
import tempfile
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from talkinghead_lab.errors import FolderLocked, MissingExtra, OutputError
from talkinghead_lab.workers.this_machine import leave_unfinished
from talkinghead_lab.workers.worker import Failure, Task, Worker

ATTEMPTS_PER_TASK = 3  # Ray restarts a dead worker and its task


class RemoteWorker:
    """A worker on any machine of the cluster; it needs media and weights, but no shared disk for results.

    Args:
        folder: that of the caller, to which paths are relative.
    """

    def __init__(self, folder: Path) -> None:
        self.worker = Worker()
        with suppress(OSError):  # a machine without it
            os.chdir(folder)

    def run(self, task: Task) -> dict[str, bytes] | OutputError:
        """Do a task; return its results, or the error that does not belong to it alone."""
        with tempfile.TemporaryDirectory(prefix="task-") as folder:
            there = task.moved(Path(folder))
            try:
                there.run(self.worker)
            except OutputError as error:  # returned, because Ray would wrap it
                return error
            return there.results()


def run_on_ray(tasks: Sequence[Task], address: str, on_done: Callable[[], object]) -> None:
    """Run tasks on a cluster; a task fails if its worker dies three times.

    A task whose folder another process writes is left unfinished. An interrupt leaves all running tasks
    unfinished and starts no other.

    Args:
        tasks: what to run.
        address: of the cluster; `auto`: the one this machine is part of; `local`: a new one on this machine.
            An existing connection is used and left open.
        on_done: called after every task, however it ended.

    Raises:
        MissingExtra: Ray is not installed.
        OutputError: an error that does not belong to one task alone, here or on a worker's machine, such as
            NoSpaceLeft; the running tasks are unfinished.
    """
    ray = _import_ray()
    connected = ray.is_initialized()
    if not connected:
        ray.init(
            address=None if address == "local" else address, include_dashboard=False, log_to_driver=False
        )
    try:
        _run_on_actors(ray, tasks, on_done)
    finally:
        if not connected:
            ray.shutdown()


def _run_on_actors(ray: Any, tasks: Sequence[Task], on_done: Callable[[], object]) -> None:
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    count = min(len(tasks), gpus or int(resources.get("CPU", 1)))
    options = {"num_cpus": 1, "num_gpus": 1 if gpus else 0, "max_restarts": -1}
    actor = ray.remote(**options, max_task_retries=ATTEMPTS_PER_TASK - 1)(RemoteWorker)
    waiting = list(reversed(tasks))
    busy = {}
    workers = [actor.remote(Path.cwd()) for _ in range(count)]
    try:
        for worker in workers:
            task = waiting.pop()
            busy[worker.run.remote(task)] = (worker, task)
        while busy:
            (ready,), _ = ray.wait(list(busy))
            worker, task = busy.pop(ready)
            try:
                outcome = ray.get(ready)
                if isinstance(outcome, OutputError):
                    raise outcome
                task.collect(outcome)
            except ray.exceptions.RayError as error:
                task.record_failure(
                    Failure(f"the worker was lost ({type(error).__name__})", traceback.format_exc())
                )
            except FolderLocked as error:
                leave_unfinished(task, error)
            on_done()
            if waiting:
                task = waiting.pop()
                busy[worker.run.remote(task)] = (worker, task)
    finally:
        for worker in workers:  # also in the middle of a task
            ray.kill(worker)


def _import_ray() -> Any:
    try:
        import ray
    except ImportError:
        raise MissingExtra(
            "running on a cluster needs Ray", remedy="Install it: pip install 'talkinghead_lab[cluster]'."
        ) from None
    return ray
