"""The shell command: stopped by Ctrl-C, and in a Python without the dependencies."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from talkinghead_lab.__main__ import main
from talkinghead_lab.bench import command as bench
from talkinghead_lab.bench import lips_only
from talkinghead_lab.commands.parser import parse
from talkinghead_lab.media import video
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.profiling import command as profiling
from talkinghead_lab.training import command as training
from talkinghead_lab.training import presenters, readers, samples


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


@pytest.mark.parametrize(
    "command",
    [
        "talkinghead_lab generate params/embedded.yaml",
        "talkinghead_lab plan params/embedded.yaml",
        "talkinghead_lab.bench",
        "talkinghead_lab.training --help",
        "talkinghead_lab.profiling --help",
    ],
)
def test_without_the_environment_one_line_says_what_to_do(command):
    """`-S` leaves out site-packages, as a shell does in which the environment was not activated."""
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-S", "-m", *command.split()],
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


@pytest.mark.parametrize(
    "text", ["it's a man # of the year", "-man", "--json", "-p", " [x] ", "", "a: b", "010"]
)
def test_text_reaches_the_request_as_the_shell_gave_it(text):
    options = parse(["plan", "params/embedded.yaml", "-p", "prompt", text, "-p", "seed", "010", "--json"])
    assert dict(options.overrides) == {"prompt": text, "seed": "010"}
    assert options.json


@pytest.mark.parametrize("command", ["generate", "plan"])
def test_commands_take_overrides(command, request_for, tmp_path, capsys):
    (tmp_path / "request.yaml").write_text(request_for(device="cpu").to_yaml())
    given = {"prompt": "it's # 1", "max_frames": "03"} | (
        {"frame_size": "640x640"} if command == "plan" else {}
    )
    arguments = [command, str(tmp_path / "request.yaml"), "--json"]
    arguments += [text for name, value in given.items() for text in ("-p", name, value)]
    assert main([*arguments, "-p", "seed", "-1"]) == 2
    assert "`seed` is not valid" in capsys.readouterr().err
    run = ["--run", str(tmp_path / "run")] if command == "generate" else []
    assert main([*arguments, *run]) == 0
    found = json.loads(capsys.readouterr().out)
    if run:
        params = GenerationParams.from_yaml(tmp_path / "run" / "request.yaml")
        assert (params.prompt, params.max_frames, found["frame_count"]) == ("it's # 1", 3, 3)
    else:
        main([command, str(tmp_path / "request.yaml"), "--json"])
        assert found["settings"]["frame_size"] == "640x640"
        assert found["work_gib"] > json.loads(capsys.readouterr().out)["work_gib"]


def test_plan_says_what_a_bare_request_gets(tmp_path, capsys):
    (tmp_path / "bare.yaml").write_text("image_path: sample:portrait\naudio_path: sample:recording\n")
    assert main(["plan", str(tmp_path / "bare.yaml"), "-p", "device", "cpu"]) == 0
    printed = capsys.readouterr().out
    for setting in ("frame_size 160x160", "sample_shift 3.0", "diffusion_steps 4", "text_guide_scale 2.0"):
        assert f" {setting}," in printed


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        (main, ["generate", "embedded", "--run", ""]),
        (main, ["verify", ""]),
        (main, ["runs", "list", ""]),
        (bench.main, ["--table", ""]),
        (lips_only.main, [""]),
        (profiling.main, [""]),
        (training.main, ["train", ""]),
        (training.main, ["evaluate", "--weights", ""]),
        (presenters.main, ["--output", ""]),
        (readers.main, ["--output", ""]),
        (samples.main, [""]),
    ],
)
def test_an_empty_path_is_not_the_working_directory(program, arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["program", *arguments])
    with pytest.raises(SystemExit, match="2"):
        program()
    assert "a path is needed" in capsys.readouterr().err
