"""A sweep on a Ray cluster gives the results of one machine, even if a worker is killed."""

import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from talkinghead_lab.errors import MissingExtra
from talkinghead_lab.sweeps.definition import Sweep
from talkinghead_lab.sweeps.ray_cluster import run_on_ray
from talkinghead_lab.sweeps.sweep import run_sweep

pytestmark = pytest.mark.slow


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


def start(ray) -> None:
    """Start a cluster of this machine; on a busy one Ray's own 15 seconds for its agent can be too short."""
    for attempts_left in (2, 1, 0):
        try:
            ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
            return
        except Exception:
            ray.shutdown()
            if not attempts_left:
                raise


def test_a_sweep_on_two_workers_of_which_one_is_killed(request_for, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    root = Path(__file__).parents[2]
    (tmp_path / "token").write_text("0" * 64)
    settings = {
        "PYTHONPATH": str(root),
        "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token"),  # not in the user's home
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    base = request_for(max_frames=9).model_dump(mode="json", exclude_defaults=True)
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF")
    sweep = Sweep.from_sections(
        {"base": base, "axes": {}, "seeds": [1, 2, 3], "recordings": [base["audio_path"], str(broken)]}
    )
    here = run_sweep(sweep, tmp_path / "here", show_progress=False)
    start(ray)
    killed: list[int] = []
    killer = threading.Thread(target=kill_a_worker_at_work, args=(killed,))
    try:
        killer.start()
        there = run_sweep(sweep, tmp_path / "there", ray_address="auto", show_progress=False)
    finally:
        killer.join()
        ray.shutdown()
    assert len(killed) == 1
    assert there["state"].to_list() == ["finished", "failed"] * 3
    same = ["cell", "error", "sharpness", "motion"]
    assert there.select(same).equals(here.select(same))


def test_without_ray_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"talkinghead_lab\[cluster\]"):
        run_on_ray([], "local", lambda: None)
