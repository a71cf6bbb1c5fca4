"""One Hopper kernel for attention to two short contexts, each with a softmax of its own. Needs Triton.

The query is read and the sum of both results written once. Of the padding of a prompt, which is attended to
and whose tokens are all the same, one token is read: its score is raised by the logarithm of their number.
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
def _attended(
    query, keys, values, entry, channel, tokens, distinct, scale,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Softmax attention of a tile of queries to one context, by the online softmax."""
    highest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, WIDTH], tl.float32)
    repeats = tl.log2((tokens - distinct + 1).to(tl.float32))
    for start in tl.range(0, distinct, KEYS, num_stages=STAGES):
        key = keys.load([entry, start, channel]).reshape(KEYS, WIDTH)
        token = start + tl.arange(0, KEYS)
        raised = tl.where(token < distinct - 1, 0.0, tl.where(token < distinct, repeats, float("-inf")))
        scores = tl.dot(query, key.T) * scale + raised[None, :]
        new_highest = tl.maximum(highest, tl.max(scores, 1))
        weights = tl.exp2(scores - new_highest[:, None])
        faded = tl.exp2(highest - new_highest)
        total = total * faded + tl.sum(weights, 1)
        value = values.load([entry, start, channel]).reshape(KEYS, WIDTH)
        sums = tl.dot(weights.to(query.dtype), value, sums * faded[:, None])
        highest = new_highest
    return sums / total[:, None]


@triton.jit
def _attend(
    queries, keys, values, more_keys, more_values, outputs, tokens, distinct, more_tokens, scale,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    start, channel, entry = tl.program_id(0) * ROWS, tl.program_id(1) * WIDTH, tl.program_id(2)
    query = queries.load([entry, start, channel]).reshape(ROWS, WIDTH)
    distinct = tl.load(distinct + entry)
    out = _attended(query, keys, values, entry, channel, tokens, distinct, scale, WIDTH, ROWS, KEYS, STAGES)
    out += _attended(
        query, more_keys, more_values, entry, channel, more_tokens, more_tokens, scale,
        WIDTH, ROWS, KEYS, STAGES,
    )  # fmt: skip
    outputs.store([entry, start, channel], out.to(query.dtype).reshape(1, ROWS, WIDTH))


def attend(query: Tensor, text: Sequence[Tensor], image: Sequence[Tensor], distinct: Tensor) -> Tensor:
    """Sum of the attentions to text and image.

    Args:
        query: [B, L, heads, head width].
        text, image: keys and values [B, N, heads, head width].
        distinct: int32 [B]; the tokens of the text from `distinct` − 1 on are the same.
    """
    batch, length, heads, width = query.shape
    out = torch.empty_like(query)
    queries, outputs = (
        TensorDescriptor.from_tensor(each.flatten(2), [1, ROWS, width]) for each in (query, out)
    )
    contexts = [TensorDescriptor.from_tensor(each.flatten(2), [1, KEYS, width]) for each in (*text, *image)]
    _attend[(triton.cdiv(length, ROWS), heads, batch)](
        queries, *contexts, outputs, text[0].shape[1], distinct, image[0].shape[1],
        math.log2(math.e) / math.sqrt(width),
        WIDTH=width, ROWS=ROWS, KEYS=KEYS, STAGES=STAGES, num_warps=WARPS,
    )  # fmt: skip
    return out
