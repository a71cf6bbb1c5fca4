"""Attention for Hopper GPUs: int8 queries and keys, fp8 weights and values. Needs Triton with Gluon.

Tiled online softmax (FlashAttention, arXiv 2205.14135) with the operand types of SageAttention2 (arXiv
2411.10958). Three groups of four warps attend for 64 queries each and read the same keys and values, which
one more warp copies into shared memory ahead of them. While one group computes exponentials, another uses
the tensor cores.
"""

import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

# The fastest on an H100: docs/performance-kernels.md.
GROUPS, ROWS, KEYS, STAGES = 3, 64, 128, 2
# Registers of a thread: 160 in each group (the first gets the rest), 24 in the copying warp.
REGISTERS, COPYING_REGISTERS = 160, 24


@gluon.jit
def _in_operand_order(weights, ROWS: gl.constexpr, KEYS: gl.constexpr):
    """As `triton_attention.in_operand_order`."""
    weights = weights.reshape(ROWS, KEYS // 16, 2, 4, 2).permute(0, 1, 3, 2, 4)
    return weights.reshape(ROWS, KEYS)


@gluon.jit
def _add_tile(
    query, key, value, barriers, phase, scale, keys_left, highest, total, sums,
    SHIFT: gl.constexpr, MASKED: gl.constexpr,
):  # fmt: skip
    ROWS: gl.constexpr = query.shape[0]
    KEYS: gl.constexpr = key.shape[0]
    layout: gl.constexpr = sums.type.layout
    score_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KEYS, 32])
    key_full, key_empty, value_full, value_empty = barriers
    mbarrier.wait(key_full, phase)
    scores = gl.zeros([ROWS, KEYS], gl.int32, score_layout)
    scores = warpgroup_mma(query, key.permute((1, 0)), scores, use_acc=False)
    mbarrier.arrive(key_empty)
    scores = scores.to(gl.float32)
    if MASKED:
        column = gl.arange(0, KEYS, gl.SliceLayout(0, score_layout))
        scores = gl.where((column < keys_left)[None, :], scores, float("-inf"))
    new_highest = gl.maximum(highest, gl.max(scores, 1) * scale)
    weights = gl.exp2(scores * scale[:, None] - (new_highest - SHIFT)[:, None])
    decay = gl.exp2(highest - new_highest)
    total = total * decay + gl.sum(weights, 1)
    weights = _in_operand_order(weights.to(value.dtype), ROWS, KEYS)
    weights = gl.convert_layout(weights, gl.DotOperandLayout(0, layout, 4), assert_trivial=True)
    mbarrier.wait(value_full, phase)
    update = warpgroup_mma(weights, value.permute((1, 0)), gl.zeros_like(sums), use_acc=False)
    mbarrier.arrive(value_empty)
    # Not accumulated by the matmul itself: fp8 tensor cores accumulate with few bits.
    sums = sums * gl.convert_layout(decay, gl.SliceLayout(1, layout))[:, None] + update
    return new_highest, total, sums


@gluon.jit
def _stage(barriers, stage):
    key_full, key_empty, value_full, value_empty = barriers
    return key_full.index(stage), key_empty.index(stage), value_full.index(stage), value_empty.index(stage)


