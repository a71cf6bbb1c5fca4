"""The thread that makes the panel's videos: one at a time, with networks that stay loaded in between."""

import html
import queue
import threading
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

from talkinghead_lab.errors import Stopped, TalkingHeadError
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.pipeline.encoder_cache import EncoderCache
from talkinghead_lab.pipeline.request import checkpoint_files, read_inputs
from talkinghead_lab.runs.generate import Progress, generate
from talkinghead_lab.runs.worker import Worker

State = Literal["loading", "running", "finished", "stopped", "failed"]


@dataclass(eq=False)
class Job:
    """One video under way, or what became of it.

    Args:
        params: the request.
        folder: the run's folder.
        progress: of the last finished step; None before the first.
        seconds: what it took, once it has ended.
        problem: in words, where it failed; `details`: where in the code, if the problem was not foreseen.
    """

    params: GenerationParams
    folder: Path
    state: State = "loading"
    progress: Progress | None = None
    problem: str = ""
    details: str = ""
    begun: float = field(default_factory=time.monotonic)
    stop: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    seconds: float = 0.0
    _first_step: tuple[float, int] | None = None

    @property
    def fraction(self) -> float:
        """Finished share of the sampling steps of all chunks."""
        steps = self.progress.chunks * self.progress.steps if self.progress else 0
        return self._steps_done / steps if steps else 0.0

    @property
    def seconds_left(self) -> float | None:
        """At the pace since the first step; None: not known yet."""
        if self.progress is None or self._first_step is None or self._steps_done <= self._first_step[1]:
            return None
        since, first = self._first_step
        steps = self.progress.chunks * self.progress.steps
        return (time.monotonic() - since) / (self._steps_done - first) * (steps - self._steps_done)

    def stepped(self, progress: Progress) -> bool:
        """Note progress; False where the job is to stop."""
        self.progress, self.state = progress, "running"
        if self._first_step is None:
            self._first_step = (time.monotonic(), self._steps_done)
        return not self.stop.is_set()

    @property
    def _steps_done(self) -> int:
        return (self.progress.chunk - 1) * self.progress.steps + self.progress.step if self.progress else 0


class GenerationThread(threading.Thread):
    """Makes one video at a time.

    There is one for a process, found among its threads: a panel that is shown again meets the video under way
    and the loaded networks instead of a second set of them.
    """

    def __init__(self) -> None:
        super().__init__(name="talkinghead_lab generation", daemon=True)
        self.job: Job | None = None
        self._given: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._networks = Worker()

    @classmethod
    def of_this_process(cls) -> Self:
        """The thread that runs already, or a new one."""
        for thread in threading.enumerate():
            if isinstance(thread, cls):
                return thread
        thread = cls()
        thread.start()
        return thread

    @property
    def busy(self) -> bool:
        """Whether a video is being made."""
        return self.job is not None and not self.job.ended.is_set()

    def submit(self, params: GenerationParams, folder: Path) -> Job:
        """Begin a video, or continue the unfinished run of the folder; where one is under way, give that."""
        if self.job is None or not self.busy:
            self.job = Job(params, folder)
            self._given.put(self.job)
        return self.job

    def run(self) -> None:
        """Make what is submitted, until the process ends."""
        while True:
            job = self._given.get()
            self._make(job)
            job.seconds = time.monotonic() - job.begun
            job.ended.set()

    def _make(self, job: Job) -> None:
        try:
            inputs = read_inputs(job.params)  # before weights are loaded
            pipeline = self._networks.load(job.params)
            if job.stop.is_set():
                raise Stopped("the run was stopped")
            cache = EncoderCache.of(checkpoint_files(job.params), pipeline.device)
            generate(
                job.params,
                job.folder,
                inputs=inputs,
                pipeline=pipeline,
                encoder_cache=cache,
                on_progress=job.stepped,
                show_progress=False,
            )
            job.state = "finished"
        except Stopped:
            job.state = "stopped"
        except Exception as error:  # the thread outlives whatever a run raises
            job.state, job.problem = "failed", str(error)
            if not isinstance(error, TalkingHeadError):
                job.problem = f"{type(error).__name__}: {error}"
                job.details = traceback.format_exc()


def status_html(job: Job) -> str:
    """How far a job is, in words."""
    if job.state == "failed":
        details = f"<details><summary>Details</summary><pre>{html.escape(job.details)}</pre></details>"
        return f'<span class="thl-error">{html.escape(job.problem)}</span>{details if job.details else ""}'
    if job.state == "finished":
        return f"Finished in {in_words(job.seconds)}"
    if job.state == "stopped" and not job.folder.exists():
        return "Stopped before anything was made."
    if job.state == "stopped":
        return "Stopped. Its finished chunks are kept: “Continue” below goes on."
    if job.stop.is_set():
        return "Stopping after this step …"
    if job.progress is None:
        return "Reading the inputs, loading the networks …"
    if job.fraction == 1:
        return "Decoding, writing the video, measuring it …"
    progress = job.progress
    left = job.seconds_left
    known = f" · about {in_words(left)} left" if left is not None else ""
    return f"Chunk {progress.chunk} of {progress.chunks} · step {progress.step} of {progress.steps}{known}"


def in_words(seconds: float) -> str:
    """A length of time for people."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
