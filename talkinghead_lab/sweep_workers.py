"""Runs the cells of a sweep: in this process, in one process for each GPU, or on a Ray cluster."""

import json
import multiprocessing
import os
import queue
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from talkinghead_lab.encoder_cache import EncoderCache
from talkinghead_lab.errors import MissingExtra, Stopped
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
    "device",
    "speakers",
)


@dataclass(frozen=True)
class Job:
    """One cell to run, and where."""

    params: GenerationParams
    run_dir: Path

    @property
    def failure(self) -> Path:
        """Where it is written down that, and why, the cell failed."""
        return self.run_dir.with_name(f"{self.run_dir.name}.error.json")

    def record_failure(self, error: str, details: str) -> None:
        """Write down why the cell failed."""
        self.failure.parent.mkdir(parents=True, exist_ok=True)
        content = json.dumps({"error": error, "details": details}, indent=1, ensure_ascii=False)
        with atomic_path(self.failure, overwrite=True) as temporary:
            temporary.write_text(content + "\n", encoding="utf-8")


@dataclass
class Worker:
    """Runs one job after another; networks are loaded once for all jobs that agree on them."""

    loaded_for: tuple[Any, ...] | None = field(default=None, init=False)
    pipeline: Pipeline | None = field(default=None, init=False)

    def run(self, job: Job) -> None:
        """Run a job; an error is written down and ends this job only."""
        try:
            pipeline = self._load(job.params)
            cache = EncoderCache.of(job.params, pipeline.device)
            generate(job.params, job.run_dir, pipeline=pipeline, encoder_cache=cache, show_progress=False)
        except Stopped:
            raise
        except Exception as error:
            job.record_failure(f"{type(error).__name__}: {error}", traceback.format_exc())

    def _load(self, params: GenerationParams) -> Pipeline:
        wanted = tuple(getattr(params, name) for name in OF_LOADING)
        if self.pipeline is None or self.loaded_for != wanted:
            self.pipeline = None  # gives its memory back before the next is loaded
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self.pipeline, self.loaded_for = Pipeline.load(params), wanted
        return self.pipeline


def run_jobs(jobs: list[Job], workers: int, ray_address: str | None, show_progress: bool) -> None:
    """Run jobs, those that share their networks in a row.

    Args:
        jobs: what to run.
        workers, ray_address: see `sweeps.run_sweep`.
        show_progress: draw a progress bar.
    """
    jobs = sorted(jobs, key=lambda job: str([getattr(job.params, name) for name in OF_LOADING]))
    workers = min(workers or torch.cuda.device_count() or 1, len(jobs))
    with tqdm(total=len(jobs), unit="run", disable=not show_progress) as bar:
        if ray_address is not None and jobs:
            _run_on_ray(jobs, ray_address, bar.update)
        elif workers > 1:
            _run_in_processes(jobs, workers, bar.update)
        else:
            worker = Worker()
            for job in jobs:
                worker.run(job)
                bar.update()


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
                job.record_failure(f"the worker died with status {self.process.exitcode}", "")
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


def _run_on_ray(jobs: list[Job], address: str, done: Callable[[], object]) -> None:
    raise MissingExtra("no Ray", received=address)
