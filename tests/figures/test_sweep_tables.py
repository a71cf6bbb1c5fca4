"""The tables of a sweep say in words what runs, what differs and what failed."""

import re

import polars
import pytest

from talkinghead_lab.figures.sweep_tables import differences_table, failures, overview, progress
from talkinghead_lab.sweeps.definition import Sweep
from talkinghead_lab.sweeps.statistics import paired_differences

LORA = '[{"path": "/w/fast.safetensors", "scale": 1.0}]'


def rows(shown):
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall("<tr>(.*?)</tr>", shown.data)]


def test_what_runs():
    sections = {
        "base": {"image_path": "/p/anna.png", "audio_path": "sample:recording"},
        "axes": {
            "loras": [[], [{"path": "/w/fast.safetensors"}]],
            "method": {"guided, slow": {}, "fast": {"diffusion_steps": 2}},
        },
        "seeds": [1, 2],
        "portraits": ["/p/anna.png", "/p/ben.png"],
    }
    found = dict(rows(overview(Sweep.from_sections(sections), 0)))
    assert found["LoRAs"] == "none, fast.safetensors"
    assert found["Method"] == "guided, slow; fast"
    assert (found["Seed"], found["Portrait or video"], found["Runs"]) == ("1, 2", "anna.png, ben.png", "16")
    assert found["Processes"] == "one per GPU, or a single one"
    assert "GPU" in found and "None" not in str(found)


@pytest.fixture
def results():
    values = {0: [0.5, 0.6, 0.7], 1: [0.7, 0.85, 0.9], 2: [0.6], 3: [0.6, 0.7, 0.8]}
    cells = [
        {
            "loras": lora,
            "seed": seed,
            "cell": f"{number}{seed}",
            "state": "finished",
            "error": None,
            "identity": value,
        }
        for number, lora in enumerate(["[]", LORA, "[1]", "[2]"])
        for seed, value in enumerate(values[number])
    ]
    return polars.DataFrame(cells)


def test_differences_have_an_interval_or_the_reason(results):
    found = paired_differences(results, ["loras"], "identity", {"loras": "[]"})
    head, *body = rows(differences_table(found, "identity"))
    assert head == [
        "LoRAs",
        "Identity similarity (higher is better): mean difference",
        "95 % interval (Student's t)".replace("'", "&#x27;"),
        "Pairs",
        "Effect (Cohen's d_z)".replace("'", "&#x27;"),
    ]
    by_lora = {row[0]: row[1:] for row in body}
    assert by_lora["fast.safetensors"][0] == "+0.217"
    assert re.fullmatch(r"\+0\.1\d+ to \+0\.\d+", by_lora["fast.safetensors"][1])
    assert by_lora["1"] == ["+0.1", "none for 1 pair", "1", "none for 1 pair"]
    assert by_lora["2"][-1] == "none: all differences are equal" or float(by_lora["2"][-1])


def test_a_table_without_all_runs_is_called_partial(results):
    assert dict(rows(progress(results)))["Table"] == "complete"
    states = ["missing", "failed", *["finished"] * (len(results) - 2)]
    found = dict(rows(progress(results.with_columns(state=polars.Series(states)))))
    assert (found["Missing"], found["Failed"], found["Finished"]) == ("1", "1", str(len(results) - 2))
    assert found["Table"] == "partial: run the sweep again to complete it"


def test_what_failed(results):
    assert "No run failed" in failures(results).data
    changes = {"state": "failed", "error": "MediaError: <gone>", "portrait": "/p/anna.png"}
    failed = results.with_columns(**{name: polars.lit(value) for name, value in changes.items()}).select(
        "loras", "seed", "portrait", "cell", "state", "error"
    )
    head, first, *_ = rows(failures(failed.tail(1)))
    assert head == ["LoRAs", "Seed", "Portrait", "Folder", "Error"]
    assert first == ["2", "2", "anna.png", "cells/32", "MediaError: &lt;gone&gt;"]
