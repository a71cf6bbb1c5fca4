"""The queue by itself: order, bounds, stopping, and a thread that outlives what its jobs raise."""

import threading
import time

import pytest

from talkinghead_lab.errors import OutputError, Stopped
from talkinghead_lab.service.jobs import Job, Jobs
from talkinghead_lab.service.problems import Problem, problem_of

NOTHING = {"frame_count": 0}


class Desk:
    """A queue whose jobs wait until they are let go."""

    def __init__(self, length: int = 3, idle_seconds: float = 60):
        self.order: list[str] = []
        self.ended: list[tuple[str, str]] = []
        self.idle = threading.Event()
        self.go = threading.Semaphore(0)
        self.jobs = Jobs(self.work, self.idle.set, self.after, length, idle_seconds)
        self.jobs.start()

    def work(self, job: Job) -> dict:
        self.order.append(job.id)
        while not self.go.acquire(timeout=0.01):
            if not job.stepped(1, 2):
                raise Stopped("the run was stopped")
        if job.params is not None:
            raise job.params
        return NOTHING

    def after(self, job: Job, error: BaseException | None) -> None:
        self.ended.append((job.id, job.state))

    def submit(self, name: str, raises: BaseException | None = None) -> Job:
        job = Job(name, raises)
        self.jobs.submit(job)
        return job


@pytest.fixture
def desk():
    desk = Desk()
    yield desk
    desk.jobs.close(5)


def until(condition) -> None:
    limit = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.005)


def test_jobs_run_one_at_a_time_in_order(desk):
    jobs = [desk.submit(name) for name in "abc"]
    until(lambda: desk.order == ["a"])
    assert [desk.jobs.position(job) for job in jobs] == [0, 1, 2]
    assert desk.jobs.depth() == (2, 1)
    desk.go.release(3)
    for job in jobs:
        job.done.result(5)
    assert desk.ended == [("a", "finished"), ("b", "finished"), ("c", "finished")]


def test_one_more_than_the_queue_holds_is_refused(desk):
    for name in "abcd":
        desk.submit(name)
        until(lambda: desk.order == ["a"])
    with pytest.raises(Problem) as refused:
        desk.submit("e")
    assert refused.value.status == 503 and refused.value.headers["Retry-After"]


def test_stopping_a_waiting_and_a_running_job(desk):
    running, waiting = desk.submit("a"), desk.submit("b")
    until(lambda: desk.order == ["a"])
    assert desk.jobs.stop("b") is waiting and waiting.state == "stopped"
    desk.jobs.stop("a")
    running.done.result(5)
    assert running.state == "stopped" and desk.order == ["a"]
    assert desk.jobs.stop("a") is running, "again is no harm"
    assert desk.jobs.stop("z") is None


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("/secret/path"), 500), (SystemExit(3), 500), (MemoryError(), 503),
        (RuntimeError("CUDA out of memory."), 503), (OSError(28, "No space left"), 507),
        (OutputError("cannot be written", received="/secret"), 500),
    ],
)  # fmt: skip
def test_the_queue_outlives_what_a_job_raises(desk, error, status):
    desk.go.release(2)
    job = desk.submit("a", error)
    job.done.result(5)
    assert job.state == "failed" and job.problem.status == status
    assert "/" not in job.problem.detail
    desk.submit("b").done.result(5)


def test_an_error_s_cause_decides():
    with pytest.raises(OutputError) as caught:
        raise OutputError("the video cannot be written") from MemoryError()
    assert problem_of(caught.value).status == 503


def test_idleness_is_told():
    desk = Desk(idle_seconds=0.05)
    assert desk.idle.wait(5)
    desk.jobs.close(5)


def test_closing_stops_everything_and_refuses_more():
    desk = Desk()
    jobs = [desk.submit(name) for name in "ab"]
    until(lambda: desk.order == ["a"])
    desk.jobs.close(5)
    assert [job.state for job in jobs] == ["stopped", "stopped"]
    with pytest.raises(Problem, match="shutting down"):
        desk.submit("c")


def test_time_left_follows_the_pace():
    job = Job("a", None, state="running")
    assert job.seconds_left is None
    job.stepped(1, 11)
    assert job.seconds_left is None, "one step shows no pace"
    job.first_step = (time.time() - 10, 1)
    job.stepped(6, 11)
    assert job.seconds_left == pytest.approx(10, abs=0.5)
