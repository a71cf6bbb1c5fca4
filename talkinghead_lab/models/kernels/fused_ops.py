"""Fused block layers as custom ops, opaque to torch.compile.

They need a GPU, bf16 and no gradients. The kernels in `triton_rows` need Triton.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from talkinghead_lab.models.kernels.fp8 import FP8, QuantizedTokens


@torch.library.custom_op("talkinghead_lab::linear_gelu", mutates_args=())
def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """GELU (tanh) of a linear layer […, in] → […, out], computed in the epilogue of the matmul."""
    rows = torch._addmm_activation(bias, x.flatten(0, -2), weight.t(), use_gelu=True)
    return rows.unflatten(0, x.shape[:-1])


@linear_gelu.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(weight))


def quantized_gelu(x: Tensor) -> QuantizedTokens:
    """GELU (tanh), quantised to fp8."""
    rows, scale = _gelu_and_quantize(x)
    return QuantizedTokens(rows, scale, x.dtype)


@torch.library.custom_op("talkinghead_lab::gelu_and_round", mutates_args=())
def _gelu_and_quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    from talkinghead_lab.models.kernels.triton_rows import gelu_and_quantize

    return gelu_and_quantize(x)


@_gelu_and_quantize.register_fake
def _(x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, dtype=FP8), x.new_empty(*x.shape[:-1], 1, dtype=torch.float32)


class ResidualUpdate(NamedTuple):
    """The update (out + offset) · gate that a layer adds to the residual stream.

    It stays unevaluated so that `add_and_norm` can add it in the pass of the next norm. `out` is [B, L, D],
    `gate` float32 [B, 1, D], `offset` [D].
    """

    out: Tensor
    gate: Tensor | None = None
    offset: Tensor | None = None

    @classmethod
    def of_nothing(cls, x: Tensor) -> "ResidualUpdate":
        """An update that changes nothing. With it, the first block shares the graph of the others."""
        # With the strides of a block's gate: a graph is compiled for one layout.
        gates = x.new_zeros(len(x), 6, x.shape[2], dtype=torch.float32)
        return cls(torch.zeros_like(x), gates[:, :1])

    def added_to(self, x: Tensor) -> Tensor:
        """The sum of x [B, L, D] and the update, in the type of `x`."""
        out = self.out if self.offset is None else self.out + self.offset
        return (x + (out if self.gate is None else out * self.gate)).to(x.dtype)


def add_and_norm(
    x: Tensor, update: ResidualUpdate, weight: Tensor, bias: Tensor, eps: float, quantize: bool
) -> tuple[Tensor, Tensor | QuantizedTokens]:
    """The sum of x [B, L, D] and an update, and the layer norm of that sum, in one pass."""
    x, out, scale = _add_and_norm(x, *update, weight, bias, eps, quantize)
    return x, QuantizedTokens(out, scale, x.dtype) if quantize else out


@torch.library.custom_op("talkinghead_lab::add_and_norm", mutates_args=())
def _add_and_norm(
    x: Tensor,
    update: Tensor,
    gate: Tensor | None,
    offset: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    quantize: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    from talkinghead_lab.models.kernels.triton_rows import add_and_norm

    return add_and_norm(x, update, gate, offset, weight, bias, eps, quantize)


@_add_and_norm.register_fake
def _(x: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    *_, quantize = others
    return (
        torch.empty_like(x),
        torch.empty_like(x, dtype=FP8 if quantize else None),
        x.new_empty((*x.shape[:-1], 1) if quantize else 0, dtype=torch.float32),
    )


@torch.library.custom_op("talkinghead_lab::norm_and_rotate", mutates_args=())
def norm_and_rotate(
    x: Tensor,
    weight: Tensor,
    eps: float,
    cosine: Tensor,
    sine: Tensor,
    parts: int,
    factors: Tensor | None = None,
    centre: Tensor | None = None,
) -> Tensor:
    """RMS norm and rotary positions, [B, L, D] → [parts, B, L, D / parts].

    With `factors` of the heads the result is quantised to fp8, after `centre` [B, D] was subtracted.
    """
    from talkinghead_lab.models.kernels.triton_rows import norm_and_rotate

    return norm_and_rotate(x, weight, eps, cosine, sine, parts, factors, centre)


@norm_and_rotate.register_fake
def _(x: Tensor, weight: Tensor, eps: float, cosine: Tensor, sine: Tensor, *others: Any) -> Tensor:
    parts, factors, *_ = (*others, None)
    stored = None if factors is None else FP8
    return x.new_empty(parts, *x.shape[:2], x.shape[2] // parts, dtype=stored)


def quantized(x: Tensor, offset: Tensor | None = None) -> QuantizedTokens:
    """The sum of x [B, L, D] and an offset [B, D], quantised to fp8 in one pass."""
    # The output of some attention kernels is strided.
    rows, scale = _quantize(x.contiguous(), offset)
    return QuantizedTokens(rows, scale, x.dtype)


@torch.library.custom_op("talkinghead_lab::quantize", mutates_args=())
def _quantize(x: Tensor, offset: Tensor | None) -> tuple[Tensor, Tensor]:
    from talkinghead_lab.models.kernels.triton_rows import quantize

    return quantize(x, offset)


@_quantize.register_fake
def _(x: Tensor, offset: Tensor | None) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, dtype=FP8), x.new_empty(*x.shape[:-1], 1, dtype=torch.float32)
