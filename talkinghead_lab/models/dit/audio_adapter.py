"""What InfiniteTalk adds to Wan: the projection of wav2vec2 rows to tokens, and attention to them.

Sources: MultiTalk (arXiv 2505.22647) for the adapters and the speaker-bound rotary positions, InfiniteTalk
(arXiv 2508.14033) for streaming; sizes and constants from the released checkpoints.
"""

import torch
from einops import rearrange
from torch import Tensor, nn

from talkinghead_lab.foundation.latent_grid import FRAMES_PER_LATENT
from talkinghead_lab.models.kernels.attention import Rotation, attention, rotary_angles
from talkinghead_lab.models.kernels.fused_ops import ResidualUpdate

# Rotary positions that bind tokens to voices: speaker one's face spreads over 0–4, speaker two's over 20–24,
# each voice sits at the middle of its range, and the background between them (released configuration).
SPEAKER_RANGES = ((0.0, 4.0), (20.0, 24.0))
BACKGROUND_POSITION = 12.0


class AudioProjection(nn.Module):
    """Turns windows of wav2vec2 rows into A tokens for every latent frame.

    The first latent frame hears its own window; each later one stands for four video frames and hears the
    half-window before the first, the middle rows of the two between, and the half-window after the last.
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
    """Every token attends to the audio tokens of its own latent frame."""

    def __init__(self, dim: int, audio_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_linear = nn.Linear(dim, dim)
        self.kv_linear = nn.Linear(audio_dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def keys_values(self, audio: Tensor, speakers: int) -> tuple[Tensor, Tensor]:
        """Keys and values [B·T, P·A, heads, head width] of audio tokens [B, T, P·A, audio width]."""
        both = self.kv_linear(audio).flatten(0, 1)
        key, value = both.unflatten(-1, (2, self.num_heads, -1)).unbind(2)
        if speakers > 1:
            centres = torch.tensor([sum(span) / 2 for span in SPEAKER_RANGES], device=audio.device)
            positions = centres.repeat_interleave(audio.shape[2] // speakers)
            key = Rotation.from_angles(rotary_angles(positions, key.shape[-1]))(key)
        return key, value

    def forward(
        self, x: Tensor, keys_values: tuple[Tensor, Tensor], frames: int, rotation: Rotation | None = None
    ) -> ResidualUpdate:
        """Attend.

        Args:
            x: [B, L, D].
            keys_values: as `keys_values` gives them.
            frames: T.
            rotation: by `speaker_rotation`, where two speakers share the picture.
        """
        few, frame_tokens = keys_values[0].shape[1], x.shape[1] // frames
        # Two speakers turn each token's query; training wants gradients of the layers as they are.
        plain = rotation is not None or torch.is_grad_enabled()
        if not plain and few < min(frame_tokens, x.shape[2] // self.num_heads):
            return self._folded(x, *keys_values)
        query = self.q_linear(x).unflatten(-1, (self.num_heads, -1))
        if rotation is not None:
            query = rotation(query)
        query = rearrange(query, "b (t s) n d -> (b t) s n d", t=frames)
        heard = attention(query, *keys_values)
        return ResidualUpdate(self.proj(rearrange(heard, "(b t) s n d -> b (t s) (n d)", t=frames)))

    def _folded(self, x: Tensor, key: Tensor, value: Tensor) -> ResidualUpdate:
        """The same, with the weights multiplied by keys and values in place of tokens.

        (Wx)·k = x·(Wᵀk) and W·Σpv = Σp·(Wv). A frame has fewer keys than a head has channels, so the products
        that every token goes through are narrower: by four at the released sizes.
        """
        # Weights are detached for einops, which keeps a table of tensor types; a `Parameter` would be a new entry,
        # after which PyTorch compiles the block again.
        frames, count = key.shape[:2]
        into, out_of = _weight(self.q_linear, x.dtype), _weight(self.proj, x.dtype)
        # Frames innermost: the rows of one frame then lie evenly apart, and the products need no copy.
        key, value = (rearrange(both, "f a n d -> n (a f) d") for both in (key, value))
        keys = key @ rearrange(into, "(n d) c -> n d c", n=self.num_heads)
        values = value @ rearrange(out_of, "c (n d) -> n d c", n=self.num_heads)
        offsets = key.float() @ rearrange(
            self.q_linear.bias.detach().float(), "(n d) -> n d 1", n=self.num_heads
        )
        keys, values = (rearrange(both, "n (a f) c -> f (n a) c", a=count) for both in (keys, values))
        scores = _product_float32(x.reshape(frames, -1, x.shape[-1]).to(keys.dtype), keys.mT)
        scores = scores.unflatten(-1, (self.num_heads, count))
        scores = (scores + rearrange(offsets, "n (a f) 1 -> f 1 n a", a=count)) / key.shape[-1] ** 0.5
        weights = scores.softmax(dim=-1).to(x.dtype).flatten(-2)
        return ResidualUpdate((weights @ values).view_as(x), offset=self.proj.bias)


def _weight(layer: nn.Module, dtype: torch.dtype) -> Tensor:
    """The weight [out, in] of a linear layer of any stored type."""
    if isinstance(layer, nn.Linear):
        return layer.weight.detach()
    return layer.dequantized().to(dtype)  # type: ignore[operator]


@torch.library.custom_op("talkinghead_lab::product_float32", mutates_args=())
def _product_float32(x: Tensor, y: Tensor) -> Tensor:
    """Batched product that stays in float32, in which it is summed: scores are exponents."""
    return torch.bmm(x, y, out_dtype=torch.float32) if x.is_cuda else torch.bmm(x.float(), y.float())


@_product_float32.register_fake
def _(x: Tensor, y: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], y.shape[-1], dtype=torch.float32)


def speaker_rotation(attention_map: Tensor, head_width: int) -> Rotation:
    """Rotary positions that tie each token to the speaker whose region it attends to most.

    Args:
        attention_map: [B, 3, L], attention to speaker one, speaker two and the background.
    """
    positions = []
    for attended, (low, high) in zip(attention_map[:, :2].unbind(1), SPEAKER_RANGES, strict=True):
        least, most = attended.amin(dim=1, keepdim=True), attended.amax(dim=1, keepdim=True)
        positions.append((attended - least) / (most - least + 1e-8) * (high - low) + low)
    positions.append(torch.full_like(positions[0], BACKGROUND_POSITION))
    strongest = attention_map.argmax(dim=1, keepdim=True)
    chosen = torch.stack(positions, dim=1).gather(1, strongest).squeeze(1)
    return Rotation.from_angles(rotary_angles(chosen.float(), head_width))
