"""The fp8 type of this package, and tokens quantised to it."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

FP8 = torch.float8_e4m3fn


class QuantizedTokens(NamedTuple):
    """Tokens […, width] in fp8 with a float32 scale each, […, 1], and the type that they had."""

    rows: Tensor
    scale: Tensor
    dtype: torch.dtype


def multiplies_fp8(layer: nn.Module) -> bool:
    """Whether a linear layer takes `QuantizedTokens` tokens."""
    return getattr(layer, "multiplies_fp8", False)
