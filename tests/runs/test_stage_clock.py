"""A stage's seconds and peak memory are its own."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.torch import load_file

from talkinghead_lab.__main__ import main
from talkinghead_lab.pipeline.plan import plan
from talkinghead_lab.runs.stage_clock import StageClock


def test_stages_add_up_and_each_has_its_own_peak():
    clock = StageClock()
    with clock("large"):
        held = np.ones(40_000_000)  # 0.298 GiB
    del held
    for _ in range(2):
        with clock("small"):
            time.sleep(0.05)
    assert clock.stages["small"]["seconds"] == pytest.approx(0.1, abs=0.05)
    difference = clock.stages["large"]["peak_host_gib"] - clock.stages["small"]["peak_host_gib"]
    assert difference == pytest.approx(0.298, abs=0.02)


def test_the_weights_of_a_plan_are_those_of_the_files(request_for, checkpoint):
    planned = plan(request_for(device="cpu"))
    file = checkpoint / "ckpt_dir" / "Wan2.1_VAE.safetensors"
    size = sum(4 * tensor.numel() for tensor in load_file(file).values())
    assert planned.weights_gib["video autoencoder"] == pytest.approx(size / 2**30, rel=0.01)
    assert planned.needed_gib == pytest.approx(sum(planned.weights_gib.values()) + planned.work_gib)
    assert plan(request_for(device="cpu", precision="int8")).needed_gib < planned.needed_gib


def test_what_does_not_fit_is_told(request_for, tmp_path, capsys):
    path = tmp_path / "params.yaml"
    path.write_text(request_for(device="cpu", frame_size="32x32").to_yaml())
    assert main(["plan", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fits"] is True
    path.write_text(request_for(device="cpu", frame_size="3200x3200").to_yaml())
    assert main(["plan", str(path)]) == 1
    assert capsys.readouterr().out.startswith("does not fit\n")


@pytest.mark.slow
def test_a_plan_foresees_the_peak(request_for, tmp_path):
    """A size between those that the model was fitted to, in a process of its own."""
    params = request_for(frame_size="224x192", chunk_frames=41, max_frames=41, device="cpu")
    path = tmp_path / "params.yaml"
    path.write_text(params.to_yaml())
    command = [sys.executable, "-m", "talkinghead_lab", "generate", str(path), "--run", str(tmp_path / "run")]
    subprocess.run(command, check=True, capture_output=True)
    stages = json.loads((tmp_path / "run" / "run.json").read_text())["stages"].values()
    measured = max(stage["peak_host_gib"] for stage in stages)
    assert plan(params).needed_gib == pytest.approx(measured, rel=0.1)
