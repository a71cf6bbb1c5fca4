"""Triton kernels that quantise queries, keys and values for attention. Needs Triton.

`quantized_attention` explains the scales and computes the same in PyTorch on a CPU.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from talkinghead_lab.models.kernels.triton_rows import LARGEST

# Added to a float below 2^22, 1.5 · 2^23 leaves the nearest integer in the low bits.
ROUNDING = tl.constexpr(12582912.0)
LARGEST_INT8 = tl.constexpr(127.0)
SMALLEST = tl.constexpr(1e-12)
TOKENS_PER_PROGRAM = 64
VALUE_WARPS = 8


@triton.jit
def to_int8(x):
    """Round to the nearest integer; `x` lies within the range of int8."""
    return (x + ROUNDING).to(tl.int32, bitcast=True).to(tl.int8)


@triton.jit
def _quantize(
    inputs, centres, outputs, scales, tokens, factor, WIDTH: tl.constexpr, TOKENS: tl.constexpr
):  # fmt: skip
    tile, head, entry = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    heads = tl.num_programs(1)
    token, channel = tile * TOKENS + tl.arange(0, TOKENS), tl.arange(0, WIDTH)
    inside = token < tokens
    row = (entry * tokens + token).to(tl.int64) * heads + head
    place = row[:, None] * WIDTH + channel[None, :]
    x = tl.load(inputs + place, inside[:, None], other=0.0).to(tl.float32)
    if centres is None:
        scale = tl.maximum(tl.max(tl.abs(x), 1), SMALLEST) / LARGEST_INT8
        tl.store(scales + row, scale * factor, inside)
        x *= (1.0 / scale)[:, None]
    else:
        x -= tl.load(centres + (entry * heads + head) * WIDTH + channel)[None, :]
        x = tl.where(inside[:, None], x, 0.0)
        scale = tl.maximum(tl.max(tl.abs(x)), SMALLEST) / LARGEST_INT8
        tl.store(scales + (entry * heads + head) * tl.num_programs(0) + tile, scale * factor)
        x *= 1.0 / scale
    tl.store(outputs + place, to_int8(x), inside[:, None])


def quantize_queries(x: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """Quantise to int8 with one scale per token and head.

    Args:
        x: [B, L, heads, head width].
        factor: multiplies the scales.

    Returns:
        int8 as `x`, and float32 scales [B, L, heads].
    """
    batch, tokens, heads, width = x.shape
    out, scale = torch.empty_like(x, dtype=torch.int8), x.new_empty(x.shape[:3], dtype=torch.float32)
    _quantize[(triton.cdiv(tokens, TOKENS_PER_PROGRAM), heads, batch)](
        x, None, out, scale, tokens, factor, WIDTH=width, TOKENS=TOKENS_PER_PROGRAM
    )
    return out, scale


def quantize_keys(x: Tensor, centre: Tensor, tile: int) -> tuple[Tensor, Tensor]:
    """Subtract a float32 centre [B, 1, heads, head width] from [B, N, heads, head width]; quantise to int8.

    Returns:
        int8 as `x`, and one float32 scale for each `tile` of tokens, [B, heads, tiles].
    """
    batch, tokens, heads, width = x.shape
    tiles = triton.cdiv(tokens, tile)
    out, scale = torch.empty_like(x, dtype=torch.int8), x.new_empty(batch, heads, tiles, dtype=torch.float32)
    _quantize[(tiles, heads, batch)](x, centre, out, scale, tokens, 1.0, WIDTH=width, TOKENS=tile)
    return out, scale


@triton.jit
def _quantize_values(
    inputs, centres, scales, outputs, lost, tokens, padded, WIDTH: tl.constexpr, TILE: tl.constexpr
):  # fmt: skip
    tile, head, entry = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    heads = tl.num_programs(1)
    position, channel = tl.arange(0, TILE), tl.arange(0, WIDTH)
    # The inverse of `triton_attention.in_operand_order`.
    token = tile * TILE + position // 16 * 16 + position // 2 % 2 * 8 + position // 4 % 4 * 2 + position % 2
    inside = token < tokens
    row = (entry * tokens + token).to(tl.int64) * heads + head
    x = tl.load(inputs + row[:, None] * WIDTH + channel[None, :], inside[:, None], other=0.0).to(tl.float32)
    channels = (entry * heads + head) * WIDTH + channel
    x = (x - tl.load(centres + channels)[None, :]) / tl.load(scales + channels)[None, :]
    x = tl.where(inside[:, None], x, 0.0)
    if outputs.dtype.element_ty == tl.int8:
        stored = to_int8(x)
    else:
        stored = tl.clamp(x, -LARGEST, LARGEST).to(outputs.dtype.element_ty)
    tl.store(outputs + channels.to(tl.int64)[None, :] * padded + (tile * TILE + position)[:, None], stored)
    place = lost + ((entry * tl.num_programs(0) + tile) * heads + head) * WIDTH + channel
    tl.store(place, tl.sum(x - stored.to(tl.float32), 0))


def quantize_values(
    x: Tensor, centre: Tensor, scale: Tensor, stored: torch.dtype, tile: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Quantise [B, N, heads, head width] minus a centre, with one scale per channel.

    Args:
        x: the values.
        centre, scale: float32 [B, 1, heads, head width].
        stored: int8 or fp8.
        tile: the result is padded with zeros to a multiple of this number of tokens.

    Returns:
        The 8-bit tensor [B, heads, head width, padded tokens], every 16 tokens in the order of
        `triton_attention.in_operand_order`; the scale; and shaped alike, the mean of x − scale · quantised.
    """
    batch, tokens, heads, width = x.shape
    tiles = triton.cdiv(tokens, tile)
    out = x.new_empty(batch, heads, width, tiles * tile, dtype=stored)
    lost = x.new_empty(batch, tiles, heads, width, dtype=torch.float32)
    _quantize_values[(tiles, heads, batch)](
        x, centre, scale, out, lost, tokens, tiles * tile, WIDTH=width, TILE=tile, num_warps=VALUE_WARPS
    )
    return out, scale, centre + scale * (lost.sum(dim=1, keepdim=True) / tokens)
