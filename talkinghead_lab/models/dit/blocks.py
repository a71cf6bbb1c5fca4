"""The transformer's block, its head, and the layers that they are made of."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from talkinghead_lab.models.dit.audio_adapter import AudioCrossAttention, speaker_rotation
from talkinghead_lab.models.dit.config import DiTConfig
from talkinghead_lab.models.dit.sequence_parallel import SequenceParallelGroup
from talkinghead_lab.models.kernels.attention import (
    Rotation,
    attend_to_text_and_image,
    attention,
    attention_to_regions,
)
from talkinghead_lab.models.kernels.fp8 import FP8, QuantizedTokens, multiplies_fp8
from talkinghead_lab.models.kernels.fused_ops import (
    ResidualUpdate,
    add_and_norm,
    gelu_rounded,
    linear_gelu,
    norm_and_rotate,
)
from talkinghead_lab.models.kernels.quantized_attention import scale_for

KeysValues = tuple[Tensor, Tensor]


def linear_float32(linear: nn.Module, x: Tensor) -> Tensor:
    """Apply a linear layer of any stored type with float32 arithmetic."""
    if isinstance(linear, nn.Linear):
        return F.linear(x, linear.weight.float(), None if linear.bias is None else linear.bias.float())
    return linear(x)


def layer_norm(x: Tensor, norm: nn.LayerNorm, modulation: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Layer norm in float32, then an optional (shift, scale); the type of `x` is kept."""
    weight, bias = (None if p is None else p.float() for p in (norm.weight, norm.bias))
    out = F.layer_norm(x.float(), norm.normalized_shape, weight, bias, norm.eps)
    if modulation is not None:
        shift, scale = modulation
        out = out * (1 + scale) + shift
    return out.to(x.dtype)


def feed_forward(ffn: nn.Sequential, x: Tensor | QuantizedTokens) -> Tensor:
    """The feed-forward layers; on a GPU the activation saves passes over its widest tensor."""
    first, _, second = ffn
    if multiplies_fp8(second) and second.weight.is_cuda:
        return second(gelu_rounded(first(x)))
    if (
        isinstance(first, nn.Linear)
        and isinstance(x, Tensor)
        and x.is_cuda
        # Under autocast the weights are float32, and the product is not ours to choose.
        and first.weight.dtype is x.dtype is torch.bfloat16
        and not torch.is_grad_enabled()
    ):
        return second(linear_gelu(x, first.weight, first.bias))
    return ffn(x)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the whole width, before it is split into heads."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], eps=self.eps).type_as(x) * self.weight

    def limit(self) -> Tensor:
        """What no channel exceeds, [D]: all of the norm, √D, in that one channel."""
        return self.weight.float().abs() * len(self.weight) ** 0.5


class SelfAttention(nn.Module):
    """Attention of all tokens of a chunk to each other, with queries and keys normed over the whole width."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.kind = "sdpa"
        self.has_kernels = False
        self.q = nn.Linear(config.dim, config.dim)
        self.k = nn.Linear(config.dim, config.dim)
        self.v = nn.Linear(config.dim, config.dim)
        self.o = nn.Linear(config.dim, config.dim)
        self.norm_q = RMSNorm(config.dim, config.eps)
        self.norm_k = RMSNorm(config.dim, config.eps)

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1))

    def uses_kernels(self, x: Tensor) -> bool:
        """Whether the Triton kernels, which have no gradient, serve a forward."""
        return self.has_kernels and x.dtype is torch.bfloat16 and not torch.is_grad_enabled()

    def rotated(
        self,
        x: Tensor,
        norm: RMSNorm,
        rotation: Rotation,
        share: SequenceParallelGroup,
        limits: Tensor | None = None,
    ) -> Tensor:
        """Queries or keys [B, L, D], normed and turned to their positions; as `SequenceParallelGroup.parts`.

        The kernels round them to fp8 where `limits` [heads] of their channels are given.
        """
        if not self.uses_kernels(x):
            return share.parts(rotation(self.heads(norm(x))))
        factors = None if limits is None else 1 / scale_for(limits, FP8)
        turned = norm_and_rotate(
            x, norm.weight, norm.eps, rotation.cosine, rotation.sine, share.size, factors
        )
        return turned.unflatten(-1, (self.num_heads // share.size, -1))

    def forward(
        self,
        x: Tensor | QuantizedTokens,
        rotation: Rotation,
        regions: Tensor | None,
        share: SequenceParallelGroup,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend; with speaker `regions` [3, S] also return how much each token attends to each of them."""
        # Turning a pair of channels keeps its length, so the largest limit of a head holds for all of it.
        limits = self.heads(self.norm_q.limit()).amax(dim=1)
        rounds_query = self.kind == "flash3_fp8" and regions is None
        # Where several GPUs share the tokens, each of these is sent before the next is computed.
        value = share.send(share.parts(self.heads(self.v(x))))
        key = share.send(self.rotated(self.k(x), self.norm_k, rotation, share))
        query = self.rotated(self.q(x), self.norm_q, rotation, share, limits if rounds_query else None)
        query = share.send(query)
        value, key, query = share.received(value), share.received(key), share.received(query)
        limits = limits.unflatten(0, (share.size, -1))[share.rank]
        seen = share.send_back(attention(query, key, value, self.kind, limits))
        out = self.o(seen.flatten(2))
        if regions is None:
            return out, None
        return out, attention_to_regions(query, key[:, : regions.shape[1]], regions)


