"""Start the two-speaker adapter from the one-speaker adapter, in closed form.

With two speakers, queries and keys of attention to the audio are rotated: tokens of a face to positions 0–4
or 20–24, voices to the centres of these ranges. A pair of channels with frequency θ that holds the constant c
in every query and key adds c² · cos(Δθ) to the score of a token and a voice that are Δ positions apart. A θ
near π / 20 makes that positive for the own voice (Δ ≤ 2) and negative for the other (Δ ≥ 18), so each token
attends to its own voice before any training.
"""

import torch
from torch import Tensor

from talkinghead_lab.models.dit.audio_adapter import SPEAKER_RANGES, AudioCrossAttention
from talkinghead_lab.models.dit.model import DiT
from talkinghead_lab.models.kernels.attention import rotary_angles

# Mean score of the own voice less the other's, in nats: about 400 to 1, so content rarely outweighs it.
SCORE_GAP = 6.0
PAIRS = 2  # channel pairs of a head that hold the constant


def bind_voices(dit: DiT) -> None:
    """Add the constants to the queries and keys of every block."""
    for block in dit.blocks:
        bind(block.audio_cross_attn)


@torch.no_grad()
def bind(layer: AudioCrossAttention) -> None:
    """Add the constants to the queries and keys of one layer."""
    heads, width = layer.num_heads, len(layer.q_linear.bias) // layer.num_heads
    gaps = score_gaps(width)
    chosen = gaps.topk(PAIRS).indices
    constant = (SCORE_GAP * width**0.5 / gaps[chosen].sum()).sqrt()
    offset = torch.zeros(heads, width, device=layer.q_linear.bias.device)
    offset[:, 2 * chosen] = constant
    layer.q_linear.bias.add_(offset.flatten())
    layer.kv_linear.bias[: heads * width].add_(offset.flatten())  # the first half projects the keys


def score_gaps(width: int) -> Tensor:
    """What a constant of 1 in each channel pair of a head adds to q · k: own voice less the other, [pairs].

    The mean over positions in the range of the first speaker; that of the second is its mirror image.
    """
    (low, high), (other_low, other_high) = SPEAKER_RANGES
    positions = torch.linspace(low, high, 9)
    frequencies = rotary_angles(torch.ones(()), width)
    voices = ((low + high) / 2, (other_low + other_high) / 2)
    own, other = (((positions - voice)[:, None] * frequencies).cos().mean(dim=0) for voice in voices)
    return own - other