@gluon.jit
def _attend_group(
    GROUP: gl.constexpr, shared, outputs, scales, tokens, key_tokens, SHIFT: gl.constexpr
):  # fmt: skip
    """The attention of 64 queries, by four warps."""
    queries, keys, values, query_ready, barriers = shared
    query_scales, key_scales, value_scales, value_means = scales
    GROUPS: gl.constexpr = queries.shape[0]
    ROWS: gl.constexpr = queries.shape[1]
    STAGES: gl.constexpr = keys.shape[0]
    KEYS: gl.constexpr = keys.shape[1]
    WIDTH: gl.constexpr = keys.shape[2]
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WIDTH, 32])
    score_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KEYS, 32])
    row_layout: gl.constexpr = gl.SliceLayout(1, score_layout)
    head, heads, entry = gl.program_id(1), gl.num_programs(1), gl.program_id(2)
    start = (gl.program_id(0) * GROUPS + GROUP) * ROWS
    token = start + gl.arange(0, ROWS, row_layout)
    row = (entry * tokens + token).to(gl.int64) * heads + head
    query_scale = gl.load(query_scales + row, token < tokens, other=0.0)
    tiles, full = gl.cdiv(key_tokens, KEYS), key_tokens // KEYS
    key_scales += (entry * heads + head) * tiles
    key_scale = gl.load(key_scales)
    highest = gl.full([ROWS], float("-inf"), gl.float32, row_layout)
    total = gl.zeros([ROWS], gl.float32, row_layout)
    sums = gl.zeros([ROWS, WIDTH], gl.float32, layout)
    mbarrier.wait(query_ready, 0)
    query = queries.index(GROUP)
    for tile in range(full):
        scale = query_scale * key_scale
        key_scale = gl.load(key_scales + gl.minimum(tile + 1, tiles - 1))
        stage = tile % STAGES
        highest, total, sums = _add_tile(
            query, keys.index(stage), values.index(stage), _stage(barriers, stage), tile // STAGES & 1,
            scale, KEYS, highest, total, sums, SHIFT, False,
        )  # fmt: skip
    if full < tiles:
        stage = full % STAGES
        highest, total, sums = _add_tile(
            query, keys.index(stage), values.index(stage), _stage(barriers, stage), full // STAGES & 1,
            query_scale * key_scale, key_tokens - full * KEYS, highest, total, sums, SHIFT, True,
        )  # fmt: skip
    channel = gl.arange(0, WIDTH, gl.SliceLayout(0, layout))
    channels = (entry * heads + head) * WIDTH + channel
    out = sums / gl.convert_layout(total, gl.SliceLayout(1, layout))[:, None]
    out = out * gl.load(value_scales + channels)[None, :] + gl.load(value_means + channels)[None, :]
    token = start + gl.arange(0, ROWS, gl.SliceLayout(1, layout))
    here = ((entry * tokens + token).to(gl.int64) * heads + head)[:, None] * WIDTH + channel[None, :]
    gl.store(outputs + here, out.to(outputs.dtype.element_ty), (token < tokens)[:, None])


