"""A linear layer with 8-bit weights and a scale per row."""

import torch
import torch.nn.functional as F
from torch import Tensor

from talkinghead_lab.models.kernels.fp8 import E5M2, FP8, QuantizedTokens
from talkinghead_lab.models.quantized.linear import QuantizedLinear

NAMES = {torch.int8: "int8", FP8: "fp8", E5M2: "fp8 (e5m2)"}


class RowQuantizedLinear(QuantizedLinear):
    """A linear layer with an 8-bit `weight` [out, in] and one `scale` [out, 1] per row.

    It dequantises the weight to the type of the input. With `uses_fp8_matmul`, it instead quantises each row
    of the input to fp8 and multiplies in fp8; `full_precision` layers must not: their file forbids it.
    """

    scale: Tensor

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> None:
        super().__init__(weight, bias)
        self.register_buffer("scale", scale)
        self.uses_fp8_matmul = self.full_precision = False

    @property
    def stored_as(self) -> str:
        """`int8`, `fp8` or `fp8 (e5m2)`."""
        return NAMES[self.weight.dtype]

    def forward(self, x: Tensor | QuantizedTokens) -> Tensor:
        """[..., in] → [..., out]; only a layer that uses fp8 matmuls accepts quantised tokens."""
        if isinstance(x, QuantizedTokens):
            return self._fp8_matmul(x)
        if self.uses_fp8_matmul:
            rows, scale = quantize_rows(x.flatten(0, -2), FP8)
            return self._fp8_matmul(QuantizedTokens(rows, scale, x.dtype)).unflatten(0, x.shape[:-1])
        # The base class scales the weight, not the output: for the latter, PyTorch's compiler would use its
        # own int8-weight matmul, which is meant for few rows and is hundreds of times slower here.
        return super().forward(x)

    def _fp8_matmul(self, x: QuantizedTokens) -> Tensor:
        if x.rows.device.type == "cpu":  # emulated for tests: only GPUs multiply fp8
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
        """The weight [out, in] in float32."""
        return self.weight.float().mul_(self.scale)

    def requantized(self, weight: Tensor) -> "RowQuantizedLinear":
        """The layer with another weight [out, in], quantised row by row to the same stored type."""
        stored, scale = quantize_rows(weight, self.weight.dtype)
        layer = RowQuantizedLinear(stored, scale.to(self.scale.dtype), self.bias)
        layer.uses_fp8_matmul, layer.full_precision = self.uses_fp8_matmul, self.full_precision
        return layer


def quantize_rows(weight: Tensor, stored: torch.dtype) -> tuple[Tensor, Tensor]:
    """Symmetric row-wise quantisation of [out, in]: (8-bit weight, float32 scale [out, 1])."""
    largest = torch.iinfo(stored).max if stored is torch.int8 else torch.finfo(stored).max
    scale = weight.float().abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / largest
    scaled = weight.float() / scale
    return (scaled.round() if stored is torch.int8 else scaled).to(stored), scale
