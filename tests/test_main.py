"""The shell command, stopped by Ctrl-C."""

import signal
import subprocess
import sys
import time

from talkinghead_lab.media import video


def test_ctrl_c_keeps_what_is_finished(request_for, tmp_path):
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
    assert "Traceback" not in errors and "stays in the run's folder" in errors
    assert not list(run.glob("*.mp4")) and not list(run.rglob("*.partial*"))
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert video.probe(done.stdout.strip()).frame_count == 17
