"""The memory model recovers the coefficients of a synthetic profile; real runs give such a profile."""

import json

import polars
import pytest

from talkinghead_lab.errors import InvalidRequest
from talkinghead_lab.figures import profiles
from talkinghead_lab.profiling.command import main
from talkinghead_lab.profiling.profile import (
    SCHEMA,
    combinations,
    cross_validated_peaks,
    fit,
    predicted_peaks,
    profile,
    read,
)

MACHINE = "a machine"
OUTSIDE, TEXT, DECODE, MULTIPLE = 0.4, 0.1, 0.25, 7.0


def synthetic_profile(device: str, runs: int = 4) -> polars.DataFrame:
    """Runs whose peaks follow a known model; decoding has the highest peak."""
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


def test_every_combination_appears_once():
    made = combinations({"frame_size": ["a", "b"], "chunk_frames": [5, 9], "precision": ["auto"]})
    assert len(made) == 4
    assert made[1] == {"frame_size": "a", "chunk_frames": 9, "precision": "auto"}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_fit_recovers_the_model_of_a_profile(device):
    model = fit(synthetic_profile(device))
    decode, text = model["stages"]["decode"], model["stages"]["text"]
    assert model["measured_on"] == MACHINE
    assert decode["activations"] == pytest.approx(MULTIPLE)
    # On a CPU the smallest constant of a stage counts as the memory of the libraries.
    assert model["outside_gib"] == pytest.approx(OUTSIDE + (TEXT if device == "cpu" else 0))
    assert decode["base_gib"] == pytest.approx(DECODE - (TEXT if device == "cpu" else 0))
    assert text == {"base_gib": pytest.approx(0 if device == "cpu" else TEXT), "activations": 0.0}
    assert predicted_peaks(synthetic_profile(device), model)["error_percent"].abs().max() == pytest.approx(
        0, abs=1e-9
    )


def test_fit_recovers_what_traits_of_a_run_add():
    table = synthetic_profile("cuda", runs=6)
    more = {"compiled": -1.5, "two speakers": 2.0}
    traits = [", ".join(name for place, name in enumerate(more) if run >> place & 1) for run in range(6)]
    decode, run = polars.col("stage") == "decode", polars.col("run")
    added = sum(
        polars.when(run.is_in([n for n in range(6) if name in traits[n]])).then(gib).otherwise(0.0)
        for name, gib in more.items()
    )
    peak = polars.col("peak_gpu_gib") + polars.when(decode).then(added * polars.col("unit_gib")).otherwise(
        0.0
    )
    table = table.with_columns(peak_gpu_gib=peak, traits=run.replace_strict(range(6), traits))
    model = fit(table)
    assert model["stages"]["decode"]["traits"] == pytest.approx(more)
    assert model["stages"]["decode"]["activations"] == pytest.approx(MULTIPLE)
    assert predicted_peaks(table, model)["error_percent"].abs().max() == pytest.approx(0, abs=1e-9)
    assert cross_validated_peaks(table)["error_percent"].abs().max() < 1e-4


def test_the_command_prints_every_run_and_the_largest_error(tmp_path, capsys):
    synthetic_profile("cuda").write_csv(tmp_path / "profile.csv")
    assert main([str(tmp_path / "profile.csv"), "--coefficients"]) == 0
    out = capsys.readouterr().out
    assert "| size 3 | 4.70 | 4.70 | +0.0% |" in out.replace("-0.0%", "+0.0%")
    assert "largest error of 4 runs: 0.0%" in out
    assert f'"activations": {MULTIPLE:.1f}'[:18] in out


def test_a_profile_of_an_earlier_version_has_no_traits(tmp_path):
    synthetic_profile("cuda").drop("traits").write_csv(tmp_path / "profile.csv")
    assert read(tmp_path / "profile.csv").equals(synthetic_profile("cuda"))


