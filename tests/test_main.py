"""The shell command: stopped by Ctrl-C, and in a Python without the dependencies."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from talkinghead_lab.media import video


def test_ctrl_c_keeps_finished_chunks_and_the_run_resumes(request_for, tmp_path):
    request, run = tmp_path / "params.yaml", tmp_path / "run"
    request.write_text(request_for(diffusion_steps=10, max_frames=17).to_yaml())
    command = [sys.executable, "-m", "talkinghead_lab", "generate", str(request), "--run", str(run)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(run.glob("chunks/*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (130, ""), errors
    assert "Traceback" not in errors
    assert "stay in the run's folder" in errors
    assert not list(run.glob("*.mp4"))
    assert not list(run.rglob("*.partial*"))
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert video.probe(done.stdout.strip()).frame_count == 17


@pytest.mark.parametrize("command", ["generate", "plan"])
def test_without_the_environment_one_line_says_what_to_do(command):
    """`-S` leaves out site-packages, as a shell does in which the environment was not activated."""
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-S", "-m", "talkinghead_lab", command, "params/embedded.yaml"],
        cwd=root,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("talkinghead_lab: the package '")
    assert line.endswith(
        "is not installed in this Python. Run `make setup`, then `source .venv/bin/activate`."
    )
