"""Runs are ranked by a measure only where like is compared with like."""

import pytest

from talkinghead_lab.measures.measure import KINDS
from talkinghead_lab.runs.comparison import (
    TOTAL_SECONDS,
    changed_contents,
    differing_fields,
    machine,
    why_unlike,
)
from tests.runs.past_runs import finished_run

ALL = {*KINDS, TOTAL_SECONDS}
TIMES = {"time_to_first_frame", "seconds_per_frame", TOTAL_SECONDS}
COSTS = {*TIMES, "peak_host_gib", "peak_gpu_gib"}
OTHER = {"image_path": "0" * 64}


@pytest.mark.parametrize(
    "changes", [{"seed": 7}, {"diffusion_steps": 9, "loras": ()}, {"prompt": "she nods"}]
)
def test_runs_of_one_recording_portrait_and_length_are_ranked(tmp_path, changes):
    runs = [finished_run(tmp_path / "a"), finished_run(tmp_path / "b", changes)]
    assert {why_unlike(runs, measure) for measure in ALL} == {None}
    assert differing_fields(runs) == list(changes)
    assert changed_contents(runs) == {}


@pytest.mark.parametrize(
    ("reason", "ranked", "changes", "parts"),
    [
        ("different recordings", set(), {}, {"inputs": {"audio_path": "0" * 64}}),
        ("different recordings", set(), {"audio_start": 0.5}, {}),
        ("different portraits or videos", set(), {}, {"inputs": {"image_path": "0" * 64}}),
        ("different lengths: 30 and 29 frames", set(), {}, {"result": {"frame_count": 29}}),
        (
            "different frame sizes: 160x160 and 160x192",
            ALL - COSTS - {"sharpness"},
            {},
            {"result": {"resolution": "160x192"}},
        ),
        (
            "measured by different networks: embedded and released",
            ALL
            - {
                *("active_speaker_own", "active_speaker_other", "active_speaker_silent"),
                "lip_correlation",
                "lip_error",
                "mouth_follows_sound",
                "silent_lip_motion",
                "identity",
                "identity_drift",
                "head_motion",
            },
            {"checkpoint": "released"},
            {},
        ),
        ("different machines", ALL - COSTS, {}, {"environment": {"cpu": "another"}}),
        ("a run was resumed", ALL - TIMES, {}, {"chunks_of_earlier_calls": 1}),
    ],
)
def test_unlike_runs_are_not_ranked_and_the_reason_is_said(tmp_path, reason, ranked, changes, parts):
    runs = [finished_run(tmp_path / "a"), finished_run(tmp_path / "b", changes, **parts)]
    found = {measure: why_unlike(runs, measure) for measure in ALL}
    assert {measure for measure, why in found.items() if why is None} == ranked
    assert all(found[measure].startswith(reason) for measure in ALL - ranked)


@pytest.mark.parametrize(
    ("environment", "device", "words"),
    [
        ({"cpu": "AMD EPYC", "cpu_cores": 2, "gpu": None}, "cpu", "AMD EPYC with 2 cores"),
        ({"cpu": None, "cpu_cores": None, "gpu": None}, "cpu", "unknown processor"),
        ({"cpu": "AMD EPYC", "cpu_cores": 2, "gpu": "NVIDIA H100"}, "cuda:0", "2 × NVIDIA H100"),
        ({"cpu": "AMD EPYC", "cpu_cores": 2, "gpu": "NVIDIA H100"}, "cpu", "AMD EPYC with 2 cores"),
    ],
)
def test_the_machine_is_said_in_words(tmp_path, environment, device, words):
    parts = {"environment": environment, "resolved": {"device": device}, "kernels": {"processes": 2}}
    assert machine(finished_run(tmp_path / "run", **parts)) == words


def test_a_file_that_changed_under_its_name_is_found(tmp_path):
    same = finished_run(tmp_path / "a")
    weights = {**same.record["weights"], "wan/config.json": "0" * 64}
    other = finished_run(tmp_path / "b", inputs={"image_path": "0" * 64}, weights=weights)
    found = changed_contents([same, other])
    assert found.keys() == {"image_path", "checkpoint"}
    assert found["image_path"] == [same.record["inputs"]["image_path"], "0" * 64]
    renamed = finished_run(tmp_path / "c", {"image_path": "another.png"}, inputs={"image_path": "0" * 64})
    assert changed_contents([same, renamed]) == {}, "the request says so"
