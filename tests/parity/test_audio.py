"""The speech encoder against the reference."""

import json

import pytest
import torch
from safetensors.torch import save_file

from talkinghead_lab.models.encoders.speech import SpeechEncoder
from talkinghead_lab.weights import checkpoints, locating
from tests.parity import golden

OUTPUTS, CASE = golden.load("audio")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> SpeechEncoder:
    folder = tmp_path_factory.mktemp("wav2vec")
    save_file(golden.parameters("wav2vec2", CASE["params"]), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CASE["config"]))
    files = locating.CheckpointFiles(folder, folder, folder)
    return checkpoints.load_speech_encoder(files, torch.float32, "cpu")


@pytest.mark.parametrize("case", sorted(OUTPUTS))
@torch.inference_mode()
def test_embedding(case: str, model: SpeechEncoder):
    samples = int(case.removeprefix("embedding."))
    waveform = golden.seeded(f"speech{samples}", [samples], CASE["wave_scale"])
    embedding = model(waveform, samples * CASE["fps"] // CASE["rate"])
    golden.compare(f"audio {case}", embedding, OUTPUTS[case], 1e-4)
