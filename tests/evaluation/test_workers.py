"""Scoring in processes: the same table, finished scores stay, and a dead worker is no failed clip."""

import json
import multiprocessing
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from talkinghead_lab.errors import OutputError
from talkinghead_lab.evaluation import systems
from talkinghead_lab.evaluation.scoring import ScoreTask, score_tasks
from talkinghead_lab.evaluation.systems import REAL, WRONG, Benchmark
from talkinghead_lab.evaluation.table import benchmark_table, write_table
from talkinghead_lab.workers.this_machine import ThisMachine
from talkinghead_lab.workers.worker import Worker
from tests.evaluation.faults import clips, drawn_early

REQUEST = {
    "image_path": "sample:portrait", "audio_path": "sample:recording", "checkpoint": "embedded",
    "diffusion_steps": 1, "text_guide_scale": 1, "audio_guide_scale": 1, "frame_size": "96x96",
}  # fmt: skip


def scored_files(folder: Path) -> dict[str, bytes]:
    """All scores and features of a benchmark."""
    found = (folder / "systems").rglob("scores/[!.]*")  # a killed worker may leave a partial file
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def table_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in write_table(benchmark_table(folder), folder)}


class Interrupted(systems.tqdm):
    """A bar during which the user presses Ctrl-C."""

    def update(self, n=1):
        super().update(n)
        if self.n == 3:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_two_processes_give_the_table_of_one_also_after_an_interrupt(tmp_path, monkeypatch):
    manifest = clips(tmp_path / "clips", 4, 8)
    threads = torch.get_num_threads()
    Benchmark(manifest, tmp_path / "one", False, workers=1).score("copy", tmp_path / "clips")
    assert torch.get_num_threads() == threads
    two = Benchmark(manifest, tmp_path / "two", workers=2)
    with monkeypatch.context() as patch:
        patch.setattr(systems, "tqdm", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            two.score("copy", tmp_path / "clips")
    assert multiprocessing.active_children() == []
    finished = scored_files(tmp_path / "two")
    assert 3 <= len([name for name in finished if name.endswith(".json")]) < 12
    (tmp_path / "two/systems/copy/scores/.0123.partial.json").write_text("{")
    two.score("copy", tmp_path / "clips")
    assert {name: scored_files(tmp_path / "two")[name] for name in finished} == finished
    assert scored_files(tmp_path / "two") == scored_files(tmp_path / "one")
    assert table_files(tmp_path / "two") == table_files(tmp_path / "one")


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_cluster_gives_the_table_of_one_process_also_after_an_interrupt(tmp_path, monkeypatch):
    manifest = clips(tmp_path / "clips", 3, 5)
    Benchmark(manifest, tmp_path / "one", False).generate("embedded", REQUEST)
    there = Benchmark(manifest, tmp_path / "there", ray_address="auto")
    with monkeypatch.context() as patch:
        patch.setattr(systems, "tqdm", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            there.score("copy", tmp_path / "clips")
    finished = scored_files(tmp_path / "there")
    assert 3 <= len([name for name in finished if name.endswith(".json")]) < 9
    there.score("copy", tmp_path / "clips")
    assert {name: scored_files(tmp_path / "there")[name] for name in finished} == finished
    scores = there.generate("embedded", REQUEST)
    assert [score.failure for score in scores] == [None] * 3
    Benchmark(manifest, tmp_path / "one", False).score("copy", tmp_path / "clips")
    assert table_files(tmp_path / "there") == table_files(tmp_path / "one")


def test_a_machine_with_other_files_fails_no_clip(tmp_path):
    manifest = clips(tmp_path / "clips", 2, 4)
    (task, other) = score_tasks(tmp_path / "scores", manifest, lambda clip: clip.video)
    there = other.moved(tmp_path / "there")
    (tmp_path / "there").mkdir()
    there.run(Worker())
    with pytest.raises(
        OutputError, match=r"scored other files.*/clip0.*same clips, videos and given weights"
    ):
        task.collect(there.results())
    assert list((tmp_path / "scores").iterdir()) == []
    other.collect(there.results())
    assert other.is_done
    other.clip.video.unlink()
    with pytest.raises(OutputError, match=r"a clip is missing.*clip1.mp4"):
        other.run(Worker())


@pytest.mark.slow
def test_two_runs_of_the_whole_benchmark_give_the_same_table(tmp_path):
    """From drawing the clips to the table, by generated videos."""
    tables = []
    for name in ("one", "two"):
        manifest = clips(tmp_path / name / "clips", 2, 5)
        scores = Benchmark(manifest, tmp_path / name / "out", False).generate("embedded", REQUEST)
        assert [score.failure for score in scores] == [None, None]
        tables.append(table_files(tmp_path / name / "out"))
        drawn_early.cache_clear()
    assert tables[0] == tables[1]
    assert b"embedded" in tables[0]["table.md"]


def test_one_batch_holds_the_system_and_its_bounds(tmp_path, monkeypatch):
    manifest = clips(tmp_path / "clips", 3, 4)
    batches = []
    monkeypatch.setattr(ThisMachine, "run", lambda self, tasks, done: batches.append(tasks))
    with pytest.raises(OutputError, match="cannot be read"):  # as nothing was scored
        Benchmark(manifest, tmp_path / "out", False).score("copy", tmp_path / "clips")
    (batch,) = batches
    assert [task.name for task in batch] == [
        f"{system}/clip{number}" for system in ("copy", REAL) for number in range(3)
    ]
    bounds = [task for task in batch if task.name.startswith(REAL)]
    assert [[clip.id for clip in task.heard] for task in bounds] == [
        ["clip0", "clip1"],
        ["clip1", "clip2"],
        ["clip2", "clip0"],
    ]
    assert [[path.parents[1].name for path in task.stored] for task in bounds] == [[REAL, WRONG]] * 3


@dataclass(frozen=True)
class Dying(ScoreTask):
    """A video that takes all memory."""

    def run(self, worker: Worker) -> None:
        os._exit(9)


def test_a_worker_that_dies_ends_the_scoring_and_fails_no_clip(tmp_path):
    manifest = clips(tmp_path / "clips", 2, 4)
    tasks = score_tasks(tmp_path / "scores", manifest, lambda clip: clip.video)
    machine = ThisMachine(2, 2)
    try:
        with pytest.raises(OutputError, match=r"could not be scored.*status 9.*fewer --workers"):
            machine.run([Dying(**vars(task)) for task in tasks], lambda: None)
    finally:
        machine.end()
    assert list((tmp_path / "scores").iterdir()) == []


def test_scores_of_other_files_are_not_done(tmp_path):
    manifest = clips(tmp_path / "clips", 2, 4)
    (task, _) = score_tasks(tmp_path / "scores", manifest, lambda clip: clip.video)
    assert not task.is_done
    task.run(Worker())
    assert task.is_done
    (path,) = task.stored
    stored = json.loads(path.read_text())
    task.path.write_bytes((tmp_path / "clips" / "clip1.mp4").read_bytes())
    assert not task.is_done
    task.run(Worker())
    assert json.loads(path.read_text())["made_from"] != stored["made_from"]
