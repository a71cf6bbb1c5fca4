"""A bounded job queue: one job runs at a time, in the queue's thread; the others wait in order."""

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from typing import Any

from talkinghead_lab.errors import Stopped
from talkinghead_lab.runs.jobs import GenerationJob, Progress
from talkinghead_lab.service.problems import RESTARTS, Problem, busy, problem_of

LOG = logging.getLogger(__name__)
MAX_ENDED_JOBS = 200  # kept for status requests


@dataclass(eq=False, kw_only=True)
class QueuedJob(GenerationJob):
    """A generation in the queue; once it has ended, `result` or `problem` is set.

    Args:
        id: name of the job and of its run.
        result: of a finished job.
        problem: of any other that has ended.
        heard: when it last reported a step (monotonic clock).
        first_frame: seconds from its start until its first frames could be played; None: not measured.
        callback: URL to tell of its end.
        context: variables of the request, such as its id for the log.
    """

    id: str
    result: dict[str, Any] | None = None
    problem: Problem | None = None
    heard: float = field(default=0.0, init=False)
    first_frame: float | None = None
    callback: str | None = None
    context: Context = field(default_factory=copy_context)

    def report(self, progress: Progress) -> bool:
        """Record a finished step; see `GenerationJob.report`."""
        self.heard = time.monotonic()
        return super().report(progress)


