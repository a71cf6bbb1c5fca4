"""The output folder stays within its limits; active runs and foreign files are not touched."""

import fcntl
import logging
import os
import subprocess
import sys
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


def test_videos_are_listed_by_when_their_runs_ended(output):
    """Names of one second are in no order."""
    runs = [run_of(output, hours=hours) for hours in (3, 1, 4, 2, 5)]
    assert [path.parent for path in output.videos()] == [runs[i] for i in (1, 3, 0, 2, 4)]


def test_uploads_count_with_their_run_and_go_with_it(output):
    old, young = run_of(output, hours=2), run_of(output, hours=1)
    for run in (old, young):
        output.uploads(run.name).mkdir(parents=True)
        (output.uploads(run.name) / "audio_path.wav").write_bytes(bytes(1000))
    assert output.tidy(24 * HOUR, 3500) == [old.name]
    assert [output.uploads(run.name).exists() for run in (old, young)] == [False, True]


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


YEAR = 365 * 24 * HOUR


@pytest.fixture
def clock(monkeypatch, output):
    """Set the clock of the file system ahead or back: `clock(seconds)`."""
    ahead = [0.0]
    plain = os.utime

    def utime(path, times=None, **given):
        if times is None:
            times = (time.time() + ahead[0],) * 2
        plain(path, times, **given)

    monkeypatch.setattr(os, "utime", utime)
    return lambda seconds: ahead.__setitem__(0, seconds)


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("jump", [YEAR, 2 * 24 * HOUR, -YEAR])
def test_runs_keep_their_age_when_the_clock_jumps(output, clock, jump, restarted):
    old, fresh = run_of(output, hours=23), run_of(output, hours=1)
    assert output.tidy(24 * HOUR, 1e9) == []
    clock(jump)
    if restarted:
        output = OutputFolder(output.path)
    assert output.tidy(24 * HOUR, 1e9) == []
    now = time.time() + jump
    ages = [(now - (run / "checks.json").stat().st_mtime) / HOUR for run in (old, fresh)]
    assert ages == pytest.approx([23, 1], abs=0.01)
    later = run_of(output, hours=-jump / HOUR)
    assert output.tidy(22 * HOUR, 1e9) == [old.name]
    assert output.tidy(22 * HOUR, 1) == [fresh.name], "the newest one is the last one"
    assert later.exists()
    os.utime(output.path / ".runs")  # removing files has touched it by the real clock
    clock(0)
    assert OutputFolder(output.path).tidy(24 * HOUR, 1e9) == [], "set right again"


def test_a_clock_set_back_by_less_than_their_age_makes_no_run_younger(output, clock):
    old, fresh = run_of(output, hours=23), run_of(output, hours=1)
    output.tidy(24 * HOUR, 1e9)
    clock(-2 * HOUR)
    later = run_of(output, hours=2.5)  # half an hour ago by the new clock
    assert output.tidy(24 * HOUR, 1e9) == []
    now = time.time() - 2 * HOUR
    ages = [(now - (run / "checks.json").stat().st_mtime) / HOUR for run in (old, fresh, later)]
    assert ages == pytest.approx([23, 1, 0.5], abs=0.01)


def test_the_clock_of_this_process_does_not_count(output, monkeypatch):
    run = run_of(output)
    monkeypatch.setattr(time, "time", lambda: YEAR * 100)
    assert output.tidy(HOUR, 1e9) == []
    assert run.exists()


def test_a_pause_of_a_week_does_not_remove_what_was_fresh(output):
    run = run_of(output, hours=7 * 24)
    past = time.time() - 7 * 24 * HOUR
    os.utime(output.path / ".runs", (past, past))
    assert output.tidy(24 * HOUR, 1e9) == []
    assert run.exists()


def test_what_cannot_be_removed_keeps_no_other_run(output, monkeypatch, caplog):
    runs = [run_of(output, hours=hours) for hours in (50, 40, 30)]
    unlink = Path.unlink
    stuck = runs[0] / "request.yaml"

    def refuse(path: Path, **given) -> None:
        if path == stuck:
            raise PermissionError(1, "Operation not permitted", str(path))
        unlink(path, **given)

    monkeypatch.setattr(Path, "unlink", refuse)
    for expected in (runs[1:], []):
        assert set(output.tidy(24 * HOUR, 1e9)) == {run.name for run in expected}
    assert [path.name for path in runs[0].iterdir()] == ["request.yaml"]
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1
    monkeypatch.undo()
    assert output.tidy(24 * HOUR, 1e9) == [runs[0].name], "when it can be removed"


def test_a_folder_that_cannot_be_listed_keeps_no_other_run(output, monkeypatch):
    runs = [run_of(output, hours=hours) for hours in (50, 40)]
    iterdir = Path.iterdir
    monkeypatch.setattr(
        Path,
        "iterdir",
        lambda path: iterdir(path if path.parent != runs[0] else path / "gone"),
    )
    assert output.tidy(24 * HOUR, 1e9) == [runs[1].name]


def test_a_claim_that_was_cut_off_before_it_got_its_name_is_removed(output):
    """The process is killed between the two steps."""
    kill = (
        "import os, sys; from pathlib import Path\n"
        "from talkinghead_lab.service.retention import OutputFolder\n"
        "Path.rename = lambda *given: os._exit(9)\n"
        "with OutputFolder(Path(sys.argv[1])).claimed('20260101_000000_0123456789abcdef'): pass"
    )
    assert subprocess.run([sys.executable, "-c", kill, output.path]).returncode == 9
    (claim,) = (output.path / ".runs").iterdir()
    output.tidy(HOUR, 1)
    assert claim.exists(), "another process may be about to lock it"
    past = time.time() - 61
    os.utime(claim, (past, past))
    with claim.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        output.tidy(HOUR, 1)
        assert claim.exists(), "a process owns it"
    output.tidy(HOUR, 1)
    assert not claim.exists()


def test_thousands_of_runs_are_tidied_quickly(output):
    for number in range(1000):
        name = f"20260101_000000_{number:016x}"
        (output.path / name).mkdir(parents=True)
        (output.path / name / "checks.json").touch()
        (output.path / ".runs").mkdir(exist_ok=True)
        (output.path / ".runs" / name).touch()
    assert output.tidy(HOUR, 1e9) == []
    started = time.process_time()
    assert output.tidy(HOUR, 1e9) == []
    assert time.process_time() - started < 0.5
