"""Conversions between 8-bit pixels and tensors in [−1, 1]."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


def to_unit_range(pixels: Tensor) -> Tensor:
    """Convert uint8 pixels to float32 in [−1, 1]."""
    return pixels.float() / 127.5 - 1


def to_uint8(frames: Tensor) -> NDArray[np.uint8]:
    """Convert [3, F, H, W] in [−1, 1] on the CPU to uint8 [F, H, W, 3].

    NumPy computes it in the calling thread alone, which may run beside the sampling.
    """
    levels = (frames.numpy() + np.float32(1)) * np.float32(127.5)
    np.rint(levels, out=levels).clip(0, 255, out=levels)
    return np.ascontiguousarray(levels.astype(np.uint8).transpose(1, 2, 3, 0))