class JobQueue:
    """The queue and its recently ended jobs.

    Args:
        work: runs a job and returns its result; called in the queue's thread.
        idle: called in that thread when no job arrived for `idle_seconds`.
        ended: called after each job, in that thread or in the one that stopped a waiting job.
        length: maximum number of waiting jobs, not counting the running one.
        idle_seconds: see `idle`.
        stuck_seconds: time without a sign of work after which the thread counts as stuck.
    """

    def __init__(
        self,
        work: Callable[[QueuedJob], dict[str, Any]],
        idle: Callable[[], None],
        ended: Callable[[QueuedJob, BaseException | None], None],
        length: int,
        idle_seconds: float,
        stuck_seconds: float = float("inf"),
    ) -> None:
        self._work, self._idle, self._ended = work, idle, ended
        self._length, self._idle_seconds, self._stuck_seconds = length, idle_seconds, stuck_seconds
        self._busy_since: float | None = None  # monotonic clock; None: the thread waits for a job
        self._resumed = 0.0
        self._waiting: deque[QueuedJob] = deque()
        self._known: OrderedDict[str, QueuedJob] = OrderedDict()
        self._running: QueuedJob | None = None
        self._reserved = 0
        self._changed = threading.Condition()
        self._closed = False
        self._given_up = False
        self._thread = threading.Thread(target=self._serve, name="generation", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def is_closed(self) -> bool:
        """Whether jobs are no longer accepted."""
        return self._closed or self._given_up

    def begin_to_close(self) -> None:
        """Accept no other job and stop all, without waiting for the running one."""
        with self._changed:
            self._closed = True
            jobs = [*self._waiting, *filter(None, [self._running])]
            self._changed.notify_all()
        for job in jobs:
            self.stop(job.id)

    def close(self, timeout: float) -> None:
        """Stop all jobs and wait up to `timeout` seconds for the running one."""
        self.begin_to_close()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def give_up(self) -> None:
        """End all jobs at once with 503 and accept no other, as the process is about to end."""
        with self._changed:
            self._given_up = True
            jobs = [*self._waiting, *filter(None, [self._running])]
            self._waiting.clear()
        for job in jobs:
            # Nothing else is tidied: whatever holds up the thread might hold up that, too.
            job.problem = busy(RESTARTS)
            job.end(job.problem)
            job.done.set_result(None)

    @contextmanager
    def place(self) -> Iterator[None]:
        """Keep a place in the queue while a request is checked, so that no more are checked than can wait.

        Raises:
            Problem: 503, the queue is full or closed.
        """
        with self._changed:
            self._check_room()
            self._reserved += 1
        try:
            yield
        finally:
            with self._changed:
                self._reserved -= 1

    def _check_room(self) -> None:
        if self.is_closed:
            raise busy("The service is shutting down.")
        if len(self._waiting) + self._reserved + (self._running is not None) > self._length:
            raise busy(f"The queue is full: {self._length} requests are waiting. Try again later.")

    def submit(self, job: QueuedJob) -> None:
        """Append a job to the queue.

        Raises:
            Problem: 503, the queue is full or closed.
        """
        with self._changed:
            self._check_room()
            self._waiting.append(job)
            self._known[job.id] = job
            for old in [key for key, known in self._known.items() if known.ended][:-MAX_ENDED_JOBS]:
                del self._known[old]
            self._changed.notify_all()

    def stop(self, job_id: str) -> QueuedJob | None:
        """Stop a waiting job immediately, a running one after its current step. None: no such job."""
        with self._changed:
            job = self._known.get(job_id)
            if job is None:
                return None
            job.stop.set()
            waited = job in self._waiting
            if waited:
                self._waiting.remove(job)
        if waited:
            self._end(job, Stopped("the run was stopped"))
        return job

    def get(self, job_id: str) -> QueuedJob | None:
        """The job of this id, if it is known."""
        with self._changed:
            return self._known.get(job_id)

    def all(self) -> list[QueuedJob]:
        """All known jobs, oldest first."""
        with self._changed:
            return list(self._known.values())

    def position(self, job: QueuedJob) -> int:
        """Number of jobs ahead of a waiting job; 0 for any other."""
        with self._changed:
            if job not in self._waiting:
                return 0
            return self._waiting.index(job) + (self._running is not None)

    def depth(self) -> tuple[int, int]:
        """Number of waiting and of running jobs."""
        with self._changed:
            return len(self._waiting), int(self._running is not None)

    def resumed(self) -> None:
        """Count time without progress anew, because the process was paused."""
        self._resumed = time.monotonic()

    def trouble(self) -> str | None:
        """Why jobs are no longer served; None: they are."""
        if self._closed or self._thread.ident is None:
            return None
        if not self._thread.is_alive():
            return "the thread that generates has ended"
        with self._changed:
            since, running = self._busy_since, self._running
        if since is None:
            return None
        silent = time.monotonic() - max(since, self._resumed, running.heard if running else 0.0)
        if silent <= self._stuck_seconds:
            return None
        return f"there has been no progress for {self._stuck_seconds:g} seconds"

    def _serve(self) -> None:
        while not self._closed:
            job = self._next()
            self._busy_since = time.monotonic()
            if job is None:
                try:
                    self._idle()
                except Exception:  # the next job tells whether anything works
                    LOG.exception("the work of an idle service failed")
                continue
            error: BaseException | None = None
            try:
                if job.stop.is_set():
                    raise Stopped("the run was stopped")
                job.result = job.context.run(self._work, job)
            except BaseException as raised:  # the thread survives any error of a job
                error = raised
            with self._changed:
                self._running, self._busy_since = None, time.monotonic()
            self._end(job, error)

    def _next(self) -> QueuedJob | None:
        """Wait for the next job; None if none arrived for `idle_seconds`, or the queue is closed."""
        self._busy_since = None
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed, self._idle_seconds)
            if self._closed or not self._waiting:
                return None
            job = self._running = self._waiting.popleft()
            job.begin()
            return job

    def _end(self, job: QueuedJob, error: BaseException | None) -> None:
        if job.is_done:  # given up
            return
        if error is not None:
            stopped_here = self._closed and isinstance(error, Stopped)
            job.problem = busy(RESTARTS) if stopped_here else problem_of(error)
        job.end(error)
        try:
            job.context.run(self._ended, job, error)
        except Exception:
            LOG.exception("the handler of an ended job failed")
        finally:
            job.done.set_result(None)
