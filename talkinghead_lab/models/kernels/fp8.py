"""The fp8 types, and tokens quantised to the one that this package writes."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

FP8 = torch.float8_e4m3fn
E5M2 = torch.float8_e5m2  # weights of some files


class QuantizedTokens(NamedTuple):
    """Tokens […, width] in fp8, one float32 scale per token […, 1], and the type before quantisation."""

    rows: Tensor
    scale: Tensor
    dtype: torch.dtype


def uses_fp8_matmul(layer: nn.Module) -> bool:
    """Whether a linear layer accepts `QuantizedTokens`."""
    return getattr(layer, "uses_fp8_matmul", False)
