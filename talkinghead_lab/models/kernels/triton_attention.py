"""Attention with int8 matmuls, for GPUs of compute capability 8.0 and later. Needs Triton.

Tiled online softmax (FlashAttention, arXiv 2205.14135). Exponentials are quantised to int8 with one scale for
each query and tile of keys. Int8 is the fastest type that the tensor cores of all these GPUs share: on
GeForce GPUs 2 times as fast as fp8 and 4 times as fast as fp16, summed in float32 (NVIDIA's white papers).
"""

import math
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from talkinghead_lab.models.kernels.triton_quantize import LARGEST_INT8, to_int8

LOG2_LARGEST = tl.constexpr(math.log2(LARGEST_INT8.value))


class Tiles(NamedTuple):
    """Queries of a program, keys of a tile, warps, pipeline stages, registers per thread, how tiles are read.

    The tensor memory accelerator of Hopper GPUs reads through descriptors, which take no registers.
    """

    queries: int
    keys: int
    warps: int
    stages: int
    registers: int | None = None
    descriptors: bool = False


# The first have no register spills, as compiled by Triton 3.6 for compute capability 8.0, 8.6, 8.9, 10.0 and
# 12.0, and take 49 of the 100 KiB of shared memory of consumer GPUs. The others are the fastest on an H100.
TILES, HOPPER_TILES = Tiles(128, 64, 8, 3), Tiles(64, 128, 4, 2, 168, descriptors=True)
HOPPER = 90


def tiles_of_this_gpu() -> Tiles:
    """The tiles for the architecture that Triton compiles for, whatever capability the code believes in."""
    return HOPPER_TILES if triton.runtime.driver.active.get_current_target().arch == HOPPER else TILES


@triton.jit
def in_operand_order(weights):
    """Permute every 16 columns of weights: each thread then holds what the next matmul takes from it.

    The result of a matmul leaves columns 2q, 2q + 1, 2q + 8 and 2q + 9 of 16 in thread q of 4; an 8-bit
    operand takes columns 4q to 4q + 3. The order of keys is free, so values are stored in this order too.
    """
    ROWS: tl.constexpr = weights.shape[0]
    KEYS: tl.constexpr = weights.shape[1]
    weights = weights.reshape(ROWS, KEYS // 16, 2, 4, 2).permute(0, 1, 3, 2, 4)
    return weights.reshape(ROWS, KEYS)


@triton.jit
def _load(source, row, column, stride, offsets, mask, DESCRIPTORS: tl.constexpr):
    """A tile that begins at a row and a column of `source`, a descriptor or a pointer."""
    if DESCRIPTORS:
        tile = source.load([row, column])
    elif mask is None:
        tile = tl.load(source + row.to(tl.int64) * stride + column + offsets)
    else:
        tile = tl.load(source + row.to(tl.int64) * stride + column + offsets, mask, other=0)
    return tile


@triton.jit
def _add_tile(
    query, key, value, scale, keys_left, highest, reference, total, sums,
    RANGE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    scores = tl.dot(query, key.T).to(tl.float32)
    if MASKED:
        column = tl.arange(0, key.shape[0])
        scores = tl.where((column < keys_left)[None, :], scores, float("-inf"))
    # The weights of a tile are relative to its own maximum, and `sums` and `total` with them.
    new_reference = tl.maximum(tl.max(scores, 1) * scale, highest - RANGE)
    weights = tl.exp2(scores * scale[:, None] - (new_reference - LOG2_LARGEST)[:, None])
    decay = tl.exp2(reference - new_reference)
    total = total * decay + tl.sum(weights, 1)
    sums = sums * decay[:, None]
    sums += tl.dot(in_operand_order(to_int8(weights)), value.T).to(tl.float32)
    return tl.maximum(highest, new_reference), new_reference, total, sums


@triton.jit
def _attend(
    queries, keys, values, outputs, query_scales, key_scales, value_scales, value_means,
    tokens, key_tokens, padded,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, RANGE: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    head, heads, entry = tl.program_id(1), tl.num_programs(1), tl.program_id(2)
    token, channel = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTH)
    inside = token < tokens
    row = (entry * tokens + token).to(tl.int64) * heads + head
    here = row[:, None] * WIDTH + channel[None, :]
    query = tl.load(queries + here, inside[:, None], other=0)
    query_scale = tl.load(query_scales + row, inside, other=0.0)
    column = tl.arange(0, KEYS)
    step, first_key = heads * WIDTH, entry * key_tokens
    # Offsets of 32 bits within a tile, to save registers.
    key_offsets = column[:, None] * step + channel[None, :]
    value_offsets = channel[:, None] * padded + column[None, :]
    channels = (entry * heads + head) * WIDTH
    key_scales += (entry * heads + head) * tl.cdiv(key_tokens, KEYS)
    highest = tl.full([ROWS], float("-inf"), tl.float32)
    reference = highest
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, WIDTH], tl.float32)
    full = key_tokens // KEYS * KEYS
    for start in tl.range(0, full, KEYS):
        scale = query_scale * tl.load(key_scales + start // KEYS)
        key = _load(keys, first_key + start, head * WIDTH, step, key_offsets, None, DESCRIPTORS)
        value = _load(values, channels, start, padded, value_offsets, None, DESCRIPTORS)
        highest, reference, total, sums = _add_tile(
            query, key, value, scale, KEYS, highest, reference, total, sums, RANGE, False
        )
    left = key_tokens - full
    if left > 0:
        scale = query_scale * tl.load(key_scales + full // KEYS)
        mask = (column < left)[:, None]
        key = _load(keys, first_key + full, head * WIDTH, step, key_offsets, mask, DESCRIPTORS)
        value = _load(values, channels, full, padded, value_offsets, None, DESCRIPTORS)
        highest, reference, total, sums = _add_tile(
            query, key, value, scale, left, highest, reference, total, sums, RANGE, True
        )
    out = sums / total[:, None] * tl.load(value_scales + channels + channel)[None, :]
    out += tl.load(value_means + channels + channel)[None, :]
    tl.store(outputs + here, out.to(outputs.dtype.element_ty), inside[:, None])


def attend(
    query: tuple[Tensor, Tensor],
    key: tuple[Tensor, Tensor],
    value: tuple[Tensor, Tensor, Tensor],
    tiles: Tiles,
    exponent_range: float,
    out: Tensor,
) -> None:
    """Attention of int8 queries, keys and values as `triton_quantize` returns them, written to `out`.

    Args:
        query: with scales that include the factors 1 / sqrt(head width) and log2(e).
        key, value: keys with one scale for every tile of them, values padded to full tiles.
        tiles: as `tiles_of_this_gpu` returns them.
        exponent_range: a tile whose maximum is further below the running maximum, in powers of two, is
            quantised relative to that distance.
        out: [B, L, heads, head width], float.
    """
    batch, tokens, heads, width = out.shape
    keys, values = key[0].flatten(2).flatten(0, 1), value[0].flatten(0, 2)
    if tiles.descriptors:
        keys = TensorDescriptor.from_tensor(keys, [tiles.keys, width])
        values = TensorDescriptor.from_tensor(values, [width, tiles.keys])
    _attend[(triton.cdiv(tokens, tiles.queries), heads, batch)](
        query[0], keys, values, out, query[1], key[1], *value[1:], tokens, key[0].shape[1], value[0].shape[3],
        WIDTH=width, ROWS=tiles.queries, KEYS=tiles.keys, RANGE=exponent_range,
        DESCRIPTORS=tiles.descriptors, num_warps=tiles.warps, num_stages=tiles.stages,
        maxnreg=tiles.registers,
    )  # fmt: skip
