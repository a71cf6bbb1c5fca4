"""Attention with 8-bit matmuls, which most GPUs run at twice the rate of bf16 or more.

Three kernels, which differ in how they quantise queries and keys, and weights (the exponentials) and values:

- `flash3_fp8`: all in fp8 (e4m3). Hopper GPUs with the package fa3-fwd.
- `triton_hopper`: queries and keys in int8, which is more precise, weights and values in fp8. Hopper GPUs.
- `triton`: all in int8. Weights get a scale for each query and tile of keys; one scale for all keys would
  round most of them to zero.

Keys and values are centred first: subtracting their mean over the tokens removes most outliers
(SageAttention, arXiv 2410.02367 and 2411.10958). Centring is exact: adding one vector to every key does not
change a softmax, and because its weights sum to one, the mean of the values is added to the result. The
Triton kernels add to it the mean of what quantising the values left out, which all queries would share as an
error.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from talkinghead_lab.models.kernels.fp8 import FP8

LARGEST = {FP8: torch.finfo(FP8).max, torch.int8: 127.0}
# Exponentials are in (0, 1]; times 2^8 they use the range of e4m3, whose maximum is 448.
EXPONENTIAL_SHIFT = 8.0
# Of the tokens whose mean centres keys and values, and for fp8, how far others may lie beyond the farthest.
SAMPLED_TOKENS, SAMPLED_BOUND = 1024, 16.0
# Tiles of keys whose weights are all below 2^-20 of the largest share its scale: the sums of the int8 kernel
# stay finite.
EXPONENT_RANGE = 20.0
# Keys that share a scale, by the type of weights: the tiles of the kernel for Hopper, and of the int8 kernel
# those that a CPU emulates.
TILES = {FP8: 128, torch.int8: 64}


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
    """Attention over [B, tokens, heads, head width] in int8; the result has the query's shape and type.

    On random normal tensors the relative error to exact attention, in norms, is below 2.5 %.
    """
    return _triton(query, key, value, torch.int8)


def attention_triton_hopper(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention over [B, tokens, heads, head width]; the result has the query's shape and type.

    On random normal tensors the relative error to exact attention, in norms, is below 3.9 %.
    """
    return _triton(query, key, value, FP8)


