"""A Hopper kernel for attention to text plus attention to image, each with its own softmax. Needs Triton.

It reads the query once and writes the sum once. The model attends to the padding of a prompt, whose tokens
are all equal: the kernel reads one of them and adds the logarithm of their number to its score.
"""

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

ROWS, KEYS, WARPS, STAGES = 64, 64, 4, 3


@triton.jit
def _attend_to_context(
    query, keys, values, entry, channel, tokens, distinct_tokens, scale,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Online-softmax attention of one tile of queries to one context."""
    highest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, WIDTH], tl.float32)
    padding_bias = tl.log2((tokens - distinct_tokens + 1).to(tl.float32))
    for start in tl.range(0, distinct_tokens, KEYS, num_stages=STAGES):
        key = keys.load([entry, start, channel]).reshape(KEYS, WIDTH)
        token = start + tl.arange(0, KEYS)
        bias = tl.where(
            token < distinct_tokens - 1, 0.0, tl.where(token < distinct_tokens, padding_bias, float("-inf"))
        )
        scores = tl.dot(query, key.T) * scale + bias[None, :]
        new_highest = tl.maximum(highest, tl.max(scores, 1))
        weights = tl.exp2(scores - new_highest[:, None])
        decay = tl.exp2(highest - new_highest)
        total = total * decay + tl.sum(weights, 1)
        value = values.load([entry, start, channel]).reshape(KEYS, WIDTH)
        sums = tl.dot(weights.to(query.dtype), value, sums * decay[:, None])
        highest = new_highest
    return sums / total[:, None]


@triton.jit
def _attend(
    queries, text_keys, text_values, image_keys, image_values, outputs,
    text_tokens, distinct_tokens, image_tokens, scale,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    start, channel, entry = tl.program_id(0) * ROWS, tl.program_id(1) * WIDTH, tl.program_id(2)
    query = queries.load([entry, start, channel]).reshape(ROWS, WIDTH)
    distinct = tl.load(distinct_tokens + entry)
    out = _attend_to_context(
        query, text_keys, text_values, entry, channel, text_tokens, distinct, scale,
        WIDTH, ROWS, KEYS, STAGES,
    )  # fmt: skip
    out += _attend_to_context(
        query, image_keys, image_values, entry, channel, image_tokens, image_tokens, scale,
        WIDTH, ROWS, KEYS, STAGES,
    )  # fmt: skip
    outputs.store([entry, start, channel], out.to(query.dtype).reshape(1, ROWS, WIDTH))


def attend(query: Tensor, text: Sequence[Tensor], image: Sequence[Tensor], distinct_tokens: Tensor) -> Tensor:
    """Attention to text plus attention to image.

    Args:
        query: [B, L, heads, head width].
        text, image: keys and values [B, N, heads, head width].
        distinct_tokens: int32 [B], number of prompt tokens plus one token of padding; all later text tokens
            equal that one.
    """
    batch, length, heads, width = query.shape
    out = torch.empty_like(query)
    queries, outputs = (
        TensorDescriptor.from_tensor(each.flatten(2), [1, ROWS, width]) for each in (query, out)
    )
    contexts = [TensorDescriptor.from_tensor(each.flatten(2), [1, KEYS, width]) for each in (*text, *image)]
    _attend[(triton.cdiv(length, ROWS), heads, batch)](
        queries, *contexts, outputs, text[0].shape[1], distinct_tokens, image[0].shape[1],
        math.log2(math.e) / math.sqrt(width),
        WIDTH=width, ROWS=ROWS, KEYS=KEYS, STAGES=STAGES, num_warps=WARPS,
    )  # fmt: skip
    return out
