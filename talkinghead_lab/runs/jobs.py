"""The state of one generation under way, shared by the notebook panel and the HTTP service.

Importing this module does not import torch, so the service can start without it.
"""

import threading
import time
from concurrent import futures
from dataclasses import dataclass, field
from typing import Literal

from talkinghead_lab.errors import Stopped
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.runs.time_left import TimeLeft

# In a run's folder: copies of its media while it is under way, if the caller puts them there.
INPUTS = "inputs"
# Likewise, while it is under way: what is finished of the video, to be played as it grows.
GROWING = "chunks/growing.mp4"
State = Literal["waiting", "running", "finished", "failed", "stopped"]


@dataclass(frozen=True)
class Progress:
    """How far a run is: `step` of `steps` in chunk `chunk` of `chunks`, all counted from 1."""

    chunk: int
    chunks: int
    step: int
    steps: int

    @property
    def steps_done(self) -> int:
        """Finished sampling steps of all chunks."""
        return (self.chunk - 1) * self.steps + self.step

    @property
    def steps_total(self) -> int:
        """Sampling steps of all chunks."""
        return self.chunks * self.steps


@dataclass(eq=False, kw_only=True)
class GenerationJob:
    """One generation, from its submission to its end.

    Args:
        params: the request.
        state: `waiting` until `begin`, `running` until `end`.
        progress: the last finished step; None before the first.
        warnings: of the request, known once its media have been read.
        created, started, ended: seconds since 1970; None: not yet.
        time_left: to be handed to `generate(time_left=...)`.
        stop: set it to stop the job after its current step.
        done: resolved by the owner of the job, after `end` and its own clean-up.
    """

    params: GenerationParams
    state: State = "waiting"
    progress: Progress | None = None
    warnings: tuple[str, ...] = ()
    created: float = field(default_factory=time.time)
    started: float | None = None
    ended: float | None = None
    time_left: TimeLeft = field(default_factory=TimeLeft)
    stop: threading.Event = field(default_factory=threading.Event)
    done: "futures.Future[None]" = field(default_factory=futures.Future)

    def begin(self) -> None:
        """Mark the job as running."""
        self.state, self.started = "running", time.time()

    def report(self, progress: Progress) -> bool:
        """Record a finished step; returns False if the job is to stop. Fits `generate(on_progress=...)`."""
        self.progress = progress
        return not self.stop.is_set()

    def end(self, error: BaseException | None = None) -> None:
        """Mark the job as finished, or as stopped or failed by `error`."""
        self.ended = time.time()
        if error is None:
            self.state = "finished"
        else:
            self.state = "stopped" if isinstance(error, Stopped | KeyboardInterrupt) else "failed"

    def wait(self, seconds: float | None = None) -> bool:
        """Block until the job is done or `seconds` have passed; returns whether it is done."""
        return bool(futures.wait([self.done], seconds).done)

    @property
    def is_done(self) -> bool:
        """Whether the job has ended and its owner has cleaned up."""
        return self.done.done()

    @property
    def seconds(self) -> float:
        """Duration from start to end; 0 while there is no end."""
        return self.ended - self.started if self.started and self.ended else 0.0

    @property
    def fraction(self) -> float:
        """Finished share of the work, 0 to 1."""
        return 1.0 if self.state == "finished" else self.time_left.fraction()

    @property
    def seconds_left(self) -> float | None:
        """Estimate of the time to the end; None: not known yet."""
        if self.ended:
            return 0.0
        left = self.time_left.seconds()
        return None if left is None else max(1.0, left)
