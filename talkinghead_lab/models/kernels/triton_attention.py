"""An 8-bit attention kernel for Hopper: int8 queries and keys, fp8 softmax weights and values. Needs Triton.

Tiled online softmax (FlashAttention, arXiv 2205.14135) with the operand types of SageAttention2 (arXiv
2411.10958). Tiles are loaded through descriptors of the tensor memory accelerator.
"""

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

# The fastest of fifteen settings on an H100. With at most 168 registers per thread, three programs fit on a
# multiprocessor: while one computes exponentials, another uses the tensor cores.
ROWS, KEYS, WARPS, STAGES, REGISTERS = 64, 128, 4, 2, 168


@triton.jit
def _tile(scores, scale, highest, total, sums, value, SHIFT: tl.constexpr):
    """Rescale the running sums to the new maximum and add the contribution of one tile of keys."""
    new_highest = tl.maximum(highest, tl.max(scores, 1) * scale)
    weights = tl.exp2(scores * scale[:, None] - (new_highest - SHIFT)[:, None])
    decay = tl.exp2(highest - new_highest)
    total = total * decay + tl.sum(weights, 1)
    sums = sums * decay[:, None]
    # Not accumulated by the matmul itself: fp8 tensor cores accumulate with few bits.
    sums += tl.dot(weights.to(tl.float8e4nv), value.T)
    return new_highest, total, sums


@triton.jit
def _attend(
    queries, keys, values, outputs, query_scales, key_scales, tokens, rows_padded,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, SHIFT: tl.constexpr,
):  # fmt: skip
    start, head = tl.program_id(0) * ROWS, tl.program_id(1)
    channel = head * WIDTH
    query = queries.load([start, channel])
    rows = start + tl.arange(0, ROWS)
    scale = tl.load(query_scales + head * rows_padded + rows) * tl.load(key_scales + head)
    highest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, WIDTH], tl.float32)
    full = tokens // KEYS * KEYS
    for column in tl.range(0, full, KEYS):
        scores = tl.dot(query, keys.load([column, channel]).T).to(tl.float32)
        value = values.load([channel, column])
        highest, total, sums = _tile(scores, scale, highest, total, sums, value, SHIFT)
    if full < tokens:
        scores = tl.dot(query, keys.load([full, channel]).T).to(tl.float32)
        scores = tl.where((full + tl.arange(0, KEYS))[None, :] < tokens, scores, float("-inf"))
        value = values.load([channel, full])
        highest, total, sums = _tile(scores, scale, highest, total, sums, value, SHIFT)
    outputs.store([start, channel], (sums / total[:, None]).to(tl.bfloat16))


def attend(
    query: Tensor, key: Tensor, value: Tensor, query_scale: Tensor, key_scale: Tensor, tokens: int,
    exponential_shift: float, out: Tensor,
) -> None:  # fmt: skip
    """Attention of one batch entry over tensors padded to full tiles, written to `out`.

    Args:
        query, key: int8, [padded, heads, head width].
        value: fp8, [heads, head width, padded], zero beyond `tokens`.
        query_scale: float32 [heads, padded], including the factors 1 / sqrt(head width) and log2(e).
        key_scale: float32 [heads].
        tokens: number of keys without padding.
        exponential_shift: exponentials are multiplied by 2 to this power before they are quantised.
        out: bf16, shaped as the query.
    """
    padded, heads, width = query.shape
    descriptors = [
        TensorDescriptor.from_tensor(query.flatten(1), [ROWS, width]),
        TensorDescriptor.from_tensor(key.flatten(1), [KEYS, width]),
        TensorDescriptor.from_tensor(value.flatten(0, 1), [width, KEYS]),
        TensorDescriptor.from_tensor(out.flatten(1), [ROWS, width]),
    ]
    _attend[(triton.cdiv(padded, ROWS), heads)](
        *descriptors, query_scale, key_scale, tokens, padded,
        WIDTH=width, ROWS=ROWS, KEYS=KEYS, SHIFT=exponential_shift,
        num_warps=WARPS, num_stages=STAGES, maxnreg=REGISTERS,
    )  # fmt: skip
