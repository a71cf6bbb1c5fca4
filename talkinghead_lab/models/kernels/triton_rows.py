"""Triton kernels that read and write each row once; compiled PyTorch would read it again or spill registers.

One program holds a full row. Needs Triton.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from talkinghead_lab.models.kernels.fp8 import FP8

LARGEST = tl.constexpr(torch.finfo(FP8).max)
ROTATE_WARPS, NORM_WARPS, GELU_WARPS = 4, 4, 16


@triton.jit
def _store_quantized(x, row, outputs, scales, WIDTH: tl.constexpr):
    """Quantise a row (zero beyond its width) by its largest magnitude; store it and its scale."""
    channel = tl.arange(0, x.shape[0])
    scale = tl.maximum(tl.max(tl.abs(x), 0), 1e-12) / LARGEST
    x = (x * (1.0 / scale)).to(outputs.dtype.element_ty)
    tl.store(outputs + row * WIDTH + channel, x, channel < WIDTH)
    tl.store(scales + row, scale)


@triton.jit
def _add_and_norm(
    rows, updates, gates, offsets, weights, biases, sums, outputs, scales, eps, tokens,
    WIDTH: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, PADDED)
    inside = channel < WIDTH
    here, entry = row * WIDTH + channel, row // tokens * WIDTH + channel
    x = tl.load(rows + here, inside, other=0.0).to(tl.float32)
    update = tl.load(updates + here, inside, other=0.0).to(tl.float32)
    if offsets is not None:
        update += tl.load(offsets + channel, inside, other=0.0).to(tl.float32)
    if gates is not None:
        update *= tl.load(gates + entry, inside, other=0.0)
    # To bf16 and back, as between the layers of the unfused path.
    x = (x + update).to(sums.dtype.element_ty)
    tl.store(sums + here, x, inside)
    x = x.to(tl.float32)
    x = tl.where(inside, x - tl.sum(x, 0) / WIDTH, 0.0)
    x *= tl.rsqrt(tl.sum(x * x, 0) / WIDTH + eps)
    weight = tl.load(weights + entry, inside, other=0.0).to(tl.float32)
    x = x * weight + tl.load(biases + entry, inside, other=0.0).to(tl.float32)
    if scales is not None:
        _store_quantized(x, row, outputs, scales, WIDTH)
    else:
        tl.store(outputs + here, x.to(outputs.dtype.element_ty), inside)


def add_and_norm(
    x: Tensor,
    update: Tensor,
    gate: Tensor | None,
    offset: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    quantize: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Add an update to x and take the layer norm: LayerNorm(x + (update + offset) · gate).

    Args:
        x: [B, L, D].
        update: [B, L, D].
        gate: float32 [B, 1, D]; None: 1.
        offset: [D]; None: 0.
        weight, bias: of the norm, [D] or [B, 1, D].
        eps: added to the variance.
        quantize: quantise the norm to fp8, with one scale per token.

    Returns:
        The sum, the norm, and the scales of a quantised norm, float32 [B, L, 1], otherwise empty.
    """
    batch, tokens, width = x.shape
    summed = torch.empty_like(x)
    out = torch.empty_like(x, dtype=FP8 if quantize else None)
    scale = x.new_empty((batch, tokens, 1) if quantize else 0, dtype=torch.float32)
    gate = None if gate is None else gate.expand(batch, 1, width).contiguous()
    weight, bias = (vector.expand(batch, 1, width).contiguous() for vector in (weight, bias))
    _add_and_norm[(batch * tokens,)](
        x, update, gate, offset, weight, bias, summed, out, scale if quantize else None, eps, tokens,
        WIDTH=width, PADDED=triton.next_power_of_2(width), num_warps=NORM_WARPS,
    )  # fmt: skip
    return summed, out, scale


