"""Runs tasks on this machine: in this process, or in one process per GPU.

The pools of `concurrent.futures` and `pebble` fail every waiting job, without an exit status, if a worker
dies before it took one. Here a dead worker fails its own job only, and its replacement gets the same GPU.
"""

import logging
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

import torch

from talkinghead_lab.errors import FolderLocked, OutputError
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.workers.main_loop import PARENT_SIGNALS, serve
from talkinghead_lab.workers.worker import Failure, Task, Worker

logger = logging.getLogger(__name__)


class ThisMachine:
    """Workers of this machine: one in this process, or several in processes of their own.

    Args:
        workers: worker processes. 0: one per GPU, or this process if there is no GPU; 1: this process.
        jobs: the most that can come.
    """

    def __init__(self, workers: int, jobs: int) -> None:
        count = min(workers or torch.cuda.device_count(), jobs)
        self.worker = Worker()
        self.processes = [_WorkerProcess(visible_device(number), count) for number in range(count)]

    def begin_to_load(self, request: GenerationParams) -> None:
        """Load the networks of a request beside whatever comes before the first job."""
        if len(self.processes) <= 1:
            return self.worker.begin_to_load(request)
        for process in self.processes:
            process.send(request)
        return None

    def run(self, jobs: Sequence[Task], on_done: Callable[[], object]) -> None:
        """Run jobs and call `on_done` after each, however it ended.

        A job whose folder another process writes is left unfinished. An interrupt leaves all running jobs
        unfinished and starts no other.

        Raises:
            NoSpaceLeft: the running jobs are unfinished.
        """
        if len(self.processes) > 1:
            return _run_in_processes(jobs, self.processes, on_done)
        for job in jobs:
            try:
                job.run(self.worker)
            except FolderLocked as error:
                leave_unfinished(job, error)
            on_done()
        return None

    def end(self) -> None:
        """Stop the worker processes, also those in the middle of a job."""
        processes = [worker.process for worker in self.processes if worker.process is not None]
        for process in processes:
            process.kill()
        for process in processes:
            process.join()


def leave_unfinished(job: Task, error: FolderLocked) -> None:
    """Say that another process writes a job's folder."""
    logger.warning("%s is left unfinished: %s", job.name, error)


def _run_in_processes(
    jobs: Sequence[Task], workers: list["_WorkerProcess"], on_done: Callable[[], object]
) -> None:
    """Give each idle worker the next job."""
    waiting, idle = list(reversed(jobs)), list(reversed(workers))
    busy: dict[Connection, tuple[_WorkerProcess, Task]] = {}
    while waiting or busy:
        while waiting and idle:
            worker, job = idle.pop(), waiting.pop()
            busy[worker.begin(job)] = (worker, job)
        for connection in wait(list(busy)):
            assert isinstance(connection, Connection)
            worker, job = busy.pop(connection)
            outcome = worker.finish()
            if isinstance(outcome, Failure):
                job.record_failure(outcome)
            elif isinstance(outcome, FolderLocked):
                leave_unfinished(job, outcome)
            elif outcome is not None:
                raise outcome
            idle.append(worker)
            on_done()


class _WorkerProcess:
    """A worker in a child process, which is started for its first work and again after it died.

    Args:
        gpu: the worker's only GPU, as CUDA_VISIBLE_DEVICES names it; None: the CPU.
        workers: number of workers, which share the cores if there is no GPU.
    """

    def __init__(self, gpu: str | None, workers: int) -> None:
        self.gpu, self.workers = gpu, workers
        self.process: SpawnProcess | None = None
        self.connection: Connection

    def begin(self, job: Task) -> Connection:
        """Send a job; the connection is readable once the job has ended or the process has died."""
        self.send(job)
        return self.connection

    def send(self, work: Task | GenerationParams) -> None:
        """Send a job, or a request whose networks to load."""
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            self.connection, theirs = context.Pipe()
            self.process = context.Process(target=serve, args=(theirs, self.gpu, self.workers), daemon=True)
            with _parent_signals_blocked():
                self.process.start()
            theirs.close()
        with suppress(OSError):  # a process that died while idle: `finish` reports it
            self.connection.send(work)

    def finish(self) -> Failure | OutputError | None:
        """Receive how the job ended: None if it finished or its failure is recorded."""
        try:
            outcome: OutputError | None = self.connection.recv()
        except (EOFError, OSError):
            assert self.process is not None
            self.process.join()
            status, self.process = self.process.exitcode, None
            return Failure(f"the worker died with status {status}")
        return outcome


@contextmanager
def _parent_signals_blocked() -> Iterator[None]:
    """Block the signals in this thread; a process started here inherits that until it ignores them itself."""
    resource_tracker.ensure_running()  # would unblock them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, PARENT_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def visible_device(number: int) -> str | None:
    """The GPU of a worker as CUDA_VISIBLE_DEVICES names it; None if there is no GPU."""
    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible else [str(device) for device in range(count)]
    return devices[number % count] if count else None