class CrossAttention(SelfAttention):
    """Attention to the prompt and, with weights of its own, to the picture."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__(config)
        self.k_img = nn.Linear(config.dim, config.dim)
        self.v_img = nn.Linear(config.dim, config.dim)
        self.norm_k_img = RMSNorm(config.dim, config.eps)

    def text_keys_values(self, text: Tensor) -> KeysValues:
        return self.heads(self.norm_k(self.k(text))), self.heads(self.v(text))

    def image_keys_values(self, image: Tensor) -> KeysValues:
        return self.heads(self.norm_k_img(self.k_img(image))), self.heads(self.v_img(image))

    def forward(  # type: ignore[override]
        self, x: Tensor | QuantizedTokens, text: KeysValues, distinct: Tensor | None, image: KeysValues
    ) -> Tensor:
        query = self.heads(self.norm_q(self.q(x)))
        if self.uses_kernels(query) and distinct is not None:
            out = attend_to_text_and_image(query, list(text), list(image), distinct)
        else:
            out = attention(query, *text, self.kind) + attention(query, *image, self.kind)
        return self.o(out.flatten(2))


class Block(nn.Module):
    """Self-attention, attention to prompt and picture, attention to the recording, feed-forward."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.dim, config.eps, elementwise_affine=False)
        self.self_attn = SelfAttention(config)
        self.norm3 = nn.LayerNorm(config.dim, config.eps)
        self.cross_attn = CrossAttention(config)
        self.norm_x = nn.LayerNorm(config.dim, config.eps)
        self.audio_cross_attn = AudioCrossAttention(config.dim, config.audio_dim, config.num_heads)
        self.norm2 = nn.LayerNorm(config.dim, config.eps, elementwise_affine=False)
        self.ffn = nn.Sequential(
            nn.Linear(config.dim, config.ffn_dim),
            nn.GELU(approximate="tanh"),
            nn.Linear(config.ffn_dim, config.dim),
        )
        self.modulation = nn.Parameter(torch.zeros(1, 6, config.dim))

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        rotation: Rotation,
        frames: int,
        text: KeysValues,
        distinct: Tensor | None,
        image: KeysValues,
        audio: KeysValues,
        regions: Tensor | None,
        share: SequenceParallelGroup,
    ) -> Tensor:
        """One block.

        Args:
            x: [B, L, D].
            time: [B, 6, D], float32.
            frames: T.
            text, image, audio: keys and values to attend to.
            distinct: tokens of the text from number `distinct` − 1 on are the same; int32 [B].
            regions: [3, S] where two speakers are heard.
            share: of the tokens, where several processes share them.
        """
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = (self.modulation.float() + time).split(1, dim=1)
        first = (self.self_attn.q, self.self_attn.k, self.self_attn.v)
        x, normed = self.add_and_norm(x, None, self.norm1, (shift_a, scale_a), first)
        seen, attended = self.self_attn(normed, rotation, regions, share)
        x, normed = self.add_and_norm(x, ResidualUpdate(seen, gate_a), self.norm3, None, (self.cross_attn.q,))
        seen = self.cross_attn(normed, text, distinct, image)
        x, normed = self.add_and_norm(x, ResidualUpdate(seen), self.norm_x, None, ())
        speakers = (
            None if attended is None else speaker_rotation(attended, x.shape[-1] // self.self_attn.num_heads)
        )
        heard = self.audio_cross_attn(normed, audio, frames, speakers)
        x, normed = self.add_and_norm(x, heard, self.norm2, (shift_f, scale_f), (self.ffn[0],))
        return ResidualUpdate(feed_forward(self.ffn, normed), gate_f).added_to(x)

    def add_and_norm(
        self,
        x: Tensor,
        update: ResidualUpdate | None,
        norm: nn.LayerNorm,
        modulation: tuple[Tensor, Tensor] | None,
        readers: Sequence[nn.Module],
    ) -> tuple[Tensor, Tensor | QuantizedTokens]:
        """The sum of x and an update, and its layer norm, as `readers`, which multiply it, take it."""
        if self.self_attn.uses_kernels(x):
            shift, scale = (norm.bias, norm.weight) if modulation is None else modulation
            weight = scale if modulation is None else 1 + scale
            rounded = len(readers) > 0 and all(map(multiplies_fp8, readers))
            return add_and_norm(x, update, weight, shift, norm.eps, rounded)
        if update is not None:
            x = update.added_to(x)
        return x, layer_norm(x, norm, modulation)


class Head(nn.Module):
    """Projects tokens to velocity patches, in float32."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        time, rows, columns = config.patch_size
        self.norm = nn.LayerNorm(config.dim, config.eps, elementwise_affine=False)
        self.head = nn.Linear(config.dim, time * rows * columns * config.out_dim)
        self.modulation = nn.Parameter(torch.zeros(1, 2, config.dim))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        shift, scale = (self.modulation.float() + time.unsqueeze(1)).split(1, dim=1)
        normed = layer_norm(x, self.norm).float() * (1 + scale) + shift
        return linear_float32(self.head, normed)