@triton.jit
def _norm_and_rotate(
    rows, weights, cosines, sines, factors, centres, outputs, eps, tokens,
    WIDTH: tl.constexpr, HEAD: tl.constexpr, HEADS: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, HEADS * HEAD)
    inside = channel < WIDTH
    x = tl.load(rows + row * WIDTH + channel, inside, other=0.0).to(tl.float32)
    x *= tl.rsqrt(tl.sum(x * x, 0) / WIDTH + eps)
    # To bf16 and back, as between the layers of the unfused path.
    x = x.to(rows.dtype.element_ty).to(tl.float32)
    x *= tl.load(weights + channel, inside, other=0.0).to(tl.float32)
    even, odd = tl.split(x.to(rows.dtype.element_ty).to(tl.float32).reshape(HEADS, HEAD // 2, 2))
    # The tables hold each pair's cosine and sine twice; the second sine has the positive sign. All heads
    # share an entry.
    entry = (row % tokens) * HEAD + 2 * tl.arange(0, HEAD // 2) + 1
    cosine, sine = tl.load(cosines + entry)[None, :], tl.load(sines + entry)[None, :]
    even, odd = even * cosine - odd * sine, odd * cosine + even * sine
    if centres is not None:
        centre = tl.load(centres + row // tokens * WIDTH + channel, inside, other=0.0).to(tl.float32)
        even_centre, odd_centre = tl.split(centre.reshape(HEADS, HEAD // 2, 2))
        even, odd = even - even_centre, odd - odd_centre
    if factors is not None:
        head = tl.arange(0, HEADS)
        factor = tl.load(factors + head, head * HEAD < WIDTH, other=0.0)[:, None]
        even, odd = even * factor, odd * factor
    rotated = tl.join(even, odd).reshape(HEADS * HEAD)
    place = row * WIDTH + channel
    if PART < WIDTH:
        place = (channel // PART * tl.num_programs(0) + row) * PART + channel % PART
    tl.store(outputs + place, rotated.to(outputs.dtype.element_ty), inside)


def norm_and_rotate(
    x: Tensor,
    weight: Tensor,
    eps: float,
    cosine: Tensor,
    sine: Tensor,
    parts: int,
    factors: Tensor | None,
    centre: Tensor | None,
) -> Tensor:
    """RMS norm over the full width, then rotary positions: [B, L, D] → [parts, B, L, D / parts].

    Args:
        x: [B, L, D].
        weight: [D], of the norm.
        eps: added to the mean square.
        cosine, sine: float32 [L, 1, head width], as `Rotation` holds them.
        parts: number of equal parts the channels are split into; each part is contiguous.
        factors: float32 [heads], scale each head to the range of fp8; None: the result is not quantised.
        centre: bf16 [B, D], subtracted after the rotation; None: nothing.
    """
    batch, tokens, width = x.shape
    stored = None if factors is None else FP8
    out = x.new_empty(parts, batch, tokens, width // parts, dtype=stored)
    head = cosine.shape[-1]
    _norm_and_rotate[(batch * tokens,)](
        x, weight, cosine, sine, factors, centre, out, eps, tokens,
        WIDTH=width, HEAD=head, HEADS=triton.next_power_of_2(width // head), PART=width // parts,
        num_warps=ROTATE_WARPS,
    )  # fmt: skip
    return out


@triton.jit
def _quantize(rows, offsets, outputs, scales, tokens, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, PADDED)
    inside = channel < WIDTH
    x = tl.load(rows + row * WIDTH + channel, inside, other=0.0).to(tl.float32)
    if offsets is not None:
        x += tl.load(offsets + row // tokens * WIDTH + channel, inside, other=0.0).to(tl.float32)
    _store_quantized(x, row, outputs, scales, WIDTH)


def quantize(x: Tensor, offset: Tensor | None) -> tuple[Tensor, Tensor]:
    """Quantise x + offset to fp8 with one scale per token: (fp8 [B, L, D], float32 scale [B, L, 1]).

    Args:
        x: [B, L, D].
        offset: bf16 [B, D]; None: 0.
    """
    batch, tokens, width = x.shape
    out, scale = torch.empty_like(x, dtype=FP8), x.new_empty(batch, tokens, 1, dtype=torch.float32)
    _quantize[(batch * tokens,)](
        x, offset, out, scale, tokens,
        WIDTH=width, PADDED=triton.next_power_of_2(width), num_warps=NORM_WARPS,
    )  # fmt: skip
    return out, scale


@triton.jit
def _gelu_and_quantize(rows, outputs, scales, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, PADDED)
    inside = channel < WIDTH
    x = tl.load(rows + row * WIDTH + channel, inside, other=0.0).to(tl.float32)
    # (1 + tanh y) / 2 = sigmoid(2y), and a sigmoid takes a single exponential.
    x *= tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    _store_quantized(x, row, outputs, scales, WIDTH)


def gelu_and_quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """GELU (tanh) of […, width], quantised to fp8 with one scale per row: (fp8, float32 scale […, 1])."""
    *rows, width = x.shape
    out, scale = torch.empty_like(x, dtype=FP8), x.new_empty(*rows, 1, dtype=torch.float32)
    _gelu_and_quantize[(scale.numel(),)](
        x, out, scale, WIDTH=width, PADDED=triton.next_power_of_2(width), num_warps=GELU_WARPS
    )
    return out, scale