def quantize(x: Tensor, stored: torch.dtype, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Quantise float32 with one scale over `dims`: (8-bit tensor, scale with `dims` of length 1)."""
    scale = scale_for(x.abs().amax(dim=dims, keepdim=True), stored)
    return _to_8_bits(x / scale, stored), scale


def quantize_near_centre(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Centre [B, tokens, heads, head width] and quantise it to fp8, reading only a sample of tokens twice.

    Any vector near the mean serves as the centre, and any bound of the distance as the largest magnitude:
    fp8 keeps its relative precision over 2^14. Both come from evenly spaced tokens, the bound with a factor
    of `SAMPLED_BOUND`; what lies even beyond that is clamped.

    Returns:
        The 8-bit tensor, its scale per head, and the centre that was subtracted, in the type of `x`.
    """
    centre = _centre(x).to(x.dtype)
    largest = (sample_of(x).float() - centre.float()).abs().amax(dim=(1, 3), keepdim=True)
    scale = scale_for(SAMPLED_BOUND * largest, FP8)
    return _to_8_bits((x.float() - centre.float()) / scale, FP8), scale, centre


def _centre(x: Tensor) -> Tensor:
    """The float32 mean of a sample of tokens, [B, 1, heads, head width]."""
    return sample_of(x).float().mean(dim=1, keepdim=True)


def _value_scale(x: Tensor, centre: Tensor, stored: torch.dtype) -> Tensor:
    """The scale of each channel: for fp8 as in `quantize_near_centre`, for int8 from all tokens."""
    if stored is FP8:
        largest = SAMPLED_BOUND * (sample_of(x).float() - centre).abs().amax(dim=1, keepdim=True)
    else:
        minimum, maximum = torch.aminmax(x, dim=1, keepdim=True)
        largest = torch.maximum(maximum - centre, centre - minimum)
    return scale_for(largest, stored)


def _to_8_bits(x: Tensor, stored: torch.dtype) -> Tensor:
    rounded = x.round() if stored is torch.int8 else x
    return rounded.clamp(-LARGEST[stored], LARGEST[stored]).to(stored)


def sample_of(x: Tensor) -> Tensor:
    """Every so many tokens of [B, tokens, …]."""
    return x[:, :: sample_step(x.shape[1])]


def sample_step(tokens: int) -> int:
    """The distance of about a thousand evenly spaced tokens."""
    return max(1, tokens // SAMPLED_TOKENS)


def scale_for(largest: Tensor, stored: torch.dtype) -> Tensor:
    """The scale that maps `largest` to the maximum of an 8-bit type."""
    return largest.clamp(min=1e-12) / LARGEST[stored]


@torch.library.custom_op("talkinghead_lab::flash3_fp8", mutates_args=())
def _flash3_fp8(
    query: Tensor, key: Tensor, value: Tensor, query_scale: Tensor, key_scale: Tensor, value_scale: Tensor
) -> Tensor:
    """Attention of fp8 tensors with one scale per head, [B, heads]; returns bf16."""
    if query.device.type == "cpu":
        scale = (query_scale * key_scale / math.sqrt(query.shape[-1]))[..., None, None]
        query, key, value = (x.float().transpose(1, 2) for x in (query, key, value))
        out = _fp8_weighted((query @ key.mT) * scale, value)
        return (out.transpose(1, 2) * value_scale[:, None, :, None]).to(torch.bfloat16).contiguous()
    from fa3_fwd_interface import flash_attn_func

    scales = {"q_descale": query_scale, "k_descale": key_scale, "v_descale": value_scale}
    return flash_attn_func(query, key, value, **scales)


@torch.library.custom_op("talkinghead_lab::triton_attention", mutates_args=())
def _triton(query: Tensor, key: Tensor, value: Tensor, weights: torch.dtype) -> Tensor:
    """Attention with weights and values of an 8-bit type, quantising included."""
    factor = math.log2(math.e) / math.sqrt(query.shape[-1])
    if query.device.type == "cpu":
        out = _emulated(query.float(), key.float(), value.float(), weights, factor)
        return out.to(query.dtype).contiguous()
    from talkinghead_lab.models.kernels import triton_attention, triton_quantize

    query, key, value = (x.contiguous() for x in (query, key, value))
    tiles = triton_attention.tiles_of_this_gpu()
    tile = TILES[FP8] if weights is FP8 else tiles.keys
    quantized_query = triton_quantize.quantize_queries(query, factor)
    quantized_key = triton_quantize.quantize_keys(key, _centre(key), tile)
    centre = _centre(value)
    value_scale = _value_scale(value, centre, weights)
    quantized_value = triton_quantize.quantize_values(value, centre, value_scale, weights, tile)
    out = torch.empty_like(query)
    if weights is FP8:
        from talkinghead_lab.models.kernels import triton_hopper_attention

        triton_hopper_attention.attend(
            quantized_query, quantized_key, quantized_value, EXPONENTIAL_SHIFT, out
        )
    else:
        triton_attention.attend(quantized_query, quantized_key, quantized_value, tiles, EXPONENT_RANGE, out)
    return out


@_flash3_fp8.register_fake
def _(query: Tensor, *_: Tensor) -> Tensor:
    return query.new_empty(query.shape, dtype=torch.bfloat16)


@_triton.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, weights: torch.dtype) -> Tensor:
    return query.new_empty(query.shape)


def _emulated(query: Tensor, key: Tensor, value: Tensor, weights: torch.dtype, factor: float) -> Tensor:
    """The Triton kernels in float32 with their quantisation; scores times `factor` are in base 2."""
    tile = TILES[weights]
    int8_query, query_scale = quantize(query, torch.int8, (3,))
    key = key - _centre(key)
    tiles = F.pad(key, (0, 0, 0, 0, 0, -key.shape[1] % tile)).unflatten(1, (-1, tile))
    int8_key, key_scale = quantize(tiles, torch.int8, (2, 4))
    dequantized_key = (int8_key * key_scale).flatten(1, 2)[:, : key.shape[1]]
    value_scale = _value_scale(value, _centre(value), weights)
    stored_value = _to_8_bits((value - _centre(value)) / value_scale, weights).float()
    mean = (value - value_scale * stored_value).mean(dim=1, keepdim=True)
    query, key, stored_value = (
        x.transpose(1, 2) for x in (int8_query * query_scale, dequantized_key, stored_value)
    )
    scores = query @ key.mT * factor
    if weights is FP8:
        out = _fp8_weighted(scores * math.log(2), stored_value)
    else:
        out = _int8_weighted(scores, stored_value, tile)
    return out.transpose(1, 2) * value_scale + mean


def _fp8_weighted(scores: Tensor, value: Tensor) -> Tensor:
    """Softmax of [B, heads, L, N] times values [B, heads, N, head width], with exponentials in fp8."""
    weights = (scores - scores.amax(dim=-1, keepdim=True)).exp()
    fp8_weights = (weights * 2**EXPONENTIAL_SHIFT).to(FP8).float() / 2**EXPONENTIAL_SHIFT
    return fp8_weights @ value / weights.sum(dim=-1, keepdim=True)


def _int8_weighted(scores: Tensor, value: Tensor, tile: int) -> Tensor:
    """The same of scores in base 2, with exponentials in int8, scaled in each tile of keys."""
    tokens = scores.shape[-1]
    tiles = F.pad(scores, (0, -tokens % tile), value=-math.inf).unflatten(-1, (-1, tile))
    reference = tiles.amax(dim=-1, keepdim=True)
    highest = reference.cummax(dim=-2).values
    reference = reference.maximum(highest - EXPONENT_RANGE)
    factor = (reference - highest[..., -1:, :]).exp2() / LARGEST[torch.int8]
    weights = (tiles - reference).exp2() * LARGEST[torch.int8]
    int8_weights = (weights.round() * factor).flatten(-2)[..., :tokens]
    return int8_weights @ value / (weights * factor).sum(dim=(-2, -1))[..., None]
