"""Jobs in a bounded queue: one runs at a time, in a thread of its own; the others wait in order."""

import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from talkinghead_lab.errors import Stopped
from talkinghead_lab.runs.jobs import GenerationJob
from talkinghead_lab.service.problems import Problem, busy, problem_of

LOG = logging.getLogger(__name__)
KEPT_JOBS = 200  # ended jobs that can still be asked about


@dataclass(eq=False, kw_only=True)
class QueuedJob(GenerationJob):
    """A generation in the queue; `result` is the answer, `problem` the reason for which there is none."""

    id: str
    result: dict[str, Any] | None = None
    problem: Problem | None = None


class JobQueue:
    """The queue, and what became of the jobs that left it.

    Args:
        work: makes the video of a job and returns its answer; runs in this queue's thread.
        idle: called in that thread when nothing came for `idle_seconds`.
        ended: called in that thread after each job.
        length: jobs that may wait beside the running one.
    """

    def __init__(
        self,
        work: Callable[[QueuedJob], dict[str, Any]],
        idle: Callable[[], None],
        ended: Callable[[QueuedJob, BaseException | None], None],
        length: int,
        idle_seconds: float,
    ):
        self._work, self._idle, self._ended = work, idle, ended
        self._length, self._idle_seconds = length, idle_seconds
        self._waiting: deque[QueuedJob] = deque()
        self._known: OrderedDict[str, QueuedJob] = OrderedDict()
        self._running: QueuedJob | None = None
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="generation", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def close(self, timeout: float) -> None:
        """Stop every job and wait for the running one to notice."""
        with self._changed:
            self._closed = True
            jobs = [*self._waiting, *filter(None, [self._running])]
            self._changed.notify_all()
        for job in jobs:
            self.stop(job.id)
        if self._thread.is_alive():
            self._thread.join(timeout)

    def check_room(self) -> None:
        """Refuse early what `submit` would refuse.

        Raises:
            Problem: 503, the queue is full.
        """
        with self._changed:
            if self._closed:
                raise busy("The service is shutting down.")
            if len(self._waiting) + (self._running is not None) > self._length:
                raise busy(f"{self._length} requests wait already. Ask again later.")

    def submit(self, job: QueuedJob) -> None:
        """Put a job at the end of the queue.

        Raises:
            Problem: 503, the queue is full.
        """
        with self._changed:
            self.check_room()
            self._waiting.append(job)
            self._known[job.id] = job
            for old in [key for key, known in self._known.items() if known.ended][:-KEPT_JOBS]:
                del self._known[old]
            self._changed.notify_all()

    def stop(self, job_id: str) -> QueuedJob | None:
        """Stop a job: at once where it waits, after its current step where it runs. None: no such job."""
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
        """A job by its name."""
        with self._changed:
            return self._known.get(job_id)

    def all(self) -> list[QueuedJob]:
        """Every job that is known, oldest first."""
        with self._changed:
            return list(self._known.values())

    def position(self, job: QueuedJob) -> int:
        """How many jobs go before a waiting one; 0 for any other."""
        with self._changed:
            if job not in self._waiting:
                return 0
            return self._waiting.index(job) + (self._running is not None)

    def depth(self) -> tuple[int, int]:
        """How many wait, how many run."""
        with self._changed:
            return len(self._waiting), int(self._running is not None)

    def _serve(self) -> None:
        while not self._closed:
            job = self._next()
            if job is None:
                self._idle()
                continue
            error: BaseException | None = None
            try:
                if job.stop.is_set():
                    raise Stopped("the run was stopped")
                job.result = self._work(job)
            except BaseException as raised:  # the thread outlives whatever a run raises
                error = raised
            with self._changed:
                self._running = None
            self._end(job, error)

    def _next(self) -> QueuedJob | None:
        """The job whose turn it is; None where none came for `idle_seconds`, or the queue is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed, self._idle_seconds)
            if self._closed or not self._waiting:
                return None
            job = self._running = self._waiting.popleft()
            job.begin()
            return job

    def _end(self, job: QueuedJob, error: BaseException | None) -> None:
        if error is not None:
            job.problem = problem_of(error)
        job.end(error)
        try:
            self._ended(job, error)
        except Exception:
            LOG.exception("after a job")
        finally:
            job.done.set_result(None)
