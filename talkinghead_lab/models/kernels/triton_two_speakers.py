"""Triton kernels for two speakers: attention to their regions, and to the audio of both. Needs Triton."""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

# Tiles of attention to the regions: queries, keys, and columns of masks, as many as a matmul takes at least.
ROWS, KEYS, COLUMNS, WARPS, STAGES = 128, 64, 16, 4, 2
# Attention to the audio: queries of a tile, heads of a program, which share the tables of its rotation.
AUDIO_ROWS, AUDIO_HEADS, AUDIO_WARPS, AUDIO_STAGES = 64, 20, 4, 2


@triton.jit
def _attention_to_masks(
    queries, keys, masks, outputs, tokens, regions, scale,
    query_batch, query_token, query_head, key_batch, key_token, key_head,
    COUNT: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, COLUMNS: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    head, entry = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    row, channel = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTH)
    column = tl.arange(0, COLUMNS)
    queries += entry * query_batch + head * query_head
    keys += entry * key_batch + head * key_head
    query = tl.load(
        queries + row[:, None].to(tl.int64) * query_token + channel, row[:, None] < tokens, other=0.0
    )
    highest = tl.full([ROWS], float("-inf"), tl.float32)
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in tl.range(0, COUNT, KEYS, num_stages=STAGES):
        token = start + tl.arange(0, KEYS)
        # Keys beyond the last repeat it, which leaves the maximum unchanged; all their masks are zero.
        place = tl.minimum(token, COUNT - 1)[None, :] * key_token + channel[:, None]
        scores = tl.dot(query, tl.load(keys + place))
        new_highest = tl.maximum(highest, tl.max(scores, 1) * scale)
        weights = tl.exp2(scores * scale - new_highest[:, None]).to(query.dtype)
        mask = tl.load(masks + token[:, None] * COLUMNS + column)
        sums = tl.dot(weights, mask, sums * tl.exp2(highest - new_highest)[:, None])
        highest = new_highest
    # The column after the last mask holds ones, so it sums the same rounded weights as the masks do.
    total = tl.sum(tl.where(column[None, :] == regions, sums, 0.0), 1)
    place = ((entry * tl.num_programs(1) + head) * regions + column[None, :]) * tokens + row[:, None]
    inside = (column[None, :] < regions) & (row[:, None] < tokens)
    tl.store(outputs + place, sums / total[:, None], inside)


def attention_to_masks(query: Tensor, key: Tensor, masks: Tensor) -> Tensor:
    """softmax(QKᵀ)·masks summed over heads, float32 [B, R, L].

    Args:
        query: [B, L, heads, head width], of any strides but the last.
        key: [B, S, heads, head width], likewise.
        masks: [R, S] of 0 and 1; R < 16.
    """
    (batch, tokens, heads, width), count, regions = query.shape, key.shape[1], len(masks)
    columns = query.new_zeros(triton.cdiv(count, KEYS) * KEYS, COLUMNS)
    columns[:count, :regions] = masks.mT
    columns[:count, regions] = 1
    # Every head is written by itself and summed afterwards: atomic sums would differ from run to run.
    out = query.new_empty(batch, heads, regions, tokens, dtype=torch.float32)
    _attention_to_masks[(triton.cdiv(tokens, ROWS), heads, batch)](
        query, key, columns, out, tokens, regions, math.log2(math.e) / math.sqrt(width),
        *query.stride()[:3], *key.stride()[:3],
        COUNT=count, WIDTH=width, ROWS=ROWS, KEYS=KEYS, COLUMNS=COLUMNS, STAGES=STAGES, num_warps=WARPS,
    )  # fmt: skip
    return out.sum(dim=1)


@triton.jit
def _rotated_attention_weights(
    queries, cosines, sines, keys, outputs, frame_tokens, count, heads, scale,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    frame, first_head = tl.program_id(1).to(tl.int64), tl.program_id(2) * HEADS
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside, token = (row < frame_tokens)[:, None], (frame * frame_tokens + row)[:, None]
    column, channel = tl.arange(0, KEYS), tl.arange(0, WIDTH)
    # The tables hold each pair's cosine and sine twice; the second sine has the positive sign.
    entry = token * WIDTH + 2 * tl.arange(0, WIDTH // 2) + 1
    cosine = tl.load(cosines + entry, inside, other=0.0)
    sine = tl.load(sines + entry, inside, other=0.0)
    for step in range(HEADS):
        head = first_head + step
        here = inside & (head < heads)
        query = tl.load(queries + (token * heads + head) * WIDTH + channel, here, other=0.0)
        even, odd = tl.split(query.to(tl.float32).reshape(ROWS, WIDTH // 2, 2))
        rotated = tl.join(even * cosine - odd * sine, odd * cosine + even * sine).reshape(ROWS, WIDTH)
        place = ((frame * count + column) * heads + head) * WIDTH
        known = (column[None, :] < count) & (head < heads)
        key = tl.load(keys + place[None, :] + channel[:, None], known, other=0.0)
        scores = tl.dot(rotated.to(query.dtype), key) * scale
        scores = tl.where(column[None, :] < count, scores, float("-inf"))
        weights = tl.exp2(scores - tl.max(scores, 1)[:, None])
        weights = (weights / tl.sum(weights, 1)[:, None]).to(query.dtype)
        place = (token * heads + head) * count + column
        tl.store(outputs + place, weights, here & (column < count)[None, :])


def rotated_attention_weights(query: Tensor, cosine: Tensor, sine: Tensor, key: Tensor) -> Tensor:
    """Rotate queries and attend to the audio of their frame; see the op of the same name."""
    (frames, count, heads, width), tokens = key.shape, query.shape[0] * query.shape[1]
    frame_tokens = tokens // frames
    out = query.new_empty(frames, frame_tokens, heads * count)
    grid = triton.cdiv(frame_tokens, AUDIO_ROWS), frames, triton.cdiv(heads, AUDIO_HEADS)
    _rotated_attention_weights[grid](
        query.contiguous(), cosine.contiguous(), sine.contiguous(), key.contiguous(), out,
        frame_tokens, count, heads, math.log2(math.e) / math.sqrt(width),
        WIDTH=width, ROWS=AUDIO_ROWS, KEYS=max(16, triton.next_power_of_2(count)), HEADS=AUDIO_HEADS,
        num_warps=AUDIO_WARPS, num_stages=AUDIO_STAGES,
    )  # fmt: skip
    return out
