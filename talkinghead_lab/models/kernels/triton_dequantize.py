"""A Triton kernel that dequantises the block types of GGUF in one pass, from bytes to the compute type.

A program takes some groups of weights that share a scale. `block_types` describes the
layouts; here the same arithmetic is written per weight. Needs Triton.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from talkinghead_lab.models.kernels.block_types import BLOCK_TYPES

# Groups per block; all other types have one.
GROUPS = {"Q2_K": 16, "Q3_K": 16, "Q4_K": 8, "Q5_K": 8, "Q6_K": 16}
PROGRAM_WEIGHTS, WARPS = 2048, 4


@triton.jit
def _bits(packed, index, BITS: tl.constexpr, WIDTH: tl.constexpr):
    """The integer `index` of those that `block_types._unpacked` unpacks."""
    byte = index // (8 // BITS * WIDTH) * WIDTH + index % WIDTH
    shift = index // WIDTH % (8 // BITS) * BITS
    return (tl.load(packed + byte).to(tl.int32) >> shift) & ((1 << BITS) - 1)


@triton.jit
def _half(halves, byte: tl.constexpr):
    return tl.load(halves + byte // 2).to(tl.float32)


@triton.jit
def _six_bits(block, group, START: tl.constexpr, SHIFT: tl.constexpr):
    """Six-bit scale or offset of a group of Q4_K and Q5_K; those of the last four are in two places."""
    low = tl.load(block + START + group % 4).to(tl.int32)
    high = tl.load(block + 12 + group % 4).to(tl.int32) >> SHIFT & 15
    return tl.where(group < 4, low & 63, high | low >> 2 & 48).to(tl.float32)


@triton.jit
def _code(block, weight, KIND: tl.constexpr):
    """Integer code of a weight of a block, relative to the code that stands for zero."""
    if KIND == "Q8_0":
        return tl.load(block + 2 + weight).to(tl.int8, bitcast=True).to(tl.int32)
    elif KIND == "Q4_0":
        return _bits(block + 2, weight, 4, 16) - 8
    elif KIND == "Q4_1":
        return _bits(block + 4, weight, 4, 16)
    elif KIND == "Q5_0":
        return (_bits(block + 6, weight, 4, 16) | _bits(block + 2, weight, 1, 1) << 4) - 16
    elif KIND == "Q5_1":
        return _bits(block + 8, weight, 4, 16) | _bits(block + 4, weight, 1, 1) << 4
    elif KIND == "Q2_K":
        return _bits(block + 16, weight, 2, 32)
    elif KIND == "Q3_K":
        return (_bits(block + 32, weight, 2, 32) | _bits(block, weight, 1, 32) << 2) - 4
    elif KIND == "Q4_K":
        return _bits(block + 16, weight, 4, 32)
    elif KIND == "Q5_K":
        return _bits(block + 48, weight, 4, 32) | _bits(block + 16, weight, 1, 32) << 4
    else:
        tl.static_assert(KIND == "Q6_K")
        return (_bits(block, weight, 4, 64) | _bits(block + 128, weight, 2, 32) << 4) - 32


@triton.jit
def _scale(block, halves, group, KIND: tl.constexpr):
    """Scale of a group."""
    if KIND == "Q2_K":
        return _half(halves, 80) * (tl.load(block + group) & 15).to(tl.float32)
    elif KIND == "Q3_K":
        code = _bits(block + 96, group, 4, 8) | _bits(block + 104, group, 2, 4) << 4
        return _half(halves, 108) * (code - 32).to(tl.float32)
    elif KIND == "Q4_K" or KIND == "Q5_K":
        return _half(halves, 0) * _six_bits(block, group, 4, 0)
    elif KIND == "Q6_K":
        code = tl.load(block + 192 + group).to(tl.int8, bitcast=True)
        return _half(halves, 208) * code.to(tl.float32)
    else:
        return _half(halves, 0)


@triton.jit
def _dequantize(
    stored, stored_halves, outputs, groups,
    KIND: tl.constexpr, NBYTES: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    # Rows beyond the last group repeat it.
    row = tl.minimum(row, groups - 1)
    block, halves = stored + row // GROUPS * NBYTES, stored_halves + row // GROUPS * (NBYTES // 2)
    group = (row % GROUPS).to(tl.int32)
    channel = tl.arange(0, WIDTH)[None, :]
    out = _code(block, group * WIDTH + channel, KIND).to(tl.float32) * _scale(block, halves, group, KIND)
    if KIND == "Q4_1" or KIND == "Q5_1":
        out += _half(halves, 2)
    elif KIND == "Q4_K" or KIND == "Q5_K":
        out -= _half(halves, 2) * _six_bits(block, group, 8, 4)
    elif KIND == "Q2_K":
        out -= _half(halves, 82) * (tl.load(block + group) >> 4).to(tl.float32)
    tl.store(outputs + row * WIDTH + channel, out.to(outputs.dtype.element_ty))


def dequantize(stored: Tensor, block_type: str, dtype: torch.dtype) -> Tensor:
    """Bytes [out, bytes per row] of a type in `BLOCK_TYPES` → [out, in] as `dtype`, computed in float32."""
    block, groups = BLOCK_TYPES[block_type], GROUPS.get(block_type, 1)
    blocks, stored = stored.numel() // block.nbytes, stored.contiguous()
    out = stored.new_empty(len(stored), blocks // len(stored) * block.weights, dtype=dtype)
    width = block.weights // groups
    rows = PROGRAM_WEIGHTS // width
    # Without fused multiply-add, whose result would differ from PyTorch's in the last bit.
    _dequantize[(triton.cdiv(blocks * groups, rows),)](
        stored, stored.view(torch.float16), out, blocks * groups,
        KIND=block_type, NBYTES=block.nbytes, GROUPS=groups, WIDTH=width, ROWS=rows,
        num_warps=WARPS, enable_fp_fusion=False,
    )  # fmt: skip
    return out
