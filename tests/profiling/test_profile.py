"""The memory model finds the figures that a profile was made with, and real runs give such a profile."""

import json

import polars
import pytest

from talkinghead_lab.errors import InvalidRequest
from talkinghead_lab.figures import profiles
from talkinghead_lab.profiling.profile import SCHEMA, combinations, fit, foreseen, left_out, profile, read

MACHINE = "a machine"
OUTSIDE, TEXT, DECODE, MULTIPLE = 0.4, 0.1, 0.25, 7.0


def made_up(device: str, runs: int = 4) -> polars.DataFrame:
    """Runs whose peaks follow a known model: decoding is the peak."""
    rows = []
    for run in range(runs):
        outside = OUTSIDE if device == "cpu" else 0.0
        unit, held, extra = 0.1 * (run + 1), 1.5, 0.05 * run
        peaks = {"text": TEXT + held + outside, "decode": DECODE + MULTIPLE * unit + held + extra + outside}
        for place, (stage, peak) in enumerate(peaks.items()):
            known = {"held_gib": held, "unit_gib": 0.01 if stage == "text" else unit}
            known["extra_gib"] = 0.0 if stage == "text" else extra
            measured = {"peak_gpu_gib": peak, "outside_gpu_gib": OUTSIDE} if device == "cuda" else {}
            rows.append(
                {"run": run, "setting": f"size {run}", "device": device, "stage": stage}
                | {"machine": MACHINE}
                | {"started": float(place), "seconds": 1.0, "peak_host_gib": peak}
                | measured
                | known
            )
    return polars.DataFrame(rows, schema=SCHEMA)


def test_every_combination_is_made_once():
    made = combinations({"frame_size": ["a", "b"], "chunk_frames": [5, 9], "precision": ["auto"]})
    assert len(made) == 4
    assert made[1] == {"frame_size": "a", "chunk_frames": 9, "precision": "auto"}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_fitting_finds_the_model_that_a_profile_follows(device):
    model = fit(made_up(device))
    decode, text = model["stages"]["decode"], model["stages"]["text"]
    assert model["measured_on"] == MACHINE
    assert decode["activations"] == pytest.approx(MULTIPLE)
    # On a CPU the leanest stage's constant is what the libraries take.
    assert model["outside_gib"] == pytest.approx(OUTSIDE + (TEXT if device == "cpu" else 0))
    assert decode["base_gib"] == pytest.approx(DECODE - (TEXT if device == "cpu" else 0))
    assert text == {"base_gib": pytest.approx(0 if device == "cpu" else TEXT), "activations": 0.0}
    assert foreseen(made_up(device), model)["error"].abs().max() == pytest.approx(0, abs=1e-9)


def test_the_model_that_foresees_a_run_has_not_seen_it():
    table = made_up("cpu")
    odd = polars.when(polars.col("run") == 3).then(1.0).otherwise(0.0)
    table = table.with_columns(polars.col("peak_host_gib") + odd)
    errors = left_out(table)["error"]
    assert len(errors) == 4
    peak = OUTSIDE + DECODE + MULTIPLE * 0.4 + 1.5 + 0.15 + 1
    assert errors[3] == pytest.approx(-1 / peak), "the other three tell nothing of the odd one"


def test_a_profile_that_was_made_elsewhere_is_read_back(tmp_path):
    table = made_up("cuda")
    table.write_csv(tmp_path / "profile.csv")
    rows = [{name: value for name, value in row.items() if value is not None} for row in table.to_dicts()]
    (tmp_path / "profile.json").write_text(json.dumps(rows))
    assert read(tmp_path / "profile.csv").equals(table)
    assert read(tmp_path / "profile.json").equals(table)
    (tmp_path / "other.json").write_text('{"run": "a"}')
    for name in ("other.json", "nowhere.json"):
        with pytest.raises(InvalidRequest, match=r"no profile can be read.*" + name):
            read(tmp_path / name)


def test_a_profile_without_finished_runs_cannot_be_fitted():
    failed = polars.DataFrame([{"run": 0, "device": "cpu", "error": "OutOfMemory"}], schema=SCHEMA)
    with pytest.raises(InvalidRequest, match=r"no run of the profile is finished.*OutOfMemory"):
        fit(failed)


def test_the_timeline_has_a_bar_for_each_visit_and_the_weights_in_it():
    figure = profiles.timeline(made_up("cpu"), run=1)
    (axes,) = figure.axes
    assert len(axes.patches) == 2 * 2
    heights = sorted(bar.get_height() for bar in axes.patches)
    assert heights[:2] == [1.5, 1.5]
    assert heights[-1] == pytest.approx(OUTSIDE + DECODE + MULTIPLE * 0.2 + 1.5 + 0.05)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["text", "decode"]
    assert "host memory" in axes.get_ylabel()
    assert "GPU" in profiles.timeline(made_up("cuda")).axes[0].get_ylabel()
    with pytest.raises(InvalidRequest, match="no finished run"):
        profiles.timeline(made_up("cpu"), run=9)


def test_predictions_are_drawn_against_measurements():
    table = made_up("cpu")
    figure = profiles.predicted_beside_measured(foreseen(table, fit(table)))
    points = figure.axes[0].get_lines()[1]
    assert list(points.get_xdata()) == pytest.approx(list(points.get_ydata()))


@pytest.mark.slow
def test_runs_are_profiled_and_a_failed_one_is_told(request_for, tmp_path):
    settings = [{"frame_size": "32x32"}, {"frame_size": "32x32", "audio_path": "/nowhere.wav"}]
    table = profile(request_for(device="cpu"), settings, tmp_path)
    finished = table.filter(polars.col("error").is_null())
    visited = finished["stage"].to_list()
    assert visited[:5] == ["read", "load", "text", "audio", "image"]
    assert visited.count("sampling") == visited.count("decode") == 5, "25 frames, 4 new in each chunk after 9"
    assert finished["started"].is_sorted()
    assert (finished["peak_host_gib"] > 0.2).all()
    decode = finished.filter(polars.col("stage") == "decode").row(0, named=True)
    assert decode["unit_gib"] * 2**30 == 4 * 32 * 32 * 16 * 4
    assert decode["extra_gib"] * 2**30 == 9 * 32 * 32 * 3 * 4
    assert table.filter(polars.col("run") == 1)["error"][0].startswith("MediaError: no such file")
    assert (tmp_path / "profile.csv").read_text().count("\n") == 1 + len(table)
    again = profile(request_for(device="cpu"), settings[:1], tmp_path)
    assert again.equals(finished), "a finished run is not made again"
