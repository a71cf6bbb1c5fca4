"""Two Triton kernels that read and write every row once, where compiled PyTorch reads it again or spills.

A program holds a row in registers. Needs Triton.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ROTATE_WARPS, ROUND_WARPS = 4, 16


@triton.jit
def _norm_and_rotate(  # type: ignore[no-untyped-def]
    rows, weights, cosines, sines, outputs, eps, tokens,
    WIDTH: tl.constexpr, HEAD: tl.constexpr, PAIRS: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, 2 * PAIRS)
    inside = channel < WIDTH
    x = tl.load(rows + row * WIDTH + channel, inside, other=0.0).to(tl.float32)
    x *= tl.rsqrt(tl.sum(x * x, 0) / WIDTH + eps)
    # Rounded as between the layers of the plain path.
    x = x.to(outputs.dtype.element_ty) * tl.load(weights + channel, inside, other=0.0)
    even, odd = tl.split(x.to(outputs.dtype.element_ty).to(tl.float32).reshape(PAIRS, 2))
    # Cosines and sines stand twice, for both channels of a pair; the sine of the second has its sign.
    turned = (row % tokens) * HEAD + 2 * tl.arange(0, PAIRS) % HEAD + 1
    cosine, sine = tl.load(cosines + turned), tl.load(sines + turned)
    turned = tl.join(even * cosine - odd * sine, odd * cosine + even * sine).reshape(2 * PAIRS)
    place = (channel // PART * tl.num_programs(0) + row) * PART + channel % PART
    tl.store(outputs + place, turned.to(outputs.dtype.element_ty), inside)


def norm_and_rotate(
    x: Tensor, weight: Tensor, eps: float, cosine: Tensor, sine: Tensor, parts: int
) -> Tensor:
    """RMS norm over the whole width, then rotary positions: [B, L, D] → [parts, B, L, D / parts].

    Args:
        weight: [D], of the norm.
        cosine, sine: float32 [L, 1, head width], as `Rotation` holds them.
        parts: of the channels, which come to lie apart.
    """
    batch, tokens, width = x.shape
    out = x.new_empty(parts, batch, tokens, width // parts)
    _norm_and_rotate[(batch * tokens,)](
        x, weight, cosine, sine, out, eps, tokens,
        WIDTH=width, HEAD=cosine.shape[-1], PAIRS=triton.next_power_of_2(width) // 2, PART=width // parts,
        num_warps=ROTATE_WARPS,
    )  # fmt: skip
    return out


@triton.jit
def _gelu_and_round(  # type: ignore[no-untyped-def]
    rows, outputs, scales, LARGEST: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, PADDED)
    inside = channel < WIDTH
    x = tl.load(rows + row * WIDTH + channel, inside, other=0.0).to(tl.float32)
    # (1 + tanh y) / 2 is the sigmoid of 2y: one exponential in place of a tanh.
    x *= tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    scale = tl.maximum(tl.max(tl.abs(x), 0), 1e-12) / LARGEST
    tl.store(outputs + row * WIDTH + channel, (x * (1.0 / scale)).to(outputs.dtype.element_ty), inside)
    tl.store(scales + row, scale)


def gelu_and_round(x: Tensor, stored: torch.dtype) -> tuple[Tensor, Tensor]:
    """GELU (tanh) of [rows, width], rounded to fp8 with a scale a row: (rounded, float32 [rows, 1])."""
    out, scale = torch.empty_like(x, dtype=stored), x.new_empty(len(x), 1, dtype=torch.float32)
    width = x.shape[1]
    _gelu_and_round[(len(x),)](
        x, out, scale, LARGEST=torch.finfo(stored).max,
        WIDTH=width, PADDED=triton.next_power_of_2(width), num_warps=ROUND_WARPS,
    )  # fmt: skip
    return out, scale
