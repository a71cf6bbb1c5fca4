"""A run's record and a machine's facts are shown in words."""

import re

import pytest

from talkinghead_lab.errors import OutputError
from talkinghead_lab.figures.records import machine_facts, measures_table, record_table
from talkinghead_lab.figures.runs import table
from talkinghead_lab.foundation import environment
from tests.runs.past_runs import finished_run


def rows(shown):
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall("<tr>(.*?)</tr>", shown.data)]


def test_measures_have_a_value_and_direction_or_a_reason(tmp_path):
    run = finished_run(
        tmp_path / "run", measures={"lip_correlation": 0.12345, "identity": None, "motion": 2.0}
    )
    found = {name: rest for name, *rest in rows(measures_table(run.folder))}
    assert found["Lip correlation"] == ["0.123", "higher is better"]
    assert found["Identity similarity"] == ["—", "nobody is seen"]
    assert found["Motion"] == ["2 levels", ""]
    assert len(found) == 1 + len(run.record["measures"])


DIGESTS = {"latent_sha256": "0" * 64, "frames_sha256": "1" * 64}


def test_the_record_says_what_the_video_was_made_from(tmp_path):
    run = finished_run(
        tmp_path / "run",
        {"seed": 12_345_678_901, "loras": [{"path": "/w/x.safetensors", "scale": 0.5}], "prompt": "<b>"},
        resolved={"attention": "sdpa", "warnings": ["Look out."]},
        checks={
            "passed": False,
            "length": {"passed": False, "measured": "1.00 of 1.20 s"},
            "streams": {"passed": True},
        },
        time_to_first_frame={"seconds": 3.21, "after_loading": 1.0},
        chunks=[DIGESTS | {"forward_passes": passes, "skipped_passes": 12 - passes} for passes in (9, 12)],
    )
    found = dict(rows(record_table(run.folder)))
    assert found["Video"] == "1.20 s, 30 frames of 160 × 160 pixels"
    assert found["First frames"] == "after 3.2 s"
    assert found["Forward passes"] == "21 computed, 3 skipped by the step cache"
    assert found["Checks"] == "failed: length (1.00 of 1.20 s)"
    assert (found["Warnings"], found["Model"], found["Seed"]) == ("Look out.", "bundled model", "12345678901")
    assert found["LoRAs"] == "x.safetensors (strength 0.5)"
    assert found["Prompt"] == "&lt;b&gt;"
    assert found["Length limit (frames)"] == "30"
    assert "Sampling steps" not in found, "at its default"
    assert found["SHA-256 of the video"] == run.record["video_sha256"][:16] + "…"
    assert not [text for text in (*found, *found.values()) if re.search(r"None|unknown|\w_\w|Lora\(", text)]


def test_a_run_of_which_an_earlier_call_made_a_part_says_so(tmp_path):
    run = finished_run(
        tmp_path / "run", chunks_of_earlier_calls=2, time_to_first_frame=None, checks={"passed": True}
    )
    found = dict(rows(record_table(run.folder)))
    assert found["Generation time"].endswith(" s, without 2 chunks of earlier calls")
    assert (found["First frames"], found["Checks"]) == ("made by an earlier call", "all passed")


def test_a_run_of_the_first_version_is_shown(tmp_path):
    found = dict(rows(record_table(finished_run(tmp_path / "run").folder)))
    assert "Checks" not in found and "First frames" not in found
    with pytest.raises(OutputError, match="no run"):
        record_table(tmp_path)


@pytest.mark.parametrize("gpu", [None, "NVIDIA H100"])
def test_facts_of_a_machine_are_words(gpu):
    facts = environment.describe() | dict.fromkeys(("git", "fa3-fwd", "cuda"))
    found = machine_facts(facts | {"gpu": gpu, "gpu_count": gpu and 2, "triton": None})
    assert found["Commit of the checkout"] == "no checkout"
    assert found["fa3-fwd"] == found["triton"] == "not installed"
    assert found["GPU"] == (gpu or "none found")
    assert found.get("Number of GPUs") == (gpu and "2")
    assert found["Deterministic algorithms"] == "no"
    assert not [name for name in found if "_" in name]
    assert machine_facts(facts, ("cpu_cores",)) == {"Processor cores": str(facts["cpu_cores"])}


def test_columns_and_keys_are_written_out():
    shown = rows(
        table(
            [
                {
                    "setting": "frame size 32x32",
                    "peak_host_gib": 1.23456,
                    "held_gib": None,
                    "audio_guide_scale": [1.0, 2.5],
                }
            ]
        )
    )
    assert shown[0] == ["Setting", "Peak host memory (GiB)", "Held (GiB)", "Audio guidance"]
    assert shown[1] == ["frame size 32x32", "1.235", "—", "1, 2.5"]
    assert rows(table({"disk_free_gib": 72.9, "torch": "2"}))[1:] == [
        ["Disk free (GiB)", "72.9"],
        ["torch", "2"],
    ]
