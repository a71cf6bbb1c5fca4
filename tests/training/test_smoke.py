"""The reduced training on a real recording: every stage runs, and its files load."""

import json
from dataclasses import replace

import pytest
import soundfile
import torch

from talkinghead_lab.foundation.paths import local_file
from talkinghead_lab.training.corpus import Monologue
from talkinghead_lab.training.schedule import Budget
from talkinghead_lab.training.speech import SAMPLES_PER_FRAME, Voice
from talkinghead_lab.training.train import LORA, PAIRS_LORA, SMOKE, STAGES, Training, load_networks
from talkinghead_lab.weights import locating
from talkinghead_lab.weights.lora import merge_lora


@pytest.fixture
def corpus() -> list[Monologue]:
    wave, _ = soundfile.read(local_file("sample:recording"), dtype="int16")
    frames = len(wave) // SAMPLES_PER_FRAME
    mouth = torch.rand(frames, 5, generator=torch.Generator().manual_seed(0))
    return [Monologue(Voice("", ""), (), torch.from_numpy(wave[: frames * SAMPLES_PER_FRAME]), mouth)]


@pytest.mark.slow
def test_every_stage_runs_once(tmp_path, corpus):
    few = replace(SMOKE, speech=Budget(2), vae=Budget(2), dit=Budget(1), lora=Budget(1), pairs=Budget(1))
    training = Training(tmp_path, few, torch.device("cpu"))
    training.corpus = corpus
    training.run()
    for stage in STAGES:
        assert json.loads((tmp_path / f"curve-{stage}.json").read_text())[0]["loss"] > 0
    networks, of_pairs = (
        load_networks(training.weights, adapter) for adapter in (locating.ADAPTER, locating.PAIRS_ADAPTER)
    )
    assert merge_lora(networks.dit, tmp_path / LORA, 1.0) > 0
    assert merge_lora(of_pairs.dit, tmp_path / PAIRS_LORA, 1.0) > 0
    before = (training.weights / "ckpt_dir" / "config.json").stat().st_mtime_ns
    training.run()
    assert (training.weights / "ckpt_dir" / "config.json").stat().st_mtime_ns == before
