"""InfiniteTalk's additions to Wan: the projection of wav2vec2 rows to audio tokens, and attention to them.

Sources: MultiTalk (arXiv 2505.22647) for the adapters and the rotary positions of speakers, InfiniteTalk
(arXiv 2508.14033) for streaming; sizes and constants from the released checkpoints.
"""

import torch
from einops import rearrange
from torch import Tensor, nn

from talkinghead_lab.foundation.latent_grid import FRAMES_PER_LATENT
from talkinghead_lab.models.kernels.attention import Rotation, attention, rotary_angles, rotated
from talkinghead_lab.models.kernels.fused_ops import ResidualUpdate
from talkinghead_lab.models.kernels.two_speakers import bmm_float32, rotated_attention_weights

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
            tokens = audio.shape[2] // speakers
            # Filled on the device: a CUDA graph cannot capture a copy from the host.
            centres = [key.new_full((tokens,), sum(span) / 2, dtype=torch.float32) for span in SPEAKER_RANGES]
            positions = torch.cat(centres)
            key = Rotation.from_angles(rotary_angles(positions, key.shape[-1]))(key)
        return key, value

    def forward(
        self,
        x: Tensor,
        keys_values: tuple[Tensor, Tensor],
        frames: int,
        rotation: Rotation | None = None,
        use_triton: bool = False,
    ) -> ResidualUpdate:
        """Attend to the audio.

        Args:
            x: [B, L, D].
            keys_values: from `keys_values`.
            frames: T.
            rotation: of the queries to `speaker_positions`, with two speakers only.
            use_triton: whether Triton kernels take `x`.
        """
        audio_tokens, frame_tokens = keys_values[0].shape[1], x.shape[1] // frames
        # Training needs gradients of the weights, which folding detaches.
        can_fold = not torch.is_grad_enabled()
        can_fold &= audio_tokens < min(frame_tokens, x.shape[2] // self.num_heads)
        if can_fold and rotation is None:
            return self._folded_output(self._folded_query(x, keys_values[0]), x, keys_values[1])
        query = self.q_linear(x).unflatten(-1, (self.num_heads, -1))
        if rotation is None:
            return self._plain_attention(query, *keys_values)
        if can_fold and use_triton:
            weights = rotated_attention_weights(query, rotation.cosine, rotation.sine, keys_values[0])
            return self._folded_output(weights, x, keys_values[1])
        return self._plain_attention(rotated(query, rotation.cosine, rotation.sine), *keys_values)

    def _plain_attention(self, query: Tensor, key: Tensor, value: Tensor) -> ResidualUpdate:
        attended = attention(query.reshape(len(key), -1, *query.shape[2:]), key, value)
        return ResidualUpdate(self.proj(attended.reshape(*query.shape[:2], -1)))

    def _folded_query(self, x: Tensor, key: Tensor) -> Tensor:
        """Attention weights [B·T, S, heads · A] with the projection of the queries folded into the keys.

        (Wx)·k = x·(Wᵀk). A frame has fewer keys than a head has channels, so the matmul over all video tokens
        becomes narrower: by a factor of four at the released sizes. A rotation of each query prevents it.
        """
        # Weights are detached because einops records the type of each tensor. A type first seen inside a
        # block, `Parameter`, would make PyTorch compile the block again.
        frames, count = key.shape[:2]
        weight, bias = _weight(self.q_linear, x.dtype), self.q_linear.bias.detach().float()
        # With frames innermost, the rows of one frame are evenly strided and the matmul needs no copy.
        key = rearrange(key, "f a n d -> n (a f) d")
        keys = key @ rearrange(weight, "(n d) c -> n d c", n=self.num_heads)
        offsets = key.float() @ rearrange(bias, "(n d) -> n d 1", n=self.num_heads)
        keys = rearrange(keys, "n (a f) c -> f (n a) c", a=count)
        scores = bmm_float32(x.reshape(frames, -1, x.shape[-1]).to(keys.dtype), keys.mT)
        scores = scores.unflatten(-1, (self.num_heads, count))
        scores = (scores + rearrange(offsets, "n (a f) 1 -> f 1 n a", a=count)) / key.shape[-1] ** 0.5
        return scores.softmax(dim=-1).to(x.dtype).flatten(-2)

    def _folded_output(self, weights: Tensor, x: Tensor, value: Tensor) -> ResidualUpdate:
        """The output for attention `weights`, its projection folded into the values: W·Σpv = Σp·(Wv)."""
        count = value.shape[1]
        value = rearrange(value, "f a n d -> n (a f) d")
        out_weight = rearrange(_weight(self.proj, x.dtype), "c (n d) -> n d c", n=self.num_heads)
        values = rearrange(value @ out_weight, "n (a f) c -> f (n a) c", a=count)
        return ResidualUpdate((weights @ values).view_as(x), offset=self.proj.bias)


def _weight(layer: nn.Module, dtype: torch.dtype) -> Tensor:
    """The weight [out, in] of a linear layer of any stored type."""
    if isinstance(layer, nn.Linear):
        return layer.weight.detach()
    return layer.weight_as(dtype)  # type: ignore[operator]


def speaker_positions(attention_map: Tensor) -> Tensor:
    """Rotary positions, float32 [B, L], that bind each token to the speaker whose region it attends to most.

    Args:
        attention_map: float32 [B, 3, L], attention to speaker one, speaker two and the background.
    """
    positions = []
    for attended, (low, high) in zip(attention_map[:, :2].unbind(1), SPEAKER_RANGES, strict=True):
        minimum, maximum = attended.amin(dim=1, keepdim=True), attended.amax(dim=1, keepdim=True)
        positions.append((attended - minimum) / (maximum - minimum + 1e-8) * (high - low) + low)
    positions.append(torch.full_like(positions[0], BACKGROUND_POSITION))
    strongest = attention_map.argmax(dim=1, keepdim=True)
    return torch.stack(positions, dim=1).gather(1, strongest).squeeze(1)
