"""The speech encoder against the reference."""

import pytest
import torch

from talkinghead_lab.models.speech_encoder import SpeechEncoder, SpeechEncoderConfig, from_released
from tests.parity import golden

OUTPUTS, CASE = golden.load("audio")


@pytest.mark.parametrize("case", sorted(OUTPUTS))
@torch.inference_mode()
def test_embedding(case: str):
    shapes = {name: tuple(shape) for name, shape in CASE["params"].items()}
    config = SpeechEncoderConfig.from_tensors(shapes, CASE["config"])
    model = SpeechEncoder(config).eval()
    model.load_state_dict(from_released(golden.parameters("wav2vec2", CASE["params"]), config))
    samples = int(case.removeprefix("embedding."))
    waveform = golden.seeded(f"speech{samples}", [samples], CASE["wave_scale"])
    embedding = model(waveform, samples * CASE["fps"] // CASE["rate"])
    golden.compare(f"audio {case}", embedding, OUTPUTS[case], 1e-4)