def test_cross_validation_leaves_out_the_predicted_run():
    table = synthetic_profile("cpu")
    outlier = polars.when(polars.col("run") == 3).then(1.0).otherwise(0.0)
    table = table.with_columns(polars.col("peak_host_gib") + outlier)
    errors = cross_validated_peaks(table)["error_percent"]
    assert len(errors) == 4
    peak = OUTSIDE + DECODE + MULTIPLE * 0.4 + 1.5 + 0.15 + 1
    assert errors[3] == pytest.approx(-100 / peak), "the other three runs do not contain the outlier"


def test_profiles_are_read_from_csv_and_json(tmp_path):
    table = synthetic_profile("cuda")
    table.write_csv(tmp_path / "profile.csv")
    rows = [{name: value for name, value in row.items() if value is not None} for row in table.to_dicts()]
    (tmp_path / "profile.json").write_text(json.dumps(rows))
    assert read(tmp_path / "profile.csv").equals(table)
    assert read(tmp_path / "profile.json").equals(table)
    (tmp_path / "other.json").write_text('{"run": "a"}')
    for name in ("other.json", "nowhere.json"):
        with pytest.raises(InvalidRequest, match=r"profile cannot be read.*" + name):
            read(tmp_path / name)


def test_a_profile_without_finished_runs_cannot_be_fitted():
    failed = polars.DataFrame([{"run": 0, "device": "cpu", "error": "OutOfMemory"}], schema=SCHEMA)
    with pytest.raises(InvalidRequest, match=r"no run of the profile is finished.*OutOfMemory"):
        fit(failed)


def test_the_timeline_has_a_bar_per_stage_with_its_weights():
    figure = profiles.timeline(synthetic_profile("cpu"), run=1)
    (axes,) = figure.axes
    assert len(axes.patches) == 2 * 2
    heights = sorted(bar.get_height() for bar in axes.patches)
    assert heights[:2] == [1.5, 1.5]
    assert heights[-1] == pytest.approx(OUTSIDE + DECODE + MULTIPLE * 0.2 + 1.5 + 0.05)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["text", "decode"]
    assert "host memory" in axes.get_ylabel()
    assert "GPU" in profiles.timeline(synthetic_profile("cuda")).axes[0].get_ylabel()
    with pytest.raises(InvalidRequest, match="no finished run"):
        profiles.timeline(synthetic_profile("cpu"), run=9)


def test_predicted_peaks_are_drawn_against_measured_ones():
    table = synthetic_profile("cpu")
    figure = profiles.predicted_against_measured(predicted_peaks(table, fit(table)))
    points = figure.axes[0].get_lines()[1]
    assert list(points.get_xdata()) == pytest.approx(list(points.get_ydata()))


@pytest.mark.slow
def test_runs_are_profiled_and_a_failed_one_is_recorded(request_for, tmp_path):
    settings = [{"frame_size": "32x32"}, {"frame_size": "32x32", "audio_path": "/nowhere.wav"}]
    table = profile(request_for(device="cpu"), settings, tmp_path)
    finished = table.filter(polars.col("error").is_null())
    stages = finished["stage"].to_list()
    assert stages[:5] == ["read", "load", "text", "audio", "image"]
    assert stages.count("sampling") == stages.count("decode") == 5, (
        "25 frames, 4 new ones per chunk after the first 9"
    )
    assert finished["started"].is_sorted()
    assert (finished["peak_host_gib"] > 0.2).all()
    decode = finished.filter(polars.col("stage") == "decode").row(0, named=True)
    assert decode["unit_gib"] * 2**30 == 4 * 32 * 32 * 16 * 4
    assert decode["extra_gib"] * 2**30 == 9 * 32 * 32 * 3 * 4
    assert table.filter(polars.col("run") == 1)["error"][0].startswith("MediaError: no such file")
    assert (tmp_path / "profile.csv").read_text().count("\n") == 1 + len(table)
    again = profile(request_for(device="cpu"), settings[:1], tmp_path)
    assert again.equals(finished), "a finished run is not repeated"
