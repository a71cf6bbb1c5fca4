"""Conversions between 8-bit pixels and tensors in [−1, 1]."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def to_unit_range(pixels: Tensor) -> Tensor:
    """Convert uint8 pixels to float32 in [−1, 1]."""
    return pixels.float() / 127.5 - 1


def to_uint8(frames: Tensor) -> NDArray[np.uint8]:
    """Convert [3, F, H, W] in [−1, 1] to uint8 [F, H, W, 3]."""
    pixels = ((frames + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(1, 2, 3, 0).contiguous().numpy()
