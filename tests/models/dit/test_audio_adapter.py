"""Attention to the audio: folding the projections changes nothing but rounding errors."""

import pytest
import torch

from talkinghead_lab.bench.forwards import relative_error
from talkinghead_lab.models.dit.audio_adapter import AudioCrossAttention
from talkinghead_lab.models.kernels.fp8 import FP8
from talkinghead_lab.weights.quantization import quantize_linears

FRAMES, FRAME_TOKENS, DIM, HEADS, AUDIO_DIM = 3, 40, 128, 2, 24


@pytest.mark.parametrize("stored", [None, torch.int8, FP8])
@pytest.mark.parametrize("audio_tokens", [4, 50])
def test_folded_attention_matches_plain_attention(audio_tokens, stored):
    """With many audio tokens, or with gradients, attention is not folded."""
    torch.manual_seed(0)
    layer = AudioCrossAttention(DIM, AUDIO_DIM, HEADS).requires_grad_(False)
    if stored is not None:
        quantize_linears(layer, stored)
    x = torch.randn(2, FRAMES * FRAME_TOKENS, DIM)
    keys_values = layer.keys_values(torch.randn(2, FRAMES, audio_tokens, AUDIO_DIM), speakers=1)
    updates = layer(x, keys_values, FRAMES), torch.inference_mode()(layer)(x, keys_values, FRAMES)
    plain, folded = (update.added_to(torch.zeros_like(x)) for update in updates)
    assert relative_error(folded, plain) < 1e-5
    assert torch.equal(folded, plain) is (audio_tokens > FRAME_TOKENS)
