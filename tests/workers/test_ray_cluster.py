"""A sweep on a Ray cluster gives the results of one machine, even if a worker is killed."""

import threading
import time
from contextlib import suppress

import psutil
import pytest

from talkinghead_lab.errors import MissingExtra, NoSpaceLeft
from talkinghead_lab.sweeps.definition import Sweep
from talkinghead_lab.sweeps.sweep import run_sweep
from talkinghead_lab.workers.ray_cluster import run_on_ray


def kill_a_worker_at_work(killed: list[int]) -> None:
    """SIGKILL a worker that is running a job."""
    until = time.monotonic() + 60
    while time.monotonic() < until and not killed:
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                if not killed and "RemoteWorker.run" in " ".join(process.cmdline()):
                    process.kill()
                    killed.append(process.pid)
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_sweep_on_two_workers_of_which_one_is_killed(request_for, tmp_path):
    base = request_for(max_frames=9).model_dump(mode="json", exclude_defaults=True)
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF")
    sweep = Sweep.from_sections(
        {"base": base, "axes": {}, "seeds": [1, 2, 3], "recordings": [base["audio_path"], str(broken)]}
    )
    here = run_sweep(sweep, tmp_path / "here", show_progress=False)
    killed: list[int] = []
    killer = threading.Thread(target=kill_a_worker_at_work, args=(killed,))
    try:
        killer.start()
        there = run_sweep(sweep, tmp_path / "there", ray_address="auto", show_progress=False)
    finally:
        killer.join()
    assert len(killed) == 1
    assert there["state"].to_list() == ["finished", "failed"] * 3
    same = ["cell", "error", "sharpness", "motion"]
    assert there.select(same).equals(here.select(same))


class Full:
    """A task for which the disk of its machine has no room."""

    def moved(self, folder):
        return self

    def run(self, worker):
        raise NoSpaceLeft("no space left", received="/tmp")


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_full_disk_of_a_machine_ends_the_work(tmp_path):
    done: list[int] = []
    with pytest.raises(NoSpaceLeft, match="no space left"):
        run_on_ray([Full()] * 3, "auto", lambda: done.append(1))
    assert done == []


def test_without_ray_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"talkinghead_lab\[cluster\]"):
        run_on_ray([], "local", lambda: None)
