"""What ends a sweep early leaves its cells unfinished: signals, a killed parent, a lock, a full disk."""

import csv
import errno
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from talkinghead_lab.__main__ import main
from talkinghead_lab.errors import NoSpaceLeft
from talkinghead_lab.foundation import snapshot
from talkinghead_lab.foundation.files import locked
from talkinghead_lab.media import video
from talkinghead_lab.runs import generate
from talkinghead_lab.runs.folder import RunFolder
from talkinghead_lab.sweeps.definition import Sweep
from talkinghead_lab.sweeps.sweep import results, run_sweep
from talkinghead_lab.workers.worker import Failure, Job


@pytest.fixture
def sections(request_for):
    base = request_for(max_frames=9).model_dump(mode="json", exclude_defaults=True)
    return {"base": base, "axes": {}, "seeds": [1, 2, 3, 4]}


@pytest.fixture
def sweep(sections) -> Sweep:
    return Sweep.from_sections(sections)


def jobs(sweep: Sweep, folder: Path) -> list[Job]:
    return [Job(cell.params, folder / "cells" / cell.key()) for cell in sweep.cells()]


@contextmanager
def sweep_of_two_workers(sections, folder):
    """A sweep in a shell of its own, with cells that take seconds; yields once both workers run one."""
    sweep = Sweep.from_sections(sections | {"base": sections["base"] | {"diffusion_steps": 60}})
    (folder / "sweep.yaml").write_text(sweep.to_yaml())
    command = [sys.executable, "-m", "talkinghead_lab", "sweep", str(folder / "sweep.yaml")]
    command += ["--out", str(folder / "out"), "--workers", "2"]
    root = {"PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        command, env=os.environ | root, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as shell:
        try:
            yield sweep, shell
        finally:
            shell.kill()


def children(shell) -> list[psutil.Process]:
    return psutil.Process(shell.pid).children(recursive=True)


def begun(folder) -> list[Path]:
    return sorted(folder.glob("out/cells/*/request.yaml"))


def wait_for_both_workers(shell, folder) -> None:
    deadline = time.monotonic() + 120
    while len(begun(folder)) < 2:
        assert time.monotonic() < deadline
        assert shell.poll() is None
        time.sleep(0.02)


def ended(processes) -> bool:
    """Whether the processes end within five seconds; nobody may reap those whose parent is gone."""
    _, alive = psutil.wait_procs(processes, timeout=5)
    return all(process.status() == psutil.STATUS_ZOMBIE for process in alive)


@pytest.mark.slow
def test_ctrl_c_stops_all_workers_and_leaves_their_cells_unfinished(sections, tmp_path):
    with sweep_of_two_workers(sections, tmp_path) as (sweep, shell):
        wait_for_both_workers(shell, tmp_path)
        cells, workers = begun(tmp_path), children(shell)
        os.killpg(shell.pid, signal.SIGINT)  # as a terminal does, to every process of the command
        assert shell.wait(timeout=5) == 130
        assert len(workers) >= 2
        assert ended(workers)
        errors = shell.stderr.read()
    assert "Stopped" in errors
    assert "Traceback" not in errors
    assert "leaked" not in errors
    assert begun(tmp_path) == cells, "no other cell starts"
    table = results(sweep, tmp_path / "out")
    assert table["state"].to_list() == ["missing"] * 4
    assert (tmp_path / "out" / "results.csv").read_text() == table.write_csv()
    assert list(tmp_path.glob("out/cells/*.error.json")) == []


@pytest.mark.slow
def test_workers_end_with_a_killed_parent_and_the_next_sweep_runs_their_cells(sections, tmp_path):
    with sweep_of_two_workers(sections | {"seeds": [1, 2]}, tmp_path) as (sweep, shell):
        wait_for_both_workers(shell, tmp_path)
        workers = children(shell)
        shell.kill()
        shell.wait()
        table = run_sweep(sweep, tmp_path / "out", show_progress=False)
        # A cell that a worker still held is left to the next call.
        if "missing" in table["state"]:
            table = run_sweep(sweep, tmp_path / "out", show_progress=False)
        assert table["state"].to_list() == ["finished"] * 2
        assert ended(workers)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_cell_resumes_after_its_last_finished_chunk(sections, monkeypatch, tmp_path, number):
    sweep = Sweep.from_sections(sections | {"base": sections["base"] | {"max_frames": 17}, "seeds": [1, 2]})
    job, other = jobs(sweep, tmp_path / "out")
    (tmp_path / "sweep.yaml").write_text(sweep.to_yaml())
    command = ["sweep", str(tmp_path / "sweep.yaml"), "--out", str(tmp_path / "out")]
    before, steps = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL, []
    replaced = signal.signal(number, before)  # coverage has a handler of its own

    def interrupted(report, step):
        steps.append(report.chunk.index)
        if report.chunk.index == 1:
            signal.raise_signal(number)

    try:
        with monkeypatch.context() as patch:
            patch.setattr(generate._StepReport, "__call__", interrupted)
            assert main(command) == 130
        assert signal.getsignal(number) == before
    finally:
        signal.signal(number, replaced)
    assert steps == [0, 1]
    assert not job.failure.exists()
    assert not other.run_dir.exists()
    assert (tmp_path / "out" / "results.csv").read_text().count("missing") == 2
    assert main(command) == 0
    assert json.loads((job.run_dir / "run.json").read_text())["chunks_of_earlier_calls"] == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_sweep_leaves_a_partial_table_that_resuming_completes(
    sections, monkeypatch, tmp_path, caplog, number
):
    sweep = Sweep.from_sections(
        sections | {"base": sections["base"] | {"max_frames": 17}, "seeds": [1, 2, 3]}
    )
    (tmp_path / "sweep.yaml").write_text(sweep.to_yaml())

    def table_of(folder: str) -> list[list[str]]:
        assert main(["sweep", str(tmp_path / "sweep.yaml"), "--out", str(tmp_path / folder)]) in (0, 130)
        return list(csv.reader((tmp_path / folder / "results.csv").open()))

    steps = []

    def interrupted(report, step):
        steps.append(report.chunk.index)
        if report.chunk.index == 1 and 0 in steps[steps.index(1) :]:  # in the second run
            signal.raise_signal(number)

    before = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    replaced = signal.signal(number, before)  # coverage has a handler of its own
    try:
        with monkeypatch.context() as patch:
            patch.setattr(generate._StepReport, "__call__", interrupted)
            head, *partial = table_of("stopped")
    finally:
        signal.signal(number, replaced)
    state, error, value = (head.index(name) for name in ("state", "error", "sharpness"))
    assert [row[state] for row in partial] == ["finished", "missing", "missing"]
    assert [row[error].partition(":")[0] for row in partial] == ["", "unfinished", "not begun"]
    assert partial[0][value] and not partial[1][value]
    assert "results.csv is partial: 2 of 3 runs are left" in caplog.text
    caplog.clear()
    resumed, whole = table_of("stopped"), table_of("whole")
    assert "partial" not in caplog.text
    own = {"time_to_first_frame", "seconds_per_frame", "peak_host_gib", "not_taken", "video_path"}
    kept = [place for place, name in enumerate(whole[0]) if name not in own]
    assert resumed[0] == whole[0]
    assert [[row[k] for k in kept] for row in resumed] == [[row[k] for k in kept] for row in whole]
    reasons = [row[head.index("not_taken")] for row in resumed[1:]]
    assert ["an earlier call" in text for text in reasons] == [False, True, False]


def test_a_cell_that_another_process_writes_is_left_unfinished(sweep, tmp_path, caplog):
    first, *_ = jobs(sweep, tmp_path)
    first.run_dir.mkdir(parents=True)
    with locked(first.run_dir):
        table = run_sweep(sweep, tmp_path, show_progress=False)
    assert table["state"].to_list() == ["missing"] + ["finished"] * 3
    assert "is left unfinished: the folder is being written by process" in caplog.text
    assert not first.failure.exists()
    assert run_sweep(sweep, tmp_path, show_progress=False)["state"].to_list() == ["finished"] * 4


@pytest.mark.parametrize("place", [(video, "write_video"), (RunFolder, "_prepare"), (snapshot, "_copy")])
def test_a_full_disk_ends_a_sweep(sweep, tmp_path, monkeypatch, place):
    tried = []

    def full(*arguments):
        tried.append(arguments)
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    with monkeypatch.context() as patch:
        patch.setattr(*place, full)
        with pytest.raises(NoSpaceLeft):
            run_sweep(sweep, tmp_path, show_progress=False)
    assert len(tried) == 1, "every next cell would fail, too"
    assert results(sweep, tmp_path)["state"].to_list() == ["missing"] * 4


@pytest.mark.slow
def test_a_full_disk_ends_all_workers_and_leaves_their_cells_unfinished(sections, tmp_path):
    """A limit on the size of files stands for the full disk."""
    sweep = Sweep.from_sections(sections | {"seeds": [1, 2]})
    (tmp_path / "sweep.yaml").write_text(sweep.to_yaml())
    command = [sys.executable, "-m", "talkinghead_lab", "sweep", str(tmp_path / "sweep.yaml")]
    command += ["--out", str(tmp_path / "out"), "--workers", "2"]
    shell = subprocess.run(
        ["bash", "-c", f"ulimit -f 4; exec {shlex.join(command)}"],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
    )
    assert shell.returncode == 1
    assert "NoSpaceLeft: no space left" in shell.stderr
    assert "Traceback" not in shell.stderr
    assert list(tmp_path.glob("out/cells/*.error.json")) == []
    assert results(sweep, tmp_path / "out")["state"].to_list() == ["missing"] * 2
    # Room again: the same command is enough.
    assert main(["sweep", str(tmp_path / "sweep.yaml"), "--out", str(tmp_path / "out")]) == 0


def test_a_finished_record_wins_over_an_error_file(sections, tmp_path):
    sweep = Sweep.from_sections(sections | {"seeds": [1]})
    (job,) = jobs(sweep, tmp_path)
    run_sweep(sweep, tmp_path, show_progress=False)
    job.record_failure(Failure("written while another process finished the run"))
    assert results(sweep, tmp_path)["state"].to_list() == ["finished"]
    assert run_sweep(sweep, tmp_path, show_progress=False)["state"].to_list() == ["finished"]
    assert not job.failure.exists()
