"""Runs tasks one after another with networks that stay loaded."""

import gc
import json
import shutil
import threading
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Protocol, Self

from talkinghead_lab.errors import FolderLocked, NoSpaceLeft
from talkinghead_lab.foundation.files import LOCK, atomic_path, is_no_space, locked
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.pipeline.encoder_cache import EncoderCache
from talkinghead_lab.pipeline.pipeline import Pipeline
from talkinghead_lab.pipeline.request import load_settings
from talkinghead_lab.pipeline.request_media import read_inputs
from talkinghead_lab.runs.folder import RECORD
from talkinghead_lab.runs.generate import generate


@dataclass(frozen=True)
class Failure:
    """Why a job failed: the error in one line, and its traceback."""

    error: str
    details: str = ""


class Task(Protocol):
    """What a worker can do; it travels to the worker's process, or to another machine."""

    @property
    def name(self) -> str:
        """Its name in messages."""
        ...

    def run(self, worker: "Worker") -> None:
        """Do it. A failure of this task alone is recorded; `OutputError` ends the whole work."""
        ...

    def record_failure(self, failure: Failure) -> None:
        """Record that the worker died."""
        ...

    def moved(self, folder: Path) -> Self:
        """The same task with its results in another, empty folder."""
        ...

    def results(self) -> dict[str, bytes]:
        """The files that it left, by name: a failure alone, if there is one."""
        ...

    def collect(self, results: Mapping[str, bytes]) -> None:
        """Store the results of the same task, moved.

        Raises:
            FolderLocked: another process writes there; nothing is stored.
            OutputError: they cannot be written, or are those of other inputs.
        """
        ...


@dataclass(frozen=True)
class Job:
    """A request to run, and its folder."""

    params: GenerationParams
    run_dir: Path

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        return self.run_dir.name

    def run(self, worker: "Worker") -> None:
        """Generate the video, with the networks of a worker."""
        worker.run(self)

    @property
    def failure(self) -> Path:
        """Path of the record of a failure."""
        return self.run_dir.with_name(f"{self.run_dir.name}.error.json")

    @property
    def reason(self) -> str:
        """The error that was recorded, in one line."""
        try:
            return str(json.loads(self.failure.read_text(encoding="utf-8"))["error"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return f"{self.failure.name} is damaged"

    def record_failure(self, failure: Failure) -> None:
        """Record why the job failed."""
        content = json.dumps(asdict(failure), indent=1, ensure_ascii=False)
        self._write_failure(f"{content}\n".encode())

    def _write_failure(self, content: bytes) -> None:
        self.failure.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.failure, overwrite=True) as temporary:
            temporary.write_bytes(content)

    def moved(self, folder: Path) -> Self:
        """The same job in another folder."""
        return replace(self, run_dir=folder / self.run_dir.name)

    def results(self) -> dict[str, bytes]:
        """The files of the finished run, or the record of its failure."""
        files = [self.failure] if self.failure.is_file() else self.run_dir.iterdir()
        return {path.name: path.read_bytes() for path in files}

    def collect(self, results: Mapping[str, bytes]) -> None:
        """Store a finished run, whose record comes last, because it marks the run as finished; or a failure.

        Raises:
            FolderLocked: another process writes this run.
            OutputError: the files cannot be written.
        """
        if self.failure.name in results:
            return self._write_failure(results[self.failure.name])
        self.run_dir.mkdir(parents=True, exist_ok=True)
        with locked(self.run_dir):
            for earlier in self.run_dir.iterdir():  # of an interrupted call
                if earlier.is_dir():
                    shutil.rmtree(earlier)
                elif earlier.name != LOCK:
                    earlier.unlink()
            for name in sorted(results, key=lambda name: name == RECORD):
                with atomic_path(self.run_dir / name) as temporary:
                    temporary.write_bytes(results[name])
        return None


@dataclass
class Worker:
    """Runs jobs one after another; networks stay loaded as long as the jobs need the same ones."""

    pipeline: Pipeline | None = field(default=None, init=False)
    _loading: threading.Thread | None = field(default=None, init=False)

    def begin_to_load(self, request: GenerationParams) -> None:
        """Load the networks of a request in a thread. An error is raised by the job that needs them."""

        def load() -> None:
            with suppress(Exception):
                self._load(request)

        self._loading = threading.Thread(target=load, name="networks", daemon=True)
        self._loading.start()

    def run(self, job: Job) -> None:
        """Run a job. A failure is recorded and ends this job only.

        Raises:
            FolderLocked, NoSpaceLeft: see `attempt`.
            OutputError: the failure cannot be recorded.
        """
        failure = self.attempt(job)
        if failure is not None:
            job.record_failure(failure)

    def attempt(self, job: Job) -> Failure | None:
        """Run a job and return why it failed, if it did.

        Raises:
            FolderLocked: another process writes this run. The job is unfinished, not failed.
            NoSpaceLeft: the job is unfinished, and the next one would not finish either.
        """
        try:
            inputs = read_inputs(job.params)  # before weights are loaded
            pipeline = self.load(job.params)
            assert pipeline.loaded_as
            cache = EncoderCache.of(pipeline.loaded_as.weights, pipeline.device)
            generate(
                job.params,
                job.run_dir,
                inputs=inputs,
                pipeline=pipeline,
                encoder_cache=cache,
                show_progress=False,
            )
        except (FolderLocked, NoSpaceLeft):
            raise
        except Exception as error:
            if is_no_space(error):
                raise NoSpaceLeft(f"no space left ({error})", received=str(job.run_dir)) from None
            return Failure(f"{type(error).__name__}: {error}", traceback.format_exc())
        return None

    def load(self, request: GenerationParams) -> Pipeline:
        """Return the networks of a request; they stay loaded until different ones are needed."""
        if self._loading is not None:
            self._loading.join()
            self._loading = None
        return self._load(request)

    def _load(self, request: GenerationParams) -> Pipeline:
        if self.pipeline is not None and not self.pipeline.fits(load_settings(request)):
            self.release()  # before the next networks are read: two sets may not fit
        if self.pipeline is None:
            self.pipeline = Pipeline.load(request)
        return self.pipeline

    def release(self) -> None:
        """Free the memory of the networks."""
        if self.pipeline is not None:
            self.pipeline.release()
            self.pipeline = None
            gc.collect()  # modules in reference cycles, now that nothing else refers to them
