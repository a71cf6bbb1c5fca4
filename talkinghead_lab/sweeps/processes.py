"""Runs the cells of a sweep on this machine: in this process, or in one worker process per GPU.

The pools of `concurrent.futures` and `pebble` fail every waiting job, without an exit status, if a worker
dies before it took one. Here a dead worker fails its own job only, and its replacement gets the same GPU.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

import torch
from tqdm import tqdm

from talkinghead_lab.runs.worker import Failure, Job, Worker


def run_on_this_machine(jobs: list[Job], workers: int, on_done: Callable[[], object]) -> None:
    """Run jobs and call `on_done` after each.

    Args:
        jobs: what to run.
        workers: worker processes. 0: one per GPU, or this process if there is no GPU; 1: this process.
        on_done: called after every job, finished or failed.
    """
    workers = min(workers or torch.cuda.device_count(), len(jobs))
    if workers > 1:
        return _run_in_processes(jobs, workers, on_done)
    worker = Worker()
    for job in jobs:
        worker.run(job)
        on_done()
    return None


def _run_in_processes(jobs: list[Job], count: int, on_done: Callable[[], object]) -> None:
    """Give each idle worker the next job. An interrupt stops the workers; their jobs stay unfinished."""
    workers = [_WorkerProcess(visible_device(number), count) for number in range(count)]
    waiting, idle = list(reversed(jobs)), list(reversed(workers))
    busy: dict[Connection, tuple[_WorkerProcess, Job]] = {}
    try:
        while waiting or busy:
            while waiting and idle:
                worker, job = idle.pop(), waiting.pop()
                busy[worker.begin(job)] = (worker, job)
            for connection in wait(list(busy)):
                assert isinstance(connection, Connection)
                worker, job = busy.pop(connection)
                status = worker.finish()
                if status is not None:
                    job.record_failure(Failure(f"the worker died with status {status}"))
                idle.append(worker)
                on_done()
    finally:
        for worker in workers:
            worker.stop()


class _WorkerProcess:
    """A worker in a child process, which is started for its first job and again after it died.

    Args:
        gpu: the worker's only GPU, as CUDA_VISIBLE_DEVICES names it; None: the CPU.
        workers: number of workers, which share the cores if there is no GPU.
    """

    def __init__(self, gpu: str | None, workers: int) -> None:
        self.gpu, self.workers = gpu, workers
        self.process: SpawnProcess | None = None
        self.connection: Connection

    def begin(self, job: Job) -> Connection:
        """Send a job; the connection is readable once the job has ended or the process has died."""
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            self.connection, theirs = context.Pipe()
            self.process = context.Process(target=_serve, args=(theirs, self.gpu, self.workers), daemon=True)
            self.process.start()
            theirs.close()
        with suppress(OSError):  # a process that died while idle: `finish` reports it
            self.connection.send(job)
        return self.connection

    def finish(self) -> int | None:
        """Receive the end of the job; the exit status if the process died instead."""
        try:
            self.connection.recv()
        except (EOFError, OSError):
            assert self.process is not None
            self.process.join()
            status, self.process = self.process.exitcode, None
            return status
        return None

    def stop(self) -> None:
        """Kill the process, also in the middle of a job."""
        if self.process is not None:
            self.process.kill()
            self.process.join()


def visible_device(number: int) -> str | None:
    """The GPU of a worker as CUDA_VISIBLE_DEVICES names it; None if there is no GPU."""
    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible else [str(device) for device in range(count)]
    return devices[number % count] if count else None


def _serve(connection: Connection, gpu: str | None, workers: int) -> None:
    """Main loop of a worker process: run each job received, on one GPU or on a share of the cores."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the parent stops this one
    tqdm.set_lock(threading.RLock())  # a killed process would leak the semaphore of the default lock
    if gpu is None:
        torch.set_num_threads(max(1, torch.get_num_threads() // workers))
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # read when CUDA initialises, which importing torch does not
    worker = Worker()
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        worker.run(job)
        connection.send(None)
