"""The block and the head of the transformer, and their layers."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from talkinghead_lab.models.dit.audio_adapter import AudioCrossAttention, speaker_positions
from talkinghead_lab.models.dit.config import DiTConfig
from talkinghead_lab.models.dit.head_exchange import ATTENDED, KEY, QUERY, VALUE, HeadExchange, of_rows
from talkinghead_lab.models.dit.sequence_parallel import SequenceParallelGroup
from talkinghead_lab.models.kernels.attention import (
    EXACT_KERNELS,
    Rotation,
    attention,
    attention_and_offset,
    rotary_angles,
    text_image_attention,
)
from talkinghead_lab.models.kernels.fp8 import FP8, QuantizedTokens, uses_fp8_matmul
from talkinghead_lab.models.kernels.fused_ops import (
    ResidualUpdate,
    add_and_norm,
    linear_gelu,
    norm_and_rotate,
    quantized,
    quantized_gelu,
)
from talkinghead_lab.models.kernels.quantized_attention import sample_step, scale_for
from talkinghead_lab.models.kernels.two_speakers import region_attention

KeysValues = tuple[Tensor, Tensor]


def linear_float32(linear: nn.Module, x: Tensor) -> Tensor:
    """Apply a linear layer of any stored type with float32 arithmetic."""
    if isinstance(linear, nn.Linear):
        return F.linear(x, linear.weight.float(), None if linear.bias is None else linear.bias.float())
    return linear(x)


def layer_norm(x: Tensor, norm: nn.LayerNorm, modulation: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Layer norm in float32, then an optional modulation (shift, scale); the type of `x` is kept."""
    weight, bias = (None if p is None else p.float() for p in (norm.weight, norm.bias))
    out = F.layer_norm(x.float(), norm.normalized_shape, weight, bias, norm.eps)
    if modulation is not None:
        shift, scale = modulation
        out = out * (1 + scale) + shift
    return out.to(x.dtype)


def feed_forward(ffn: nn.Sequential, x: Tensor | QuantizedTokens, has_fp8_kernels: bool) -> Tensor:
    """The feed-forward layers; on a GPU the activation is fused with a matmul or with quantisation."""
    first, _, second = ffn
    if has_fp8_kernels and uses_fp8_matmul(second) and not torch.is_grad_enabled():
        return second(quantized_gelu(first(x)))
    if (
        isinstance(first, nn.Linear)
        and isinstance(x, Tensor)
        and x.is_cuda
        # Under autocast the weights are float32, and autocast chooses the matmul.
        and first.weight.dtype is x.dtype is torch.bfloat16
        and not torch.is_grad_enabled()
    ):
        return second(linear_gelu(x, first.weight, first.bias))
    return ffn(x)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the full width, before the split into heads."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] → [..., D], computed in float32."""
        return F.rms_norm(x.float(), x.shape[-1:], eps=self.eps).type_as(x) * self.weight

    def output_bound(self) -> Tensor:
        """Upper bound of |output| per channel, [D], reached when that channel holds the full norm √D."""
        return self.weight.float().abs() * len(self.weight) ** 0.5


def attend_shared(
    layer: "SelfAttention",
    x: Tensor | QuantizedTokens,
    rotation: Rotation,
    regions: Tensor | None,
    bounds: Tensor,
    query_bounds: Tensor | None,
    group: SequenceParallelGroup,
) -> tuple[Tensor, Tensor | None]:
    """`SelfAttention.forward` together with other processes, each of which passes its share of the tokens."""
    exchange = group.exchange
    assert exchange
    channels = len(bounds) * layer.head_width // group.size

    def value_for(rank: int) -> Tensor:
        part = of_rows(layer.v, slice(rank * channels, (rank + 1) * channels))
        return part(x).unflatten(-1, (-1, layer.head_width))

    # The value comes last: its parts are computed one by one, so that the exchange of all but the own one
    # overlaps with a matmul.
    key = layer.norm_and_rotate(layer.k(x), layer.norm_k, rotation, group)
    exchange.send(KEY, key.__getitem__)
    query = layer.norm_and_rotate(layer.q(x), layer.norm_q, rotation, group, query_bounds)
    exchange.send(QUERY, query.__getitem__)
    exchange.send(VALUE, value_for)
    # All tokens, ordered by process. Attention does not depend on the order: each carries its position.
    arrived = exchange.receive(KEY, QUERY, VALUE)
    key, query, value = (tokens.movedim(0, 1).flatten(1, 2) for tokens in arrived)
    attention_map = None if regions is None else layer.attention_map(query, key, regions, group)
    summed = None if attention_map is None else exchange.start_sum(attention_map)
    attend = attention if layer.kernel in EXACT_KERNELS else layer.quantizing_attention
    attended = attend(query, key, value, layer.kernel, bounds.unflatten(0, (group.size, -1))[group.rank])
    out = project_shared(layer, attended.unflatten(1, (group.size, -1)).movedim(1, 0), exchange)
    if summed is not None:
        summed.wait()
    return out, attention_map


