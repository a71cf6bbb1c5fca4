"""A kernel for attention to text plus attention to image, each with its own softmax. Needs Triton.

It reads the query once and writes the sum once. The query comes before its norm: the factor of a row scales
its scores, the weight of a channel scales the keys. The model attends to the padding of a prompt, whose
tokens are all equal: the kernel reads one of them and adds the logarithm of their number to its score.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from talkinghead_lab.foundation.devices import capability

# Keys per tile and pipeline stages. A Hopper GPU loads tiles through descriptors of its tensor memory
# accelerator. Others, of which some have 99 KiB of shared memory, load through pointers; with 64 keys, or
# through descriptors, their registers spill.
HOPPER_KEYS, HOPPER_STAGES = 64, 3
KEYS, STAGES = 32, 2
ROWS, WARPS = 64, 4


@triton.jit
def _row_factors(rows, factors, eps, scale, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, PADDED)
    x = tl.load(rows + row * WIDTH + channel, channel < WIDTH, other=0.0).to(tl.float32)
    tl.store(factors + row, tl.rsqrt(tl.sum(x * x, 0) / WIDTH + eps) * scale)


@triton.jit
def _load(
    source, entry, start, channel, tokens, stride,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """Rows of one head, [ROWS, WIDTH]; zero beyond the last token."""
    if DESCRIPTORS:
        tile = source.load([entry, start, channel]).reshape(ROWS, WIDTH)
    else:
        token = start + tl.arange(0, ROWS)[:, None]
        first = source + entry.to(tl.int64) * tokens * stride + channel
        tile = tl.load(first + token * stride + tl.arange(0, WIDTH)[None, :], token < tokens, other=0.0)
    return tile


@triton.jit
def _attend_to_context(
    query, factor, keys, values, entry, channel, tokens, distinct_tokens, stride,
    WIDTH: tl.constexpr, KEYS: tl.constexpr, STAGES: tl.constexpr, DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """Online-softmax attention of one tile of queries to one context."""
    highest = tl.zeros_like(factor) - float("inf")
    total = tl.zeros_like(factor)
    sums = tl.zeros([factor.shape[0], WIDTH], tl.float32)
    padding_bias = tl.log2((tokens - distinct_tokens + 1).to(tl.float32))
    for start in tl.range(0, distinct_tokens, KEYS, num_stages=STAGES):
        key = _load(keys, entry, start, channel, tokens, stride, WIDTH, KEYS, DESCRIPTORS)
        token = start + tl.arange(0, KEYS)
        bias = tl.where(
            token < distinct_tokens - 1, 0.0, tl.where(token < distinct_tokens, padding_bias, float("-inf"))
        )
        scores = tl.dot(query, key.T) * factor[:, None] + bias[None, :]
        new_highest = tl.maximum(highest, tl.max(scores, 1))
        weights = tl.exp2(scores - new_highest[:, None])
        decay = tl.exp2(highest - new_highest)
        total = total * decay + tl.sum(weights, 1)
        value = _load(values, entry, start, channel, tokens, stride, WIDTH, KEYS, DESCRIPTORS)
        sums = tl.dot(weights.to(query.dtype), value, sums * decay[:, None])
        highest = new_highest
    return sums / total[:, None]


@triton.jit
def _attend(
    queries, factors, text_keys, text_values, image_keys, image_values, outputs,
    length, text_tokens, distinct_tokens, image_tokens, stride,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, STAGES: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    start, channel, entry = tl.program_id(0) * ROWS, tl.program_id(1) * WIDTH, tl.program_id(2)
    query = _load(queries, entry, start, channel, length, stride, WIDTH, ROWS, DESCRIPTORS)
    row = start + tl.arange(0, ROWS)
    factor = tl.load(factors + entry * length + row, row < length, other=0.0)
    distinct = tl.load(distinct_tokens + entry)
    out = _attend_to_context(
        query, factor, text_keys, text_values, entry, channel, text_tokens, distinct, stride,
        WIDTH, KEYS, STAGES, DESCRIPTORS,
    )  # fmt: skip
    out += _attend_to_context(
        query, factor, image_keys, image_values, entry, channel, image_tokens, image_tokens, stride,
        WIDTH, KEYS, STAGES, DESCRIPTORS,
    )  # fmt: skip
    if DESCRIPTORS:
        outputs.store([entry, start, channel], out.to(query.dtype).reshape(1, ROWS, WIDTH))
    else:
        first = outputs + entry.to(tl.int64) * length * stride + channel
        here = first + row[:, None] * stride + tl.arange(0, WIDTH)[None, :]
        tl.store(here, out.to(query.dtype), row[:, None] < length)


def attend(
    query: Tensor,
    norm_weight: Tensor,
    eps: float,
    text: Sequence[Tensor],
    image: Sequence[Tensor],
    distinct_tokens: Tensor,
) -> Tensor:
    """Attention of the RMS-normed query to text plus attention to image.

    Args:
        query: [B, L, heads, head width], before its norm over the full width.
        norm_weight: [heads · head width], of the norm.
        eps: added to the mean square.
        text, image: keys and values [B, N, heads, head width].
        distinct_tokens: int32 [B], number of prompt tokens plus one token of padding; all later text tokens
            equal that one.
    """
    batch, length, heads, width = query.shape
    full = heads * width
    factors = query.new_empty(batch, length, dtype=torch.float32)
    _row_factors[(batch * length,)](
        query, factors, eps, math.log2(math.e) / math.sqrt(width),
        WIDTH=full, PADDED=triton.next_power_of_2(full), num_warps=WARPS,
    )  # fmt: skip
    contexts = [
        tensor
        for key, value in (text, image)
        for tensor in (key * norm_weight.view(heads, width), value.contiguous())
    ]
    out = torch.empty_like(query)
    use_descriptors = capability(query.device)[0] == 9
    keys, stages = (HOPPER_KEYS, HOPPER_STAGES) if use_descriptors else (KEYS, STAGES)

    def tiles(x: Tensor, rows: int) -> Any:
        return TensorDescriptor.from_tensor(x.flatten(2), [1, rows, width]) if use_descriptors else x

    _attend[(triton.cdiv(length, ROWS), heads, batch)](
        tiles(query, ROWS), factors, *(tiles(each, keys) for each in contexts), tiles(out, ROWS),
        length, text[0].shape[1], distinct_tokens, image[0].shape[1], full,
        WIDTH=width, ROWS=ROWS, KEYS=keys, STAGES=stages, DESCRIPTORS=use_descriptors, num_warps=WARPS,
    )  # fmt: skip
    return out
