"""The job queue: order, bounds, stopping, and a thread that survives the errors of its jobs."""

import signal
import subprocess
import sys
import threading
import time

import pytest

from talkinghead_lab.errors import OutputError, Stopped
from talkinghead_lab.runs.jobs import Progress
from talkinghead_lab.service.jobs import JobQueue, QueuedJob
from talkinghead_lab.service.problems import Problem, problem_of
from talkinghead_lab.service.watchdog import EXIT_STATUS

NOTHING = {"frame_count": 0}


class HeldQueue:
    """A queue whose jobs wait for `go`."""

    def __init__(self, length: int = 3, idle_seconds: float = 60, stuck_seconds: float = 60):
        self.order: list[str] = []
        self.ended: list[tuple[str, str]] = []
        self.idle = threading.Event()
        self.go = threading.Semaphore(0)
        self.jobs = JobQueue(self.work, self.idle.set, self.after, length, idle_seconds, stuck_seconds)
        self.jobs.start()

    def work(self, job: QueuedJob) -> dict:
        self.order.append(job.id)
        while not self.go.acquire(timeout=0.01):
            if not job.report(Progress(1, 1, 1, 2)):
                raise Stopped("the run was stopped")
        if job.params is not None:
            raise job.params
        return NOTHING

    def after(self, job: QueuedJob, error: BaseException | None) -> None:
        self.ended.append((job.id, job.state))

    def submit(self, name: str, raises: BaseException | None = None) -> QueuedJob:
        job = QueuedJob(id=name, params=raises)
        self.jobs.submit(job)
        return job


@pytest.fixture
def held():
    held = HeldQueue()
    yield held
    held.jobs.close(5)


def until(condition) -> None:
    limit = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.005)


def test_jobs_run_one_at_a_time_in_order(held):
    jobs = [held.submit(name) for name in "abc"]
    until(lambda: held.order == ["a"])
    assert [held.jobs.position(job) for job in jobs] == [0, 1, 2]
    assert held.jobs.depth() == (2, 1)
    held.go.release(3)
    for job in jobs:
        job.done.result(5)
    assert held.ended == [("a", "finished"), ("b", "finished"), ("c", "finished")]


def test_a_full_queue_rejects_a_job(held):
    for name in "abcd":
        held.submit(name)
        until(lambda: held.order == ["a"])
    with pytest.raises(Problem) as refused:
        held.submit("e")
    assert refused.value.status == 503
    assert refused.value.headers["Retry-After"]


def test_stopping_a_waiting_and_a_running_job(held):
    running, waiting = held.submit("a"), held.submit("b")
    until(lambda: held.order == ["a"])
    assert held.jobs.stop("b") is waiting
    assert waiting.state == "stopped"
    held.jobs.stop("a")
    running.done.result(5)
    assert running.state == "stopped"
    assert held.order == ["a"]
    assert held.jobs.stop("a") is running, "stopping twice is harmless"
    assert held.jobs.stop("z") is None


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("/secret/path"), 500), (SystemExit(3), 500), (MemoryError(), 503),
        (RuntimeError("CUDA out of memory."), 503), (OSError(28, "No space left"), 507),
        (OutputError("cannot be written", received="/secret"), 500),
    ],
)  # fmt: skip
def test_the_queue_survives_the_error_of_a_job(held, error, status):
    held.go.release(2)
    job = held.submit("a", error)
    job.done.result(5)
    assert job.state == "failed"
    assert job.problem.status == status
    assert "/" not in job.problem.detail
    held.submit("b").done.result(5)


def test_the_cause_of_an_error_decides_the_status():
    error = OutputError("the video cannot be written")
    assert problem_of(error).status == 500
    error.__cause__ = MemoryError()
    assert problem_of(error).status == 503


def test_the_idle_callback_is_called():
    held = HeldQueue(idle_seconds=0.05)
    assert held.idle.wait(5)
    held.jobs.close(5)


def test_closing_stops_all_jobs_and_rejects_new_ones():
    held = HeldQueue()
    jobs = [held.submit(name) for name in "ab"]
    until(lambda: held.order == ["a"])
    held.jobs.close(5)
    assert [job.state for job in jobs] == ["stopped", "stopped"]
    with pytest.raises(Problem, match="shutting down"):
        held.submit("c")


