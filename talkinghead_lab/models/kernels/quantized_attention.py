"""Attention with 8-bit matmuls, which a Hopper GPU runs at twice the rate of bf16.

Two kernels: `flash3_fp8` quantises queries, keys and values to fp8 (e4m3) and needs the package fa3-fwd;
`triton` quantises queries and keys to int8, which is more precise, and values to fp8. Both quantise the
exponentials to fp8. Keys and values are centred first: subtracting their mean over the tokens removes most
outliers (SageAttention, arXiv 2410.02367 and 2411.10958). Centring is exact: adding one vector to every key
does not change a softmax, and because its weights sum to one, the mean of the values is added to the result.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from talkinghead_lab.models.kernels.fp8 import FP8
from talkinghead_lab.models.kernels.fused_ops import mean_and_extremes

LARGEST = {FP8: torch.finfo(FP8).max, torch.int8: 127.0}
# Exponentials are in (0, 1]; times 2^8 they use the range of e4m3, whose maximum is 448.
EXPONENTIAL_SHIFT = 8.0
# Of the tokens whose mean centres keys and values for fp8, and how far others may lie beyond the farthest.
SAMPLED_TOKENS, SAMPLED_BOUND = 1024, 16.0
# The Triton kernel needs its tensors padded to this multiple of tokens.
TILE = 128


def attention_flash3_fp8(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention over [B, tokens, heads, head width]; the result has the query's shape and type.

    On random normal tensors the relative error to exact attention, in norms, is below 6 %.
    """
    out, offset = attention_flash3_fp8_centred(query, key, value)
    return (out + offset).to(query.dtype)


