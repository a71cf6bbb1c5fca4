"""Attention whose products run in eight bits, which a Hopper GPU does at twice the rate of bf16.

Two kernels: `flash3_fp8` rounds queries, keys and values to fp8 (e4m3) and needs the package fa3-fwd;
`triton` rounds queries and keys to int8, which is nearer, and values to fp8. Both round the exponentials to
fp8. Keys and values lose their mean over the tokens first, which most of their outliers share (SageAttention,
arXiv 2410.02367 and 2411.10958): a softmax does not change when every key moves by one vector, and the mean
of the values comes back with the weights, whose sum is one.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from talkinghead_lab.models.kernels.fp8 import FP8
from talkinghead_lab.models.kernels.fused_ops import mean_and_extremes

LARGEST = {FP8: torch.finfo(FP8).max, torch.int8: 127.0}
# Exponentials lie in (0, 1]; raised by 2^8 they use the range of e4m3, whose largest number is 448.
RAISED_BITS = 8.0
# Rows of the Triton kernel's tensors are padded to its tiles.
TILE = 128


def attention_flash3_fp8(
    query: Tensor, key: Tensor, value: Tensor, query_limit: Tensor | None = None
) -> Tensor:
    """Attention over [B, tokens, heads, head width]; the result has the query's shape and the values' type.

    On random normal tensors it is within 6 % of exact attention, relative to its norm. A `query_limit`
    [heads] that no channel exceeds stands for the largest one: fp8 is as near far below its largest number.
    A query in fp8 is one that was rounded by its limit.
    """
    if query_limit is None:
        rounded_query, query_scale = quantize(query.float(), FP8, (1, 3))
    else:
        limit = query_limit.view(1, 1, -1, 1).expand(len(query), -1, -1, -1)
        query_scale = scale_for(limit, FP8)
        rounded_query = query if query.dtype is FP8 else (query.float() / query_scale).to(FP8)
    rounded_key, key_scale, _ = quantize_centred(key, FP8)
    rounded_value, value_scale, mean = quantize_centred(value, FP8)
    scales = [scale.flatten(1) for scale in (query_scale, key_scale, value_scale)]
    out = _flash3_fp8(rounded_query, rounded_key, rounded_value, *scales)
    return (out.float() + mean).to(value.dtype)


def attention_triton(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention over [B, tokens, heads, head width]; the result has the query's shape and type.

    On random normal tensors it is within 4 % of exact attention, relative to its norm.
    """
    rounded_query, query_scale = quantize(query.float(), torch.int8, (3,))
    rounded_key, key_scale, _ = quantize_centred(key, torch.int8)
    rounded_value, value_scale, mean = quantize_centred(value, FP8)
    out = _triton(
        _padded(rounded_query),
        _padded(rounded_key),
        # The tensor cores take fp8 with the summed index innermost.
        _padded(rounded_value.view(torch.int8)).permute(0, 2, 3, 1).contiguous().view(FP8),
        _padded(query_scale).squeeze(-1).transpose(1, 2).contiguous(),
        key_scale.flatten(1),
        key.shape[1],
    )
    return (out[:, : query.shape[1]].float() * value_scale + mean).to(query.dtype)


def quantize(x: Tensor, stored: torch.dtype, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Round float32 to eight bits with one scale over `dims`, which stay with length 1: (rounded, scale)."""
    return _rounded(x, x.abs().amax(dim=dims, keepdim=True), stored)


def quantize_centred(x: Tensor, stored: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Round [B, tokens, heads, head width] less its mean over the tokens: (rounded, scale a head, mean).

    The largest distance from the mean is known from the extremes: one pass gives all three.
    """
    if x.is_cuda:
        mean, least, most = mean_and_extremes(x.flatten(2)).view(3, len(x), 1, *x.shape[2:])
        x = x.float()
    else:
        x = x.float()
        mean, least, most = (of(dim=1, keepdim=True) for of in (x.mean, x.amin, x.amax))
    farthest = torch.maximum(most - mean, mean - least)
    return *_rounded(x - mean, farthest.amax(dim=3, keepdim=True), stored), mean


def _rounded(x: Tensor, largest: Tensor, stored: torch.dtype) -> tuple[Tensor, Tensor]:
    scale = scale_for(largest, stored)
    scaled = x / scale
    return (scaled.round() if stored is torch.int8 else scaled).to(stored), scale


def scale_for(largest: Tensor, stored: torch.dtype) -> Tensor:
    """What a largest number is divided by to become the largest of an eight-bit type."""
    return largest.clamp(min=1e-12) / LARGEST[stored]


def _padded(x: Tensor) -> Tensor:
    """[B, tokens, …] with zeros up to whole tiles of tokens."""
    return F.pad(x, (0, 0, 0, 0, 0, -x.shape[1] % TILE))


@torch.library.custom_op("talkinghead_lab::flash3_fp8", mutates_args=())
def _flash3_fp8(
    query: Tensor, key: Tensor, value: Tensor, query_scale: Tensor, key_scale: Tensor, value_scale: Tensor
) -> Tensor:
    """Attention of fp8 tensors with a scale a head, [B, heads]; bf16."""
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
    """Attention of padded tensors: int8 queries and keys, fp8 values [B, heads, head width, padded]; bf16.

    `query_scale` is [B, heads, padded], `key_scale` [B, heads]; the values' scale is left to the caller.
    """
    query_scale = query_scale / math.sqrt(query.shape[-1])
    if query.device.type == "cpu":
        scale = (query_scale * key_scale[..., None])[..., None]
        out = _emulated(query, key[:, :tokens], value[..., :tokens].float().mT, scale)
        return out.to(torch.bfloat16)
    from talkinghead_lab.models.kernels.triton_attention import attend

    query_scale = query_scale * math.log2(math.e)
    out = torch.empty_like(query, dtype=torch.bfloat16)
    for entry, written in zip(zip(query, key, value, query_scale, key_scale, strict=True), out, strict=True):
        attend(*entry, tokens, RAISED_BITS, written)
    return out


@_flash3_fp8.register_fake
@_triton.register_fake
def _(query: Tensor, *_: Tensor) -> Tensor:
    return query.new_empty(query.shape, dtype=torch.bfloat16)


def _emulated(query: Tensor, key: Tensor, value: Tensor, scale: Tensor) -> Tensor:
    """The kernels' rounding in float32, for CPUs; `value` is [B, heads, tokens, head width]."""
    query, key = (x.float().transpose(1, 2) for x in (query, key))
    scores = query @ key.mT * scale
    weights = (scores - scores.amax(dim=-1, keepdim=True)).exp()
    rounded = (weights * 2**RAISED_BITS).to(FP8).float() / 2**RAISED_BITS
    return (rounded @ value / weights.sum(dim=-1, keepdim=True)).transpose(1, 2).contiguous()