def test_an_error_of_the_idle_callback_does_not_end_the_thread(held, monkeypatch):
    called = threading.Event()

    def fail() -> None:
        called.set()
        raise RuntimeError("CUDA error")

    monkeypatch.setattr(held.jobs, "_idle", fail)
    monkeypatch.setattr(held.jobs, "_idle_seconds", 0.01)
    held.go.release(2)
    held.submit("a").done.result(5)
    assert called.wait(5)
    held.submit("b").done.result(5)
    assert held.jobs.trouble() is None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_has_ended_is_trouble(held, monkeypatch):
    assert held.jobs.trouble() is None

    def end(*given: object) -> None:
        raise SystemExit

    monkeypatch.setattr(held.jobs, "_ended", end)
    held.go.release()
    held.submit("a")
    until(lambda: held.jobs.trouble() is not None)
    assert "has ended" in held.jobs.trouble()


def test_a_job_without_progress_is_trouble_and_one_with_progress_or_none_is_not():
    held = HeldQueue(stuck_seconds=0.2)
    held.submit("a")  # reports every 0.01 s
    time.sleep(0.5)
    assert held.jobs.trouble() is None
    held.go.release()
    until(lambda: held.ended)
    time.sleep(0.4)
    assert held.jobs.trouble() is None, "waiting for jobs is no trouble"
    held.work, go = lambda job: go.wait(5) and NOTHING, threading.Event()
    held.jobs._work = held.work
    held.submit("b")
    until(lambda: held.jobs.trouble() is not None)
    assert held.jobs.trouble() == "there has been no progress for 0.2 seconds"
    go.set()
    until(lambda: held.jobs.trouble() is None)
    held.jobs.close(5)
    assert held.jobs.trouble() is None, "nor is the end"


def test_places_are_kept_while_requests_are_checked():
    held = HeldQueue(length=1)
    with (
        held.jobs.place(),
        held.jobs.place(),
        pytest.raises(Problem, match="queue is full"),
        held.jobs.place(),
    ):
        pass
    with held.jobs.place():
        held.submit("a")
    held.jobs.close(5)


def test_a_queue_that_gives_up_ends_all_jobs_with_503_and_accepts_no_other():
    held, go = HeldQueue(), threading.Event()
    held.jobs._work = lambda job: go.wait(5) and NOTHING
    jobs = [held.submit(name) for name in "ab"]
    until(lambda: jobs[0].state == "running")
    held.jobs.give_up()
    assert all(job.wait(1) for job in jobs)
    assert [(job.state, job.problem.status) for job in jobs] == [("failed", 503)] * 2
    assert int(jobs[1].problem.headers["Retry-After"]) > 0
    with pytest.raises(Problem, match="shutting down"):
        held.submit("c")
    go.set()
    held.jobs.close(5)
    assert (jobs[0].state, held.ended) == ("failed", []), "what the thread still did is not reported"


def test_the_watchdog_gives_up_and_ends_the_process():
    script = (
        "import logging, time; logging.basicConfig(format='%(message)s %(reason)s')\n"
        "from talkinghead_lab.service.watchdog import watch\n"
        "reasons = iter([None, None, 'stuck'])\n"
        "watch(lambda: next(reasons), lambda: print('given up'), 0.01, 0.01); time.sleep(30)"
    )
    done = subprocess.run([sys.executable, "-uc", script], capture_output=True, text=True, timeout=20)
    assert done.returncode == EXIT_STATUS != 0
    assert (done.stdout, done.stderr) == ("given up\n", "the process ends, to be restarted stuck\n")


def test_a_pause_of_the_whole_process_is_no_trouble():
    """The process is stopped for longer than a job may be silent, as `docker pause` does."""
    script = (
        "import time; from talkinghead_lab.service import watchdog\n"
        "from talkinghead_lab.service.jobs import JobQueue, QueuedJob\n"
        "watchdog.PAUSE_SECONDS = 0.5\n"
        "jobs = JobQueue(lambda job: time.sleep(30), lambda: None, lambda *given: None, 3, 60, 3)\n"
        "jobs.start(); jobs.submit(QueuedJob(id='a', params=None))\n"
        "watchdog.watch(jobs.trouble, jobs.give_up, 0.1, 0.1, lambda: (jobs.resumed(), print('resumed')))\n"
        "print('ready'); time.sleep(30)"
    )
    process = subprocess.Popen([sys.executable, "-uc", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(4)
    process.send_signal(signal.SIGCONT)
    assert process.stdout.readline() == "resumed\n"
    resumed = time.monotonic()
    assert process.wait(20) == EXIT_STATUS, "it is stuck all the same"
    assert time.monotonic() - resumed > 2
