"""InfiniteTalk's additions to Wan: the projection of wav2vec2 rows to audio tokens, and attention to them.

Sources: MultiTalk (arXiv 2505.22647) for the adapters and the rotary positions of speakers, InfiniteTalk
(arXiv 2508.14033) for streaming; sizes and constants from the released checkpoints.
"""

import torch
from einops import rearrange
from torch import Tensor, nn

from talkinghead_lab.foundation.latent_grid import FRAMES_PER_LATENT
from talkinghead_lab.models.kernels.attention import Rotation, attention, rotary_angles
from talkinghead_lab.models.kernels.fused_ops import ResidualUpdate

# Rotary positions that bind video tokens to voices (released configuration). The face of speaker one covers
# positions 0–4, that of speaker two 20–24. Each voice is at the centre of its range, the background between.
SPEAKER_RANGES = ((0.0, 4.0), (20.0, 24.0))
BACKGROUND_POSITION = 12.0


class AudioProjection(nn.Module):
    """Projects windows of wav2vec2 rows to A audio tokens per latent frame.

    The first latent frame uses its own window. Each later one covers four video frames; it uses the first
    half of the first frame's window, the middle rows of the next two, and the second half of the last one's.
    """

    def __init__(self, window: int, features: int, hidden: int, tokens: int, dim: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.proj1 = nn.Linear(window * features, hidden)
        self.proj1_vf = nn.Linear((window + FRAMES_PER_LATENT - 1) * features, hidden)
        self.proj2 = nn.Linear(hidden, hidden)
        self.proj3 = nn.Linear(hidden, tokens * dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, audio: Tensor) -> Tensor:
        """[B, F, window, layers, channels] → [B, T, A, audio width]."""
        middle = audio.shape[2] // 2
        later = rearrange(audio[:, 1:], "b (t n) w l c -> b t n w (l c)", n=FRAMES_PER_LATENT)
        later = torch.cat(
            [later[:, :, 0, : middle + 1], later[:, :, 1:-1, middle], later[:, :, -1, middle:]], dim=2
        )
        hidden = torch.cat([self.proj1(audio[:, :1].flatten(2)), self.proj1_vf(later.flatten(2))], dim=1)
        hidden = self.proj2(hidden.relu()).relu()
        return self.norm(self.proj3(hidden).unflatten(-1, (self.tokens, -1)))


class AudioCrossAttention(nn.Module):
    """Attention of every video token to the audio tokens of its latent frame."""

    def __init__(self, dim: int, audio_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_linear = nn.Linear(dim, dim)
        self.kv_linear = nn.Linear(audio_dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def keys_values(self, audio: Tensor, speakers: int) -> tuple[Tensor, Tensor]:
        """Audio tokens [B, T, P·A, audio width] → keys and values [B·T, P·A, heads, head width]."""
        projected = self.kv_linear(audio).flatten(0, 1)
        key, value = projected.unflatten(-1, (2, self.num_heads, -1)).unbind(2)
        if speakers > 1:
            centres = torch.tensor([sum(span) / 2 for span in SPEAKER_RANGES], device=audio.device)
            positions = centres.repeat_interleave(audio.shape[2] // speakers)
            key = Rotation.from_angles(rotary_angles(positions, key.shape[-1]))(key)
        return key, value

    def forward(
        self, x: Tensor, keys_values: tuple[Tensor, Tensor], frames: int, rotation: Rotation | None = None
    ) -> ResidualUpdate:
        """Attend to the audio.

        Args:
            x: [B, L, D].
            keys_values: from `keys_values`.
            frames: T.
            rotation: from `speaker_rotation`, with two speakers only.
        """
        audio_tokens, frame_tokens = keys_values[0].shape[1], x.shape[1] // frames
        # A rotation acts on the queries, which folding skips, and training needs gradients of the weights.
        can_fold = rotation is None and not torch.is_grad_enabled()
        if can_fold and audio_tokens < min(frame_tokens, x.shape[2] // self.num_heads):
            return self._folded_attention(x, *keys_values)
        query = self.q_linear(x).unflatten(-1, (self.num_heads, -1))
        if rotation is not None:
            query = rotation(query)
        query = rearrange(query, "b (t s) n d -> (b t) s n d", t=frames)
        attended = attention(query, *keys_values)
        return ResidualUpdate(self.proj(rearrange(attended, "(b t) s n d -> b (t s) (n d)", t=frames)))

    def _folded_attention(self, x: Tensor, key: Tensor, value: Tensor) -> ResidualUpdate:
        """The same attention with the projections folded into keys and values.

        (Wx)·k = x·(Wᵀk) and W·Σpv = Σp·(Wv). A frame has fewer keys than a head has channels, so the matmuls
        over all video tokens become narrower: by a factor of four at the released sizes.
        """
        # Weights are detached because einops records the type of each tensor. A type first seen inside a
        # block, `Parameter`, would make PyTorch compile the block again.
        frames, count = key.shape[:2]
        query_weight, out_weight = _weight(self.q_linear, x.dtype), _weight(self.proj, x.dtype)
        # With frames innermost, the rows of one frame are evenly strided and the matmuls need no copy.
        key, value = (rearrange(each, "f a n d -> n (a f) d") for each in (key, value))
        keys = key @ rearrange(query_weight, "(n d) c -> n d c", n=self.num_heads)
        values = value @ rearrange(out_weight, "c (n d) -> n d c", n=self.num_heads)
        offsets = key.float() @ rearrange(
            self.q_linear.bias.detach().float(), "(n d) -> n d 1", n=self.num_heads
        )
        keys, values = (rearrange(each, "n (a f) c -> f (n a) c", a=count) for each in (keys, values))
        scores = _bmm_float32(x.reshape(frames, -1, x.shape[-1]).to(keys.dtype), keys.mT)
        scores = scores.unflatten(-1, (self.num_heads, count))
        scores = (scores + rearrange(offsets, "n (a f) 1 -> f 1 n a", a=count)) / key.shape[-1] ** 0.5
        weights = scores.softmax(dim=-1).to(x.dtype).flatten(-2)
        return ResidualUpdate((weights @ values).view_as(x), offset=self.proj.bias)


def _weight(layer: nn.Module, dtype: torch.dtype) -> Tensor:
    """The weight [out, in] of a linear layer of any stored type."""
    if isinstance(layer, nn.Linear):
        return layer.weight.detach()
    return layer.weight_as(dtype)  # type: ignore[operator]


@torch.library.custom_op("talkinghead_lab::product_float32", mutates_args=())
def _bmm_float32(x: Tensor, y: Tensor) -> Tensor:
    """Batched matmul with a float32 result; attention scores are exponents and need the precision."""
    return torch.bmm(x, y, out_dtype=torch.float32) if x.is_cuda else torch.bmm(x.float(), y.float())


@_bmm_float32.register_fake
def _(x: Tensor, y: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], y.shape[-1], dtype=torch.float32)


def speaker_rotation(attention_map: Tensor, head_width: int) -> Rotation:
    """Rotary positions that bind each token to the speaker whose region it attends to most.

    Args:
        attention_map: [B, 3, L], attention to speaker one, speaker two and the background.
        head_width: channels of an attention head.
    """
    positions = []
    for attended, (low, high) in zip(attention_map[:, :2].unbind(1), SPEAKER_RANGES, strict=True):
        minimum, maximum = attended.amin(dim=1, keepdim=True), attended.amax(dim=1, keepdim=True)
        positions.append((attended - minimum) / (maximum - minimum + 1e-8) * (high - low) + low)
    positions.append(torch.full_like(positions[0], BACKGROUND_POSITION))
    strongest = attention_map.argmax(dim=1, keepdim=True)
    chosen = torch.stack(positions, dim=1).gather(1, strongest).squeeze(1)
    return Rotation.from_angles(rotary_angles(chosen.float(), head_width))
