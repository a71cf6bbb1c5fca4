"""Runs the cells of a sweep on this machine: in this process, or in one process for each GPU."""

import json
import multiprocessing
import os
import queue
import threading
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from talkinghead_lab.encoder_cache import EncoderCache
from talkinghead_lab.files import atomic_path
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.pipeline import Pipeline
from talkinghead_lab.runs import generate

OF_LOADING = (
    "checkpoint",
    "ckpt_dir",
    "wav2vec_dir",
    "infinitetalk_dir",
    "loras",
    "precision",
    "attention",
    "compile_blocks",
    "device",
    "vram_budget_gib",
    "speakers",
)


@dataclass(frozen=True)
class Failure:
    """Why a cell failed: the error in a line, and where it came from."""

    error: str
    details: str = ""


@dataclass(frozen=True)
class Job:
    """One cell to run, and where."""

    params: GenerationParams
    run_dir: Path

    @property
    def failure(self) -> Path:
        """Where it is written down that, and why, the cell failed."""
        return self.run_dir.with_name(f"{self.run_dir.name}.error.json")

    def record_failure(self, failure: Failure) -> None:
        """Write down why the cell failed."""
        self.failure.parent.mkdir(parents=True, exist_ok=True)
        content = json.dumps(asdict(failure), indent=1, ensure_ascii=False)
        with atomic_path(self.failure, overwrite=True) as temporary:
            temporary.write_text(content + "\n", encoding="utf-8")


@dataclass
class Worker:
    """Runs one job after another; networks are loaded once for all jobs that agree on them."""

    loaded_for: tuple[Any, ...] | None = field(default=None, init=False)
    pipeline: Pipeline | None = field(default=None, init=False)

    def run(self, job: Job) -> None:
        """Run a job; an error is written down and ends this job only."""
        failure = self.attempt(job)
        if failure is not None:
            job.record_failure(failure)

    def attempt(self, job: Job) -> Failure | None:
        """Run a job and say why it failed, if it did."""
        try:
            pipeline = self.load(job.params)
            cache = EncoderCache.of(job.params, pipeline.device)
            generate(job.params, job.run_dir, pipeline=pipeline, encoder_cache=cache, show_progress=False)
        except Exception as error:
            return Failure(f"{type(error).__name__}: {error}", traceback.format_exc())
        return None

    def load(self, params: GenerationParams) -> Pipeline:
        """The networks of a request, which stay loaded until others are asked for."""
        wanted = tuple(getattr(params, name) for name in OF_LOADING)
        if self.pipeline is None or self.loaded_for != wanted:
            self.pipeline = None  # gives its memory back before the next is loaded
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self.pipeline, self.loaded_for = Pipeline.load(params), wanted
        return self.pipeline


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
    next one gets a new process."""

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
