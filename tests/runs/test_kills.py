"""Runs that are killed, terminated or interrupted at any moment resume and end with the same bytes."""

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from talkinghead_lab import GenerationParams, generate
from talkinghead_lab.__main__ import main
from talkinghead_lab.runs.result import GenerationResult
from tests.runs.processes import forking


def assert_same(folder: Path, undisturbed: GenerationResult) -> None:
    """The run is finished, with the bytes and digests of the undisturbed one, and nothing else is there."""
    result = GenerationResult.from_run(folder)
    assert result.video_path.read_bytes() == undisturbed.video_path.read_bytes()
    records = [json.loads((r.run_dir / "run.json").read_text()) for r in (result, undisturbed)]
    chunks = [
        [(chunk["latent_sha256"], chunk["frames_sha256"]) for chunk in record["chunks"]] for record in records
    ]
    assert chunks[0] == chunks[1]
    assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".mp4", ".png", ".yaml"]


# What a process is about to do to a file of the run when it is killed, and how often it did so before.
MOMENTS = [
    ("os.link", "chunks/00000.mp4"),  # the video of a chunk is complete, under its temporary name
    ("os.link", "chunks/00002.safetensors"),  # a chunk has its video, but no facts
    ("open", "chunks/growing.mp4"),  # the video of finished chunks is about to be written again
    ("os.link", "run/infinitetalk_"),  # the chunks are joined
    ("os.rename", "run/contact_sheet"),  # the video has its name, but no record
    ("os.link", "run/run.json"),  # the record is complete, under its temporary name
    ("os.remove", "chunks/00001."),  # the run is finished, and its chunks are being removed
]  # fmt: skip


def generate_until(event: str, file: str, params: GenerationParams, run_dir: Path) -> None:
    """Generate, and kill this process when it is about to do `event` to a file whose path contains `file`."""

    def watch(name: str, details: tuple) -> None:
        paths = [str(each) for each in details[:2]]
        if name == event and any(file in path for path in paths):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    generate(params, run_dir, show_progress=False)


def test_a_run_killed_at_every_stage_ends_with_the_bytes_of_an_undisturbed_one(request_for, tmp_path):
    params = request_for()
    undisturbed = generate(params, tmp_path / "undisturbed", show_progress=False)
    folder = tmp_path / "run"
    for event, file in MOMENTS:
        process = forking().Process(target=generate_until, args=(event, file, params, folder))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL, f"{event} {file} did not come"
    assert (folder / "run.json").exists()
    generate(params, folder, show_progress=False)
    assert_same(folder, undisturbed)


def killed_after(seconds: float, params: GenerationParams, run_dir: Path) -> float:
    """Run in a process of its own, killed like a power cut; gives how long it ran."""
    process = forking().Process(target=generate, args=(params, run_dir), kwargs={"show_progress": False})
    started = time.monotonic()
    process.start()
    process.join(seconds)
    process.kill()
    process.join()
    return time.monotonic() - started


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_with_the_bytes_of_an_undisturbed_one(request_for, tmp_path):
    params = request_for()
    killed_after(600, request_for(max_frames=1), tmp_path / "warm-up")
    length = killed_after(600, params, tmp_path / "undisturbed")
    undisturbed = GenerationResult.from_run(tmp_path / "undisturbed")
    dice, kills, number = random.Random(1), 0, 0
    while kills < 4:
        folder, number = tmp_path / f"run-{number}", number + 1
        for _ in range(3):
            killed_after(dice.uniform(0.2, 0.7) * length, params, folder)
            if (folder / "run.json").exists():
                length *= 0.7  # the machine has become faster since the undisturbed run
                break
            kills += 1
        killed_after(600, params, folder)
        assert_same(folder, undisturbed)


def run_in_the_shell(request: Path, folder: Path) -> None:
    sys.exit(main(["generate", str(request), "--run", str(folder)]))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_stops_a_run_cleanly(request_for, tmp_path, recording, number):
    """Finished chunks stay, and nothing partial; the status is that of an interrupt."""
    request, folder = tmp_path / "request.yaml", tmp_path / "run"
    request.write_text(request_for(audio_path=recording(4.0)).to_yaml())
    process = forking().Process(target=run_in_the_shell, args=(request, folder))
    process.start()
    while process.is_alive() and not (folder / "chunks" / "00000.safetensors").exists():
        time.sleep(0.01)
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == 130
    assert sorted(path.name for path in folder.iterdir()) == ["chunks", "request.yaml"]
    kept = Counter(path.stem for path in (folder / "chunks").iterdir())
    assert kept["00000"] == 2
    assert {stem for stem in kept if not stem.isdigit()} == {"growing"}
