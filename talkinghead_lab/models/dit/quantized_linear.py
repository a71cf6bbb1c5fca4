"""A linear layer with 8-bit weights."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from talkinghead_lab.models.kernels.fp8 import FP8, QuantizedTokens


class QuantizedLinear(nn.Module):
    """A linear layer that stores `weight` [out, in] in eight bits and one `scale` [out, 1] a row.

    Arithmetic is in the input's type, unless `multiply_fp8` asks for fp8: then every row of the input is
    rounded to fp8 with a scale of its own.
    """

    weight: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.multiplies_fp8 = False

    def forward(self, x: Tensor | QuantizedTokens) -> Tensor:
        """Product with [..., in]; what is rounded already is for layers that multiply fp8."""
        if isinstance(x, QuantizedTokens):
            return self._product(x)
        if self.multiplies_fp8:
            rows, scale = quantize_rows(x.flatten(0, -2), FP8)
            return self._product(QuantizedTokens(rows, scale, x.dtype)).unflatten(0, x.shape[:-1])
        # The weights are scaled, not the products: those PyTorch's compiler would take for its own product
        # with int8 weights, which is for few rows and hundreds of times slower here.
        return F.linear(
            x, self.dequantized().to(x.dtype), None if self.bias is None else self.bias.to(x.dtype)
        )

    def _product(self, x: QuantizedTokens) -> Tensor:
        if x.rows.device.type == "cpu":  # the same rounding, to test it; only GPUs multiply fp8
            out = F.linear(x.rows.float(), self.weight.float()) * x.scale * self.scale.float().mT
            return (out if self.bias is None else out + self.bias).to(x.dtype)
        out = torch._scaled_mm(
            x.rows.flatten(0, -2),
            self.weight.t(),
            scale_a=x.scale.flatten(0, -2),
            scale_b=self.scale.float().t(),
            bias=None if self.bias is None else self.bias.to(torch.bfloat16),
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )
        return out.unflatten(0, x.rows.shape[:-1]).to(x.dtype)

    def dequantized(self) -> Tensor:
        return self.weight.float() * self.scale.float()


def quantize_rows(weight: Tensor, stored: torch.dtype) -> tuple[Tensor, Tensor]:
    """Symmetric row-wise quantisation of [out, in]: (eight-bit weight, float32 scale [out, 1])."""
    largest = torch.iinfo(stored).max if stored is torch.int8 else torch.finfo(stored).max
    scale = weight.float().abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / largest
    scaled = weight.float() / scale
    return (scaled.round() if stored is torch.int8 else scaled).to(stored), scale
