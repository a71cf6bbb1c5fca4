"""The comparison of runs says in words how they differ, which is better, and why that cannot be said."""

import json

import pytest

from talkinghead_lab.errors import InvalidRequest, OutputError
from talkinghead_lab.figures.comparison import Comparison, compare
from tests.runs.past_runs import OLD, finished_run

GOOD, BAD = {"lip_correlation": 0.91, "lip_error": 0.25}, {"lip_correlation": 0.52, "lip_error": 0.1}


def row(comparison, name):
    (found,) = [row for row in comparison._rows() if row.name == name]
    return found


def test_the_better_value_of_like_runs_is_marked(tmp_path):
    runs = [
        finished_run(tmp_path / "one", {"seed": 5_000_000_001}, GOOD),
        finished_run(tmp_path / "two", {"seed": 5_000_000_002}, BAD),
    ]
    found = Comparison(runs)
    assert [row.title for row in found.settings] == ["Seed"]
    assert row(found, "seed").cells == ("5000000001", "5000000002")
    lines = str(found).splitlines()
    assert lines[0].split() == ["one", "two"]
    words = [" ".join(line.split()) for line in lines]
    assert "Lip correlation 0.91 (best) 0.52 higher is better" in words
    assert row(found, "lip_error").best == 1
    assert "<td>0.25 opening</td><td class=thl-best>0.1 opening (best)</td>" in found._repr_html_()


@pytest.mark.parametrize("value", [0.91, 0.9101])
def test_values_that_look_equal_have_no_best(tmp_path, value):
    runs = [
        finished_run(tmp_path / "one", measures=GOOD),
        finished_run(tmp_path / "two", {"seed": 7}, {"lip_correlation": value}),
    ]
    assert row(Comparison(runs), "lip_correlation").best is None


def test_a_measure_without_direction_has_no_best(tmp_path):
    runs = [
        finished_run(tmp_path / "one", measures={"motion": 1.0}),
        finished_run(tmp_path / "two", {"seed": 7}, {"motion": 2.0}),
    ]
    assert row(Comparison(runs), "motion").best is None


def test_unlike_runs_have_no_best_and_the_reason_is_said_once(tmp_path):
    runs = [
        finished_run(tmp_path / "one", measures=GOOD),
        finished_run(
            tmp_path / "two", {"max_frames": 25}, BAD, result={"frame_count": 25, "duration_seconds": 1.0}
        ),
    ]
    found = Comparison(runs)
    assert "(best)" not in str(found)
    assert "thl-best" not in found._repr_html_()
    assert "Not ranked: different lengths: 30 and 25 frames." in found.notes
    assert row(found, "length").cells == ("1.20 s, 30 frames", "1.00 s, 25 frames")
    measured = {row["name"]: row for row in found.to_json()["measures"]}
    assert measured["lip_correlation"]["best"] is None
    assert measured["lip_correlation"]["not_ranked"] == "different lengths: 30 and 25 frames"


def test_a_dash_has_its_reason(tmp_path):
    old = finished_run(tmp_path / "two", {"seed": 8})
    record = json.loads((old.folder / "run.json").read_text())
    record["measures"] = [each for each in record["measures"] if each["name"] != "flicker"]
    (old.folder / "run.json").write_text(json.dumps(record))
    found = compare(finished_run(tmp_path / "one", {"seed": 7}, {"lip_correlation": None}).folder, old.folder)
    assert row(found, "lip_correlation").cells[0] == "—"
    assert "Not measured for one: Lip correlation (nobody is seen)." in found.notes
    assert "Not measured for two: Flicker (version 0.1.0 did not measure it)." in found.notes
    missing = [note for note in found.notes if note.startswith("Not measured: LSE-C and LSE-D (")]
    assert len(missing) == 1
    assert all(name not in str(found).split("Not ")[0] for name in ("LSE-C", "LSE-D"))


def test_settings_and_changed_files_are_said_in_words(tmp_path):
    loras = [{"path": "/a/fast.safetensors", "scale": 0.5}]
    first = finished_run(tmp_path / "one")
    second = finished_run(
        tmp_path / "two",
        {"loras": loras, "max_frames": None, "prompt": "<b>", "use_apg": True},
        inputs={"image_path": "0" * 64},
    )
    found = Comparison([first, second])
    assert {row.title: row.cells for row in found.settings} == {
        "Prompt": ("a calm presenter speaks to the camera", "<b>"),
        "Length limit (frames)": ("30", "length of the recording"),
        "Adaptive projected guidance (APG)": ("no", "yes"),
        "LoRAs": ("sample:fast-lora", "fast.safetensors (strength 0.5)"),
        "Portrait or video, contents": (first.record["inputs"]["image_path"][:12], "0" * 12),
    }
    assert "<b>" not in found._repr_html_()
    assert "Lora(" not in str(found) + found._repr_html_()
    assert json.loads(json.dumps(found.to_json()))["settings"][0]["values"][1] == "<b>"


def test_only_finished_runs_are_compared(tmp_path):
    good, unfinished = finished_run(tmp_path / "one").folder, tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "request.yaml").write_bytes((OLD / "request.yaml").read_bytes())
    with pytest.raises(OutputError, match=r"is not finished.*--run"):
        compare(good, unfinished)
    (unfinished / "run.json").write_text("{}")
    with pytest.raises(OutputError, match=r"run\.json"):
        compare(good, unfinished)
    with pytest.raises(OutputError, match="no run"):
        compare(good, tmp_path)
    for given in ((), (good,), (good, good), (good, good / ".." / "one")):
        with pytest.raises(InvalidRequest, match="two or more"):
            compare(*given)
