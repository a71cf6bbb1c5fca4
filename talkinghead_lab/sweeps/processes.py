"""Runs the cells of a sweep on this machine: in this process, or in one process for each GPU."""

import multiprocessing
import os
import queue
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection

import torch

from talkinghead_lab.runs.worker import Failure, Job, Worker


def run_here(jobs: list[Job], workers: int, done: Callable[[], object]) -> None:
    """Run jobs on this machine, calling `done` after each.

    Args:
        jobs: what to run.
        workers: processes; 0: one for each GPU, or this process where there is none; 1: this process.
        done: called after every job.
    """
    workers = min(workers or torch.cuda.device_count(), len(jobs))
    if workers > 1:
        return _run_in_processes(jobs, workers, done)
    worker = Worker()
    for job in jobs:
        worker.run(job)
        done()
    return None


def _run_in_processes(jobs: list[Job], workers: int, done: Callable[[], object]) -> None:
    waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
    for job in jobs:
        waiting.put(job)
    processes = [_Process(number, workers) for number in range(workers)]
    threads = [threading.Thread(target=process.serve, args=(waiting, done)) for process in processes]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except BaseException:
        while not waiting.empty():
            waiting.get()
        for process in processes:
            process.stop()
        raise


class _Process:
    """A worker in a process of its own. Where that dies, of lack of memory say, its job has failed and the
    next one gets a new process.
    """

    def __init__(self, number: int, workers: int):
        self.gpu, self.workers = _gpu_of(number), workers
        self.process: multiprocessing.process.BaseProcess | None = None
        self.ours: Connection | None = None

    def serve(self, waiting: "queue.SimpleQueue[Job]", done: Callable[[], object]) -> None:
        """Run jobs until none waits."""
        while True:
            try:
                job = waiting.get_nowait()
            except queue.Empty:
                return self.stop()
            try:
                connection = self._connection()
                connection.send(job)
                connection.recv()
            except (EOFError, OSError):
                assert self.process is not None
                self.process.join()
                job.record_failure(Failure(f"the worker died with status {self.process.exitcode}"))
                self.process = None
            done()

    def _connection(self) -> Connection:
        if self.process is None or self.ours is None:
            context = multiprocessing.get_context("spawn")
            self.ours, theirs = context.Pipe()
            self.process = context.Process(target=_work, args=(theirs, self.gpu, self.workers), daemon=True)
            self.process.start()
            theirs.close()
        return self.ours

    def stop(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.terminate()
            self.process.join()
            self.process = None


def _gpu_of(number: int) -> str | None:
    """The GPU of a worker as CUDA_VISIBLE_DEVICES names it; None where there is none."""
    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible else [str(device) for device in range(count)]
    return devices[number % count] if count else None


def _work(connection: Connection, gpu: str | None, workers: int) -> None:
    """What a worker's process does: run what it is sent, on a GPU of its own or a share of the cores."""
    if gpu is None:
        torch.set_num_threads(max(1, torch.get_num_threads() // workers))
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # read when CUDA starts, which importing does not do
    worker = Worker()
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        worker.run(job)
        connection.send(None)
