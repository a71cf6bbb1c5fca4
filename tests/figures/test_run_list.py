"""The list of runs: a row for each, the settings in which they differ, their measures and what is missing."""

import json

import pytest

from talkinghead_lab.errors import InvalidRequest, OutputError
from talkinghead_lab.figures.run_list import list_runs
from tests.runs.past_runs import OLD, finished_run


@pytest.fixture
def folder(tmp_path):
    runs = tmp_path / "runs"
    finished_run(runs / "one", {"seed": 1}, {"lip_correlation": 0.5})
    finished_run(runs / "two", {"seed": 2, "prompt": "<i>she nods</i>"}, {"lip_correlation": 0.9})
    finished_run(runs / "three", {"seed": 3}, {"lip_correlation": None})
    damaged = finished_run(runs / "damaged").folder
    (damaged / "run.json").write_text("{}")
    (runs / "unfinished").mkdir()
    (runs / "unfinished" / "request.yaml").write_bytes((OLD / "request.yaml").read_bytes())
    (runs / "foreign").mkdir()
    (runs / "foreign" / "request.yaml").write_text("seeed: 7")
    return runs


def cells(found, name):
    (line,) = [line for line in str(found).splitlines() if line.startswith(f"{name} ")]
    return line


def test_every_run_has_a_row(folder):
    found = list_runs(folder)
    head, *_ = str(found).splitlines()
    assert head.split("  ")[0] == "Run"
    assert "Seed" in head and "Prompt" in head and "Lip correlation" in head
    assert "Sampling steps" not in head, "equal in all runs"
    assert "finished" in cells(found, "one") and "1.20 s, 30 frames" in cells(found, "one")
    assert "unfinished" in cells(found, "unfinished") and "0 chunks finished" in cells(found, "unfinished")
    assert "damaged" in cells(found, "damaged")
    text = str(found)
    assert "Not measured: Lip correlation (nobody is seen): three." in text
    assert "damaged: the record of the run is damaged" in text
    assert "Left out: foreign, whose request cannot be read." in text
    assert "<i>" not in found._repr_html_()


def test_a_run_that_lost_its_request_is_mentioned(folder):
    (folder / "three" / "request.yaml").unlink()
    found = list_runs(folder)
    assert "three" not in found.names
    assert "Left out: three, whose request cannot be read." in str(found)


def test_rows_are_sorted(folder):
    found = list_runs(folder)
    assert found.sorted("lip_correlation").names[:2] == ["two", "one"]
    assert found.sorted("lip_correlation", reverse=True).names[:2] == ["one", "two"]
    assert [name for name in found.sorted("seed").names if name in ("one", "two", "three")] == [
        "one",
        "two",
        "three",
    ]
    assert found.sorted("run").names == ["damaged", "one", "three", "two", "unfinished"]
    assert found.sorted("begun").names == found.names
    assert found.sorted("begun", reverse=True).names == found.names[::-1]
    with pytest.raises(InvalidRequest, match="Did you mean `lip_correlation`"):
        found.sorted("lip_corelation")


def test_the_list_as_json_has_all_measures_and_reasons(folder):
    found = {row["run"]: row for row in json.loads(json.dumps(list_runs(folder).to_json()))["runs"]}
    assert found["two"]["settings"] == {"prompt": "<i>she nods</i>", "seed": 2}
    assert found["two"]["measures"]["lip_correlation"] == 0.9
    assert found["three"]["not_measured"]["lip_correlation"] == "nobody is seen"
    assert found["damaged"]["problem"] and found["unfinished"]["frames"] is None


def test_a_folder_without_runs(tmp_path, folder):
    (tmp_path / "sweep" / "cells").mkdir(parents=True)
    (tmp_path / "sweep" / "sweep.yaml").write_text("")
    (tmp_path / "empty").mkdir()
    assert str(list_runs(tmp_path / "empty")) == "No runs."
    for given, message in (
        (tmp_path / "nowhere", "no such folder"),
        (tmp_path / "sweep", "List .*cells"),
        (folder / "one", "that of one run.*List .*runs"),
    ):
        with pytest.raises(OutputError, match=message):
            list_runs(given)
