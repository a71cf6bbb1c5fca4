"""The block types of GGUF: how many bytes hold how many weights, and how to dequantise them.

A row of a matrix is a sequence of blocks. A block is one or several groups of weights, each with a scale, and
in some types with an offset: weight = scale · code + offset. Types in K pack the scales of their groups, too.
Layouts: `ggml-quants.h` of ggml. The results equal those of the package `gguf` bit by bit.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Decoded(NamedTuple):
    """Blocks taken apart: float32 scales and offsets [blocks, groups], integer codes [blocks, weights]."""

    scale: Tensor
    codes: Tensor
    offset: Tensor | None = None


@dataclass(frozen=True)
class BlockType:
    """A stored type: a block of `weights` weights takes `nbytes` bytes; `decode` takes blocks apart."""

    weights: int
    nbytes: int
    decode: Callable[[Tensor], Decoded]

    def dequantize(self, stored: Tensor) -> Tensor:
        """Bytes [out, bytes per row] → float32 [out, in]."""
        scale, codes, offset = self.decode(stored.reshape(-1, self.nbytes))
        out = codes.float().unflatten(1, (scale.shape[1], -1)) * scale.unsqueeze(-1)
        if offset is not None:
            out += offset.unsqueeze(-1)
        return out.view(len(stored), -1)


def _half(blocks: Tensor, start: int) -> Tensor:
    """The float16 number at a byte, [blocks, 1] in float32."""
    return blocks[:, start : start + 2].contiguous().view(torch.float16).float()


def _unpacked(packed: Tensor, bits: int, width: int) -> Tensor:
    """Integers of `bits` bits, uint8.

    Each `width` bytes hold 8 / bits · width of them: first the lowest bits of all bytes, then the next ones.
    """
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    parts = packed.unflatten(1, (-1, 1, width)) >> shifts.unsqueeze(1)
    return (parts & (1 << bits) - 1).flatten(1)


def _signed(codes: Tensor, zero: int) -> Tensor:
    """Codes relative to the one that stands for zero, int8."""
    return codes.view(torch.int8) - zero


def _q4_0(blocks: Tensor) -> Decoded:
    return Decoded(_half(blocks, 0), _signed(_unpacked(blocks[:, 2:], 4, 16), 8))


def _q4_1(blocks: Tensor) -> Decoded:
    return Decoded(_half(blocks, 0), _unpacked(blocks[:, 4:], 4, 16), _half(blocks, 2))


def _five_bits(low: Tensor, high: Tensor, width: int, high_width: int) -> Tensor:
    return _unpacked(low, 4, width) | _unpacked(high, 1, high_width) << 4


def _q5_0(blocks: Tensor) -> Decoded:
    return Decoded(_half(blocks, 0), _signed(_five_bits(blocks[:, 6:], blocks[:, 2:6], 16, 1), 16))


def _q5_1(blocks: Tensor) -> Decoded:
    return Decoded(_half(blocks, 0), _five_bits(blocks[:, 8:], blocks[:, 4:8], 16, 1), _half(blocks, 2))


def _q8_0(blocks: Tensor) -> Decoded:
    return Decoded(_half(blocks, 0), blocks[:, 2:].contiguous().view(torch.int8))


def _q2_k(blocks: Tensor) -> Decoded:
    scales = blocks[:, :16]
    codes = _unpacked(blocks[:, 16:80], 2, 32)
    return Decoded(_half(blocks, 80) * (scales & 15), codes, -_half(blocks, 82) * (scales >> 4))


def _q3_k(blocks: Tensor) -> Decoded:
    scales = _unpacked(blocks[:, 96:104], 4, 8) | _unpacked(blocks[:, 104:108], 2, 4) << 4
    codes = _unpacked(blocks[:, 32:96], 2, 32) | _unpacked(blocks[:, :32], 1, 32) << 2
    return Decoded(_half(blocks, 108) * _signed(scales, 32), _signed(codes, 4))


def _six_bit_scales(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and offsets of the eight groups of Q4_K and Q5_K, from the first 16 bytes of their blocks."""
    low, offset_low, high = blocks[:, 4:16].unflatten(1, (3, 4)).unbind(1)
    scale = torch.cat((low & 63, high & 15 | low >> 2 & 48), dim=1)
    offset = torch.cat((offset_low & 63, high >> 4 | offset_low >> 2 & 48), dim=1)
    return _half(blocks, 0) * scale, -_half(blocks, 2) * offset


def _q4_k(blocks: Tensor) -> Decoded:
    scale, offset = _six_bit_scales(blocks)
    return Decoded(scale, _unpacked(blocks[:, 16:], 4, 32), offset)


def _q5_k(blocks: Tensor) -> Decoded:
    scale, offset = _six_bit_scales(blocks)
    return Decoded(scale, _five_bits(blocks[:, 48:], blocks[:, 16:48], 32, 32), offset)


def _q6_k(blocks: Tensor) -> Decoded:
    codes = _unpacked(blocks[:, :128], 4, 64) | _unpacked(blocks[:, 128:192], 2, 32) << 4
    scales = blocks[:, 192:208].contiguous().view(torch.int8)
    return Decoded(_half(blocks, 208) * scales, _signed(codes, 32))


BLOCK_TYPES = {
    "Q4_0": BlockType(32, 18, _q4_0),
    "Q4_1": BlockType(32, 20, _q4_1),
    "Q5_0": BlockType(32, 22, _q5_0),
    "Q5_1": BlockType(32, 24, _q5_1),
    "Q8_0": BlockType(32, 34, _q8_0),
    "Q2_K": BlockType(256, 84, _q2_k),
    "Q3_K": BlockType(256, 110, _q3_k),
    "Q4_K": BlockType(256, 144, _q4_k),
    "Q5_K": BlockType(256, 176, _q5_k),
    "Q6_K": BlockType(256, 210, _q6_k),
}


def quantize_q8_0(weight: Tensor) -> Tensor:
    """Quantise [out, in] to Q8_0, bytes [out, bytes per row]; halves round away from zero, as in ggml.

    A weight changes by at most 1/254 of the largest of the 32 in its block, besides the rounding of the scale
    to float16. The error of normally distributed weights is 0.54 %, relative to their norm.
    """
    blocks = weight.float().reshape(-1, 32)
    scale = blocks.abs().amax(dim=1, keepdim=True) / 127
    scaled = blocks * torch.where(scale == 0, 0, 1 / scale)
    codes = (scaled.trunc() + (2 * scaled.frac()).trunc()).to(torch.int8)
    stored = torch.cat((scale.half().view(torch.uint8), codes.view(torch.uint8)), dim=1)
    return stored.view(len(weight), -1)