@gluon.jit
def _copy(sources, shared, tokens, key_tokens):
    """Copies the tiles of all groups into shared memory, by one warp."""
    query_source, key_source, value_source = sources
    queries, keys, values, query_ready, barriers = shared
    GROUPS: gl.constexpr = queries.shape[0]
    ROWS: gl.constexpr = queries.shape[1]
    STAGES: gl.constexpr = keys.shape[0]
    KEYS: gl.constexpr = keys.shape[1]
    WIDTH: gl.constexpr = keys.shape[2]
    head, heads, entry = gl.program_id(1), gl.num_programs(1), gl.program_id(2)
    start, channel = entry * tokens + gl.program_id(0) * GROUPS * ROWS, head * WIDTH
    mbarrier.expect(query_ready, GROUPS * ROWS * WIDTH)
    for group in gl.static_range(GROUPS):
        place = [start + group * ROWS, channel]
        tma.async_copy_global_to_shared(query_source, place, query_ready, queries.index(group))
    for tile in range(gl.cdiv(key_tokens, KEYS)):
        stage = tile % STAGES
        key_full, key_empty, value_full, value_empty = _stage(barriers, stage)
        # The phase before the first counts as completed.
        phase = (tile // STAGES & 1) ^ 1
        mbarrier.wait(key_empty, phase)
        mbarrier.expect(key_full, KEYS * WIDTH)
        place = [entry * key_tokens + tile * KEYS, channel]
        tma.async_copy_global_to_shared(key_source, place, key_full, keys.index(stage))
        mbarrier.wait(value_empty, phase)
        mbarrier.expect(value_full, KEYS * WIDTH)
        place = [entry * heads * WIDTH + channel, tile * KEYS]
        tma.async_copy_global_to_shared(value_source, place, value_full, values.index(stage))


@gluon.jit
def _barriers(count: gl.constexpr, arrivals: gl.constexpr):
    barriers = gl.allocate_shared_memory(gl.int64, [count, 1], mbarrier.MBarrierLayout())
    for index in gl.static_range(count):
        mbarrier.init(barriers.index(index), count=arrivals)
    return barriers


@gluon.jit
def _tiles(source, count: gl.constexpr):
    shape: gl.constexpr = [count] + source.block_shape  # noqa: RUF005 (Triton unpacks no lists)
    return gl.allocate_shared_memory(source.dtype, shape, source.layout)


@gluon.jit
def _attend(
    query_source, key_source, value_source, outputs, query_scales, key_scales, value_scales, value_means,
    tokens, key_tokens, GROUPS: gl.constexpr, STAGES: gl.constexpr, SHIFT: gl.constexpr,
    REGISTERS: gl.constexpr, COPYING_REGISTERS: gl.constexpr,
):  # fmt: skip
    queries = _tiles(query_source, GROUPS)
    keys, values = _tiles(key_source, STAGES), _tiles(value_source, STAGES)
    # A tile is full when its copy has arrived, and empty when all groups have read it.
    keys_full, keys_empty = _barriers(STAGES, 1), _barriers(STAGES, GROUPS)
    values_full, values_empty = _barriers(STAGES, 1), _barriers(STAGES, GROUPS)
    query_ready = _barriers(1, 1).index(0)
    fence_async_shared()
    sources = (query_source, key_source, value_source)
    barriers = (keys_full, keys_empty, values_full, values_empty)
    shared = (queries, keys, values, query_ready, barriers)
    scales = (query_scales, key_scales, value_scales, value_means)
    gl.warp_specialize(
        [
            (_attend_group, (0, shared, outputs, scales, tokens, key_tokens, SHIFT)),
            (_attend_group, (1, shared, outputs, scales, tokens, key_tokens, SHIFT)),
            (_attend_group, (2, shared, outputs, scales, tokens, key_tokens, SHIFT)),
            (_copy, (sources, shared, tokens, key_tokens)),
        ],
        [4, 4, 1],
        [REGISTERS, REGISTERS, COPYING_REGISTERS],
    )


def attend(
    query: tuple[Tensor, Tensor],
    key: tuple[Tensor, Tensor],
    value: tuple[Tensor, Tensor, Tensor],
    exponential_shift: float,
    out: Tensor,
) -> None:
    """Attention of int8 queries and keys and fp8 values as `triton_quantize` returns them, written to `out`.

    Args:
        query: with scales that include the factors 1 / sqrt(head width) and log2(e).
        key, value: keys with one scale for every 128 tokens, values padded to multiples of 128.
        exponential_shift: exponentials are multiplied by 2 to this power before they are quantised.
        out: [B, L, heads, head width], float.
    """
    batch, tokens, heads, width = out.shape
    _attend[(triton.cdiv(tokens, GROUPS * ROWS), heads, batch)](
        _source(query[0].flatten(2).flatten(0, 1), [ROWS, width], gl.int8),
        _source(key[0].flatten(2).flatten(0, 1), [KEYS, width], gl.int8),
        _source(value[0].flatten(0, 2), [width, KEYS], gl.float8e4nv),
        out, query[1], key[1], *value[1:], tokens, key[0].shape[1],
        GROUPS=GROUPS, STAGES=STAGES, SHIFT=exponential_shift,
        REGISTERS=REGISTERS, COPYING_REGISTERS=COPYING_REGISTERS, num_warps=4,
    )  # fmt: skip


def _source(rows: Tensor, block: list[int], dtype: gl.dtype) -> TensorDescriptor:
    return TensorDescriptor.from_tensor(rows, block, gl.NVMMASharedLayout.get_default_for(block, dtype))
