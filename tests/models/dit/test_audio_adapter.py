"""Attention to the audio: folding the projections, and the binding of tokens to speakers."""

import pytest
import torch

from talkinghead_lab.bench.forwards import relative_error
from talkinghead_lab.models.dit.audio_adapter import AudioCrossAttention, speaker_positions
from talkinghead_lab.models.kernels.fp8 import FP8
from talkinghead_lab.models.kernels.two_speakers import region_attention
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_background_every_token_is_bound_to_the_speaker_it_attends_to(dtype):
    """Two speakers cover the frame: tokens look at one of them, and none is bound to the background."""
    tokens, width = 12, 8
    owner = torch.arange(tokens) % 2
    seen = torch.stack([1 - owner, owner]).float()
    regions = torch.stack([*seen, torch.zeros(tokens)])
    looks = 4 * torch.nn.functional.one_hot(owner, width).to(dtype)[None, :, None].expand(1, tokens, 2, width)
    attended = region_attention(looks, looks, regions)
    assert torch.equal(attended[0, 2], torch.zeros(tokens))
    positions = speaker_positions(attended)[0]
    assert positions.dtype == torch.float32
    assert torch.equal((positions > 12).long(), owner)
    assert positions.unique().tolist() == pytest.approx([4, 24])
