"""The output folder stays within its limits; active runs and foreign files are not touched."""

import os
import time
from pathlib import Path

import pytest

from talkinghead_lab.service.retention import OutputFolder

HOUR = 3600.0


@pytest.fixture
def output(tmp_path) -> OutputFolder:
    return OutputFolder(tmp_path / "output")


def run_of(output: OutputFolder, hours: float = 0, size: int = 1000, finished: bool = True) -> Path:
    """A run as the service leaves it, which ended this many hours ago."""
    with output.claimed(output.new_name()) as folder:
        (folder / "chunks").mkdir(parents=True)
        (folder / "chunks" / "00000.mp4").write_bytes(b"x")
        (folder / "chunks" / ".0123456789abcdef.partial.mp4").write_bytes(b"x")
        (folder / "request.yaml").write_text("x")
        (folder / "infinitetalk_32x32_ein-größerer-text_20260101_000000.mp4").write_bytes(bytes(size))
        if finished:
            past = time.time() - hours * HOUR
            (folder / "checks.json").write_text("{}")
            os.utime(folder / "checks.json", (past, past))
    return folder


def test_old_runs_are_removed_with_all_their_files(output):
    old, young = run_of(output, hours=25), run_of(output, hours=23)
    assert output.tidy(24 * HOUR, 1e9) == [old.name]
    assert not old.exists()
    assert young.exists()
    assert sorted(path.name for path in output.path.iterdir()) == [".runs", young.name]
    assert [path.name for path in (output.path / ".runs").iterdir()] == [young.name]


def test_the_oldest_runs_are_removed_until_the_rest_fits(output):
    runs = [run_of(output, hours=hours, size=1000) for hours in (1, 2, 3, 4)]
    assert set(output.tidy(24 * HOUR, 2500)) == {runs[2].name, runs[3].name}
    assert [run.exists() for run in runs] == [True, True, False, False]


def test_the_newest_run_is_kept_regardless_of_its_size(output):
    run = run_of(output, size=10_000)
    assert output.tidy(24 * HOUR, 10) == []
    assert run.exists()


def test_an_interrupted_run_is_removed_and_an_active_one_is_kept(output):
    interrupted = run_of(output, finished=False)
    with output.claimed(output.new_name()) as active:
        active.mkdir()
        (active / "request.yaml").write_text("x")
        assert output.tidy(1, 1) == [interrupted.name]
        output.remove(active.name)
        assert (active / "request.yaml").exists()


def test_foreign_files_and_folders_are_kept(output, tmp_path):
    run = run_of(output, hours=99)
    (run / "notes.txt").write_text("mine")
    (run / "my film.mp4").write_bytes(b"mine")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "request.yaml").write_text("mine")
    (run / "request.yaml").unlink()
    (run / "request.yaml").symlink_to(outside / "request.yaml")
    foreign = output.path / "20200101_000000_0123456789abcdef"
    foreign.mkdir()
    (foreign / "request.yaml").write_text("mine")
    assert output.tidy(HOUR, 1) == [run.name]
    assert sorted(path.name for path in run.iterdir()) == ["my film.mp4", "notes.txt", "request.yaml"]
    assert (outside / "request.yaml").read_text() == (foreign / "request.yaml").read_text() == "mine"


def test_a_folder_replaced_by_a_link_is_not_followed(output, tmp_path):
    run = run_of(output, hours=99)
    moved = run.rename(tmp_path / "moved")
    run.symlink_to(moved)
    output.tidy(HOUR, 1)
    assert (moved / "chunks" / "00000.mp4").exists()


def test_a_missing_output_folder_is_ignored(output):
    assert output.tidy(1, 1) == []


def test_only_videos_of_finished_runs_can_be_looked_up(output):
    run = run_of(output)
    (name,) = [path.name for path in run.glob("*.mp4")]
    assert output.video(run.name, name) == run / name
    unfinished = run_of(output, finished=False)
    assert output.video(unfinished.name, name) is None
    for folder, file in (
        (run.name, "request.yaml"),
        ("..", name),
        (".runs", run.name),
        (run.name, "../x.mp4"),
    ):
        assert output.video(folder, file) is None