def project_shared(layer: "SelfAttention", attended: Tensor, exchange: HeadExchange) -> Tensor:
    """Return heads [size, B, l, heads / size, width] to the processes of their tokens; [B, l, D]."""
    exchange.send(ATTENDED, attended.__getitem__)
    if type(layer.o) is not nn.Linear:
        (parts,) = exchange.receive(ATTENDED)
        heads = [attended[i] if i == exchange.rank else part for i, part in enumerate(parts)]
        return layer.project(torch.cat(heads, dim=2), None)
    # One matmul for each process's heads, so that the own one runs during the exchange.
    weights = layer.o.weight.unflatten(1, (exchange.size, -1))
    out = F.linear(attended[exchange.rank].flatten(2), weights[:, exchange.rank], layer.o.bias)
    (parts,) = exchange.receive(ATTENDED)
    for other in exchange.others:
        out.flatten(0, 1).addmm_(parts[other].flatten(2).flatten(0, 1), weights[:, other].t())
    return out


class SelfAttention(nn.Module):
    """Attention among all tokens of a chunk, with queries and keys normed over the full width."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.num_heads, self.head_width = config.num_heads, config.dim // config.num_heads
        self.kernel = "sdpa"
        # Set where the kernels passed their self-check; the second: those that write fp8.
        self.has_triton_kernels = self.has_fp8_kernels = False
        self.has_two_speaker_kernels = False
        # Replaced where the blocks are compiled.
        self.attend_shared: Callable[..., tuple[Tensor, Tensor | None]] = attend_shared
        self.quantizing_attention: Callable[..., Tensor] = attention
        self.q = nn.Linear(config.dim, config.dim)
        self.k = nn.Linear(config.dim, config.dim)
        self.v = nn.Linear(config.dim, config.dim)
        self.o = nn.Linear(config.dim, config.dim)
        self.norm_q = RMSNorm(config.dim, config.eps)
        self.norm_k = RMSNorm(config.dim, config.eps)

    def split_heads(self, x: Tensor) -> Tensor:
        """[B, L, D] → [B, L, heads, head width]."""
        return x.unflatten(-1, (self.num_heads, -1))

    def uses_triton_kernels(self, x: Tensor) -> bool:
        """Whether Triton kernels process `x`; they need bf16 and have no gradients."""
        return self.has_triton_kernels and x.dtype is torch.bfloat16 and not torch.is_grad_enabled()

    def uses_two_speaker_kernels(self, x: Tensor) -> bool:
        """Whether the Triton kernels for two speakers process `x`; likewise."""
        return self.has_two_speaker_kernels and x.dtype is torch.bfloat16 and not torch.is_grad_enabled()

    def norm_and_rotate(
        self,
        x: Tensor,
        norm: RMSNorm,
        rotation: Rotation,
        group: SequenceParallelGroup,
        bounds: Tensor | None = None,
        centre: bool = False,
    ) -> Tensor:
        """Queries or keys [B, L, D], normed and rotated to their positions, with heads grouped by process.

        The result is [group.size, B, L, heads / group.size, head width]. The Triton kernel can quantise it to
        fp8 in the same pass, by `bounds` [heads] of the magnitude. With `centre`, it first subtracts the mean
        over evenly spaced tokens.
        """
        if not self.uses_triton_kernels(x):
            rotated = rotation(self.split_heads(norm(x)))
            return rotated.unflatten(2, (group.size, -1)).movedim(2, 0)
        tables, mean = (rotation.cosine, rotation.sine), None
        if centre:
            step = sample_step(x.shape[1])
            sampled = (table[::step].contiguous() for table in tables)
            sample = norm_and_rotate(x[:, ::step].contiguous(), norm.weight, norm.eps, *sampled, 1)
            mean = sample[0].float().mean(dim=1).to(x.dtype)
        factors = None if bounds is None else 1 / scale_for(bounds, FP8)
        rotated = norm_and_rotate(x, norm.weight, norm.eps, *tables, group.size, factors, mean)
        return rotated.unflatten(-1, (self.num_heads // group.size, -1))

    def forward(
        self,
        x: Tensor | QuantizedTokens,
        rotation: Rotation,
        regions: Tensor | None,
        group: SequenceParallelGroup,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend; with speaker `regions` [3, S], also return the `attention_map`."""
        # Rotating a pair of channels keeps its norm, so the largest bound in a head holds for all of it.
        bounds = self.split_heads(self.norm_q.output_bound()).amax(dim=1)
        # The attention map takes queries and keys as they are.
        quantizes = self.kernel == "flash3_fp8" and regions is None and self.has_fp8_kernels
        query_bounds = bounds if quantizes else None
        if group.exchange is not None:
            return self.attend_shared(self, x, rotation, regions, bounds, query_bounds, group)
        value = self.split_heads(self.v(x))
        # The distance from a centre is at most twice as long as the vectors.
        key_bounds = 2 * self.split_heads(self.norm_k.output_bound()).amax(dim=1) if quantizes else None
        (key,) = self.norm_and_rotate(self.k(x), self.norm_k, rotation, group, key_bounds, quantizes)
        (query,) = self.norm_and_rotate(self.q(x), self.norm_q, rotation, group, query_bounds)
        # First, so that query and key are free after attention.
        attention_map = None if regions is None else self.attention_map(query, key, regions, group)
        attended = attention_and_offset(query, key, value, self.kernel, bounds, key_bounds)
        return self.project(*attended), attention_map

    def project(self, attended: Tensor, offset: Tensor | None) -> Tensor:
        """The output projection of attended + offset, [B, L, heads, head width] → [B, L, D]."""
        if self.has_fp8_kernels and uses_fp8_matmul(self.o) and self.uses_triton_kernels(attended):
            return self.o(quantized(attended.flatten(2), None if offset is None else offset.flatten(1)))
        attended = attended if offset is None else (attended + offset).to(offset.dtype)
        return self.o(attended.flatten(2))

    def attention_map(
        self, query: Tensor, key: Tensor, regions: Tensor, group: SequenceParallelGroup
    ) -> Tensor:
        """Each token's attention to speaker regions, averaged over region and heads, float32 [B, 3, L].

        With an odd number of heads the last is ignored, as in the reference, which averages two halves. The
        heads of several processes are still to be summed.
        """
        counted = max(1, self.num_heads // 2 * 2)
        own = max(0, counted - group.rank * query.shape[2])
        first = group.first_tokens(key, regions.shape[1])[:, :, :own].detach()  # without gradients, as fitted
        use_triton = self.uses_two_speaker_kernels(query)
        return region_attention(query[:, :, :own].detach(), first, regions, use_triton) / counted


class CrossAttention(SelfAttention):
    """Attention to the prompt plus attention to the portrait, each with its own key and value weights."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__(config)
        self.k_img = nn.Linear(config.dim, config.dim)
        self.v_img = nn.Linear(config.dim, config.dim)
        self.norm_k_img = RMSNorm(config.dim, config.eps)

    def text_keys_values(self, text: Tensor) -> KeysValues:
        """Text tokens [B, N, D] → keys and values [B, N, heads, head width]."""
        return self.split_heads(self.norm_k(self.k(text))), self.split_heads(self.v(text))

    def image_keys_values(self, image: Tensor) -> KeysValues:
        """Image tokens [B, N, D] → keys and values [B, N, heads, head width]."""
        return self.split_heads(self.norm_k_img(self.k_img(image))), self.split_heads(self.v_img(image))

    def forward(  # type: ignore[override]
        self, x: Tensor | QuantizedTokens, text: KeysValues, distinct_tokens: Tensor | None, image: KeysValues
    ) -> Tensor:
        """[B, L, D] → [B, L, D]; for `distinct_tokens` see `CrossAttentionContext`."""
        query = self.q(x)
        if self.uses_triton_kernels(query) and distinct_tokens is not None:
            heads, weight = self.split_heads(query), self.norm_q.weight
            out = text_image_attention(heads, weight, self.norm_q.eps, text, image, distinct_tokens)
        else:
            query = self.split_heads(self.norm_q(query))
            out = attention(query, *text, self.kernel) + attention(query, *image, self.kernel)
        return self.o(out.flatten(2))


class Block(nn.Module):
    """Self-attention, attention to prompt and portrait, attention to the audio, feed-forward."""

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
        update: ResidualUpdate,
        time: Tensor,
        rotation: Rotation,
        frames: int,
        text: KeysValues,
        distinct_tokens: Tensor | None,
        image: KeysValues,
        audio: KeysValues,
        regions: Tensor | None,
        group: SequenceParallelGroup,
    ) -> tuple[Tensor, ResidualUpdate]:
        """Run the block, (x, update) → (x, update): the last update is left for the norm of the next block.

        Args:
            x: [B, L, D].
            update: not yet added to x.
            time: [B, 6, D], float32.
            rotation: rotary positions of the tokens.
            frames: T.
            text, image, audio: keys and values.
            distinct_tokens: int32 [B], see `CrossAttentionContext`.
            regions: speaker regions [3, S], with two speakers only.
            group: the processes that share the tokens.
        """
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = (self.modulation.float() + time).split(1, dim=1)
        projections = (self.self_attn.q, self.self_attn.k, self.self_attn.v)
        x, normed = self.add_and_norm(x, update, self.norm1, (shift_a, scale_a), projections)
        out, attention_map = self.self_attn(normed, rotation, regions, group)
        x, normed = self.add_and_norm(x, ResidualUpdate(out, gate_a), self.norm3, None, (self.cross_attn.q,))
        out = self.cross_attn(normed, text, distinct_tokens, image)
        x, normed = self.add_and_norm(x, ResidualUpdate(out), self.norm_x, None, ())
        speakers = None
        if attention_map is not None:
            positions = group.own_tokens(speaker_positions(attention_map))
            head_width = x.shape[-1] // self.self_attn.num_heads
            speakers = Rotation.from_angles(rotary_angles(positions, head_width))
        use_triton = self.self_attn.uses_two_speaker_kernels(x)
        update = self.audio_cross_attn(normed, audio, frames, speakers, use_triton)
        x, normed = self.add_and_norm(x, update, self.norm2, (shift_f, scale_f), (self.ffn[0],))
        out = feed_forward(self.ffn, normed, self.self_attn.has_fp8_kernels)
        return x, ResidualUpdate(out, gate_f)

    def add_and_norm(
        self,
        x: Tensor,
        update: ResidualUpdate,
        norm: nn.LayerNorm,
        modulation: tuple[Tensor, Tensor] | None,
        consumers: Sequence[nn.Module],
    ) -> tuple[Tensor, Tensor | QuantizedTokens]:
        """The sum of x and an update, and its layer norm, quantised if all `consumers` use fp8 matmuls."""
        if self.self_attn.uses_triton_kernels(x):
            shift, scale = (norm.bias, norm.weight) if modulation is None else modulation
            weight = scale if modulation is None else 1 + scale
            quantize = (
                self.self_attn.has_fp8_kernels and len(consumers) > 0 and all(map(uses_fp8_matmul, consumers))
            )
            return add_and_norm(x, update, weight, shift, norm.eps, quantize)
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
        """Tokens [B, L, D] and time [B, D] → patches [B, L, patch size · out_dim]."""
        shift, scale = (self.modulation.float() + time.unsqueeze(1)).split(1, dim=1)
        normed = layer_norm(x, self.norm).float() * (1 + scale) + shift
        return linear_float32(self.head, normed)
