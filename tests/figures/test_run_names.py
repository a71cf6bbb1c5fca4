"""Every run of a list has a name of its own, which says more than a time."""

import os
import re

import pytest

from talkinghead_lab.figures.run_names import run_names, shortened
from talkinghead_lab.runs.history import run_in
from tests.runs.past_runs import finished_run

TIME = re.compile(r"\d\d:\d\d(:\d\d)?$")


def panel_runs(folder, *changes):
    """Runs whose folders have the names that the panel gives them."""
    return [
        finished_run(folder / f"tune_20261126_1456{place:02}_123456", change)
        for place, change in enumerate(changes)
    ]


def test_a_folder_that_somebody_named_keeps_its_name(tmp_path):
    runs = [finished_run(tmp_path / name) for name in ("mine", "take 2", "infinitetalk best")]
    assert run_names(runs) == ["mine", "take 2", "infinitetalk best"]


@pytest.mark.parametrize(
    "name",
    [
        "tune_20261127_171401_123456",
        "infinitetalk_160x160_a-calm-presenter_20261127_171401-2",
        "0123456789abcdef0123",
        "20261127_171401_0123456789abcdef",
    ],
)
def test_a_folder_that_nobody_named_has_a_name_that_says_something(tmp_path, name):
    runs = [finished_run(tmp_path / name, {"seed": 7}), finished_run(tmp_path / name[:-1] / name)]
    assert run_names(runs) == ["seed 7", "seed 42"]


def test_folders_of_one_name_are_told_apart_by_their_paths(tmp_path):
    runs = [finished_run(tmp_path / name) for name in ("a/mine", "b/mine", "b/c/other")]
    assert run_names(runs) == ["a/mine", "b/mine", "c/other"]


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ([{"seed": 1}, {"seed": 2}], ["seed 1", "seed 2"]),
        (
            [{"use_apg": True}, {}],
            ["adaptive projected guidance (APG) yes", "adaptive projected guidance (APG) no"],
        ),
        (
            [{"seed": 1}, {"seed": 2}, {"seed": 1, "audio_guide_scale": 2.5}],
            ["seed 1, audio 1", "seed 2, audio 1", "seed 1, audio 2.5"],
        ),
        (
            [
                {"loras": [{"path": "/a/x.safetensors"}]},
                {"loras": [{"path": "/b/x.safetensors"}]},
                {"loras": ()},
            ],
            ["LoRAs a/x.safetensors", "LoRAs b/x.safetensors", "LoRAs none"],
        ),
        ([{"image_path": "/a/anna.png"}, {"image_path": "/a/ben.png"}], ["anna.png", "ben.png"]),
        (
            [
                {"prompt": "a calm presenter speaks to the camera slowly"},
                {"prompt": "a calm presenter speaks to the camera fast"},
            ],
            ["…slowly", "…fast"],
        ),
    ],
)
def test_unnamed_folders_are_called_by_the_settings_that_differ(tmp_path, changes, names):
    assert run_names(panel_runs(tmp_path, *changes)) == names


def test_runs_of_one_request_are_told_apart_by_their_time(tmp_path):
    runs = panel_runs(tmp_path, {"seed": 1}, {"seed": 1}, {"seed": 2})
    for run, seconds in zip(runs, (0, 60, 60), strict=True):
        os.utime(run.folder / "request.yaml", (1_790_000_000 + seconds,) * 2)
    runs = [run_in(run.folder) for run in runs]
    first, second, third = run_names(runs)
    assert third == "seed 2"
    assert first.startswith("seed 1, ") and second.startswith("seed 1, ")
    assert first != second
    os.utime(runs[0].folder / "request.yaml", (1_790_000_060,) * 2)
    runs[0] = run_in(runs[0].folder)
    assert run_names(runs) == [runs[0].folder.name, runs[1].folder.name, "seed 2"], "begun at once"


def test_a_single_unnamed_run_is_called_by_its_portrait(tmp_path):
    (name,) = run_names(panel_runs(tmp_path, {}))
    assert re.fullmatch(r"sample:portrait, .*", name) and TIME.search(name)
    assert run_names([]) == []


def test_texts_are_cut_to_what_differs():
    assert shortened(["short", "also short"], 12) == ["short", "also short"]
    long = "one two three four five six seven"
    assert shortened([f"{long} A", f"{long} B"], 12) == ["…A", "…B"]
    assert shortened(["x" * 40, "y" * 40], 12) == ["x" * 10 + "…", "y" * 10 + "…"]
