"""The state of one generation: its steps, the time left, and how it ends."""

import subprocess
import sys
import threading
import time

import pytest

from talkinghead_lab.errors import OutputError, Stopped
from talkinghead_lab.runs.jobs import GenerationJob, Progress


def test_steps_count_all_chunks():
    job = GenerationJob(params=None)
    assert job.fraction == 0
    job.report(Progress(chunk=2, chunks=4, step=3, steps=10))
    assert (job.progress.steps_done, job.progress.steps_total) == (13, 40)


def test_the_time_left_is_at_least_a_second_until_the_job_ends(monkeypatch):
    job = GenerationJob(params=None)
    job.begin()
    assert job.seconds_left is None
    for left, shown in ((7.3, 7.3), (0.0, 1.0)):
        monkeypatch.setattr(job.time_left, "seconds", lambda left=left: left)
        assert job.seconds_left == shown
    assert job.fraction < 1
    job.end()
    assert (job.seconds_left, job.fraction) == (0, 1)


def test_stop_is_returned_by_the_next_report():
    job = GenerationJob(params=None)
    assert job.report(Progress(1, 1, 1, 2)) is True
    job.stop.set()
    assert job.report(Progress(1, 1, 2, 2)) is False


@pytest.mark.parametrize(
    ("error", "state"),
    [(None, "finished"), (Stopped("stopped"), "stopped"), (OutputError("no space"), "failed"),
     (SystemExit(1), "failed"), (KeyboardInterrupt(), "stopped")],
)  # fmt: skip
def test_the_error_decides_the_final_state(error, state):
    job = GenerationJob(params=None)
    assert (job.state, job.seconds) == ("waiting", 0)
    job.begin()
    assert job.state == "running"
    time.sleep(0.01)
    job.end(error)
    assert job.state == state
    assert job.created <= job.started < job.ended
    assert job.seconds == job.ended - job.started


def test_wait_returns_when_the_job_is_done():
    job = GenerationJob(params=None)
    assert job.wait(0) is False
    assert not job.is_done
    threading.Timer(0.05, job.done.set_result, [None]).start()
    assert job.wait(10) is True
    assert job.is_done


def test_importing_the_module_does_not_import_torch():
    code = "import sys, talkinghead_lab.runs.jobs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
