"""The commands `runs list`, `runs compare` and `runs export`."""

import json
import sys
from pathlib import Path

import pytest

from talkinghead_lab.__main__ import main
from talkinghead_lab.media import video
from tests.runs.past_runs import finished_run


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A working directory with two runs in `outputs/`."""
    monkeypatch.chdir(tmp_path)
    finished_run(tmp_path / "outputs" / "one", {"seed": 1}, {"lip_correlation": 0.5})
    finished_run(tmp_path / "outputs" / "two", {"seed": 2}, {"lip_correlation": 0.75})
    return tmp_path


def test_list_prints_a_table_or_json(project, capsys):
    assert main(["runs", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines[1:3]} == {"one", "two"}
    assert "Seed" in lines[0]
    for order, names in (([], ["two", "one"]), (["--reverse"], ["one", "two"])):
        assert (
            main(["runs", "list", str(project / "outputs"), "--json", "--sort", "lip_correlation", *order])
            == 0
        )
        assert [run["run"] for run in json.loads(capsys.readouterr().out)["runs"]] == names
    assert main(["runs", "list", "--sort", "lips"]) == 2
    assert "no such column to sort by" in capsys.readouterr().err
    assert main(["runs", "list", "nowhere"]) == 2


def test_compare_prints_the_table_and_writes_the_video(project, capsys):
    runs = ["outputs/one", "outputs/two"]
    assert main(["runs", "compare", *runs, "--video", "both.mp4", "--sound", "two"]) == 0
    printed = capsys.readouterr().out
    assert "0.75 (best)" in printed and str(project / "both.mp4") in printed
    assert video.read_metadata(project / "both.mp4")["title"] == "one | two; sound: two"
    assert main(["runs", "compare", *runs, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [run["name"] for run in found["runs"]] == ["one", "two"] and found["side_by_side"] is None


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["outputs/one"], 2, "two or more"),
        (["outputs/one", "two"], 2, "Did you mean outputs/two?"),
        (["outputs/one", "outputs"], 2, "Name the folder of a run"),
        (["outputs/one", "outputs/two", "--sound", "one"], 2, "Add --video"),
        (["outputs/one", "outputs/two", "--video", "a.mp4", "--sound", "three"], 2, "no run of this name"),
        (["outputs/one", "outputs/two", "--video", "missing/a.mp4"], 1, "cannot be written"),
        (["outputs/one", "outputs/two", "--video", "a.avi"], 2, "a name with .mp4"),
    ],
)
def test_compare_says_what_is_wrong(project, capsys, arguments, status, message):
    assert main(["runs", "compare", *arguments]) == status
    captured = capsys.readouterr()
    assert message in captured.err and not captured.out
    assert not list(project.glob("*.*"))


def test_export_prints_what_became_of_each_run(project, capsys):
    pytest.importorskip("mlflow.tracking")
    assert main(["runs", "export", "outputs/one", "--mlflow", "store"]) == 0
    first = capsys.readouterr().out.splitlines()
    assert first[0].startswith("exported: ") and first[-1].endswith(str(project / "store" / "mlflow.db"))
    assert main(["runs", "export", "outputs/one", "outputs/two", "--mlflow", "store", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [run["new"] for run in found["runs"]] == [False, True]
    (Path("outputs") / "one" / "run.json").unlink()
    assert main(["runs", "export", "outputs/one", "--mlflow", "store"]) == 2
    assert "the run is not finished" in capsys.readouterr().err


def test_export_without_mlflow_names_the_extra(project, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow.tracking", None)
    assert main(["runs", "export", "outputs/one", "--mlflow", "store"]) == 1
    assert "pip install -e '.[mlflow]'" in capsys.readouterr().err