def attention_flash3_fp8_centred(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_bound: Tensor | None = None,
    key_bound: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The same attention as two terms: to centred values, [B, L, heads, head width], and their centre.

    The centre is [B, 1, heads, head width]; a quantisation that follows adds it in its own pass.

    Args:
        query: [B, L, heads, head width]; in fp8 if it is quantised already, with the scale of `query_bound`.
        key: [B, N, heads, head width]; in fp8 if it is centred and quantised, with the scale of `key_bound`.
        value: [B, N, heads, head width].
        query_bound, key_bound: upper bounds of |query| and |key| per head, [heads], used in place of their
            maximum. A loose bound costs no precision: the relative precision of fp8 hardly depends on the
            magnitude.
    """
    fp8_query, query_scale = _quantize_to_bound(query, query_bound)
    if key.dtype is FP8:
        fp8_key, key_scale = _quantize_to_bound(key, key_bound)
    else:
        fp8_key, key_scale, _ = quantize_near_centre(key)
    fp8_value, value_scale, centre = quantize_near_centre(value)
    scales = [scale.flatten(1) for scale in (query_scale, key_scale, value_scale)]
    return _flash3_fp8(fp8_query, fp8_key, fp8_value, *scales), centre


def _quantize_to_bound(x: Tensor, bound: Tensor | None) -> tuple[Tensor, Tensor]:
    """Quantise to fp8 with one scale per head, from an upper bound per head or, without one, the maximum."""
    if bound is None:
        return quantize(x.float(), FP8, (1, 3))
    scale = scale_for(bound.view(1, 1, -1, 1).expand(len(x), -1, -1, -1), FP8)
    return x if x.dtype is FP8 else (x.float() / scale).to(FP8), scale


def attention_triton(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention over [B, tokens, heads, head width]; the result has the query's shape and type.

    On random normal tensors the relative error to exact attention, in norms, is below 4 %.
    """
    int8_query, query_scale = quantize(query.float(), torch.int8, (3,))
    int8_key, key_scale, _ = quantize_centred(key, torch.int8)
    fp8_value, value_scale, mean = quantize_centred(value, FP8)
    out = _triton(
        _padded(int8_query),
        _padded(int8_key),
        # The tensor cores need fp8 operands with the summed index innermost.
        _padded(fp8_value.view(torch.int8)).permute(0, 2, 3, 1).contiguous().view(FP8),
        _padded(query_scale).squeeze(-1).transpose(1, 2).contiguous(),
        key_scale.flatten(1),
        key.shape[1],
    )
    return (out[:, : query.shape[1]].float() * value_scale + mean).to(query.dtype)


def quantize(x: Tensor, stored: torch.dtype, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Quantise float32 with one scale over `dims`: (8-bit tensor, scale with `dims` of length 1)."""
    return _quantize_by(x, x.abs().amax(dim=dims, keepdim=True), stored)


def quantize_centred(x: Tensor, stored: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Centre [B, tokens, heads, head width] over the tokens and quantise it.

    Minimum and maximum bound the distance from the mean, so one pass yields all that the scale needs.

    Returns:
        The 8-bit tensor, its scale per head, and the mean that was subtracted.
    """
    if x.is_cuda:
        mean, minimum, maximum = mean_and_extremes(x.flatten(2)).view(3, len(x), 1, *x.shape[2:])
        x = x.float()
    else:
        x = x.float()
        mean, minimum, maximum = (reduce(dim=1, keepdim=True) for reduce in (x.mean, x.amin, x.amax))
    largest = torch.maximum(maximum - mean, mean - minimum)
    return *_quantize_by(x - mean, largest.amax(dim=3, keepdim=True), stored), mean


def quantize_near_centre(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Centre [B, tokens, heads, head width] and quantise it to fp8, reading only a sample of tokens twice.

    Any vector near the mean serves as the centre, and any bound of the distance as the largest magnitude:
    fp8 keeps its relative precision over 2^14. Both come from evenly spaced tokens, the bound with a factor
    of `SAMPLED_BOUND`; what lies even beyond that is clamped.

    Returns:
        The 8-bit tensor, its scale per head, and the centre that was subtracted, in the type of `x`.
    """
    sample = x[:, :: sample_step(x.shape[1])].float()
    centre = sample.mean(dim=1, keepdim=True).to(x.dtype)
    largest = (sample - centre.float()).abs().amax(dim=(1, 3), keepdim=True)
    scale = scale_for(SAMPLED_BOUND * largest, FP8)
    scaled = (x.float() - centre.float()) / scale
    return scaled.clamp(-LARGEST[FP8], LARGEST[FP8]).to(FP8), scale, centre


def sample_step(tokens: int) -> int:
    """The distance of about a thousand evenly spaced tokens."""
    return max(1, tokens // SAMPLED_TOKENS)


def _quantize_by(x: Tensor, largest: Tensor, stored: torch.dtype) -> tuple[Tensor, Tensor]:
    scale = scale_for(largest, stored)
    scaled = x / scale
    return (scaled.round() if stored is torch.int8 else scaled).to(stored), scale


def scale_for(largest: Tensor, stored: torch.dtype) -> Tensor:
    """The scale that maps `largest` to the maximum of an 8-bit type."""
    return largest.clamp(min=1e-12) / LARGEST[stored]


def _padded(x: Tensor) -> Tensor:
    """[B, tokens, …], padded with zeros to a multiple of `TILE` tokens."""
    return F.pad(x, (0, 0, 0, 0, 0, -x.shape[1] % TILE))


@torch.library.custom_op("talkinghead_lab::flash3_fp8", mutates_args=())
def _flash3_fp8(
    query: Tensor, key: Tensor, value: Tensor, query_scale: Tensor, key_scale: Tensor, value_scale: Tensor
) -> Tensor:
    """Attention of fp8 tensors with one scale per head, [B, heads]; returns bf16."""
    if query.device.type == "cpu":
        scale = (query_scale * key_scale / math.sqrt(query.shape[-1]))[..., None, None]
        out = _emulated(query, key, value.float().transpose(1, 2), scale)
        return (out * value_scale[:, None, :, None]).to(torch.bfloat16)
    from fa3_fwd_interface import flash_attn_func

    scales = {"q_descale": query_scale, "k_descale": key_scale, "v_descale": value_scale}
    return flash_attn_func(query, key, value, **scales)


@torch.library.custom_op("talkinghead_lab::triton_attention", mutates_args=())
def _triton(
    query: Tensor, key: Tensor, value: Tensor, query_scale: Tensor, key_scale: Tensor, tokens: int
) -> Tensor:
    """Attention of padded int8 queries and keys and fp8 values [B, heads, head width, padded]; returns bf16.

    `query_scale` is [B, heads, padded], `key_scale` [B, heads]. The caller applies the scale of the values.
    """
    query_scale = query_scale / math.sqrt(query.shape[-1])
    if query.device.type == "cpu":
        scale = (query_scale * key_scale[..., None])[..., None]
        out = _emulated(query, key[:, :tokens], value[..., :tokens].float().mT, scale)
        return out.to(torch.bfloat16)
    from talkinghead_lab.models.kernels.triton_attention import attend

    query_scale = query_scale * math.log2(math.e)
    out = torch.empty_like(query, dtype=torch.bfloat16)
    for entry, target in zip(zip(query, key, value, query_scale, key_scale, strict=True), out, strict=True):
        attend(*entry, tokens, EXPONENTIAL_SHIFT, target)
    return out


@_flash3_fp8.register_fake
@_triton.register_fake
def _(query: Tensor, *_: Tensor) -> Tensor:
    return query.new_empty(query.shape, dtype=torch.bfloat16)


def _emulated(query: Tensor, key: Tensor, value: Tensor, scale: Tensor) -> Tensor:
    """The kernels in float32 with their quantisation, for CPUs; `value` is [B, heads, tokens, head width]."""
    query, key = (x.float().transpose(1, 2) for x in (query, key))
    scores = query @ key.mT * scale
    weights = (scores - scores.amax(dim=-1, keepdim=True)).exp()
    fp8_weights = (weights * 2**EXPONENTIAL_SHIFT).to(FP8).float() / 2**EXPONENTIAL_SHIFT
    return (fp8_weights @ value / weights.sum(dim=-1, keepdim=True)).transpose(1, 2).contiguous()
