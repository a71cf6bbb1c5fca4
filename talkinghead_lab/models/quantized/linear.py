"""What all quantised linear layers have in common."""

from abc import ABC, abstractmethod
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class QuantizedLinear(nn.Module, ABC):
    """A linear layer whose `weight` buffer holds stored bytes.

    Until it becomes part of a network, such a layer also stands for the matrix of a weight file: it has a
    `shape` like a tensor, and no bias.
    """

    weight: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        # A view would keep the memory of its base alive after the data has moved elsewhere.
        self.register_buffer("weight", weight.detach())
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the matrix that the stored bytes stand for."""
        out, width = self.weight.shape
        return out, width

    @property
    @abstractmethod
    def stored_as(self) -> str:
        """The stored type as users know it, such as `int8` or `Q4_K`."""

    @abstractmethod
    def dequantized(self) -> Tensor:
        """The weight [out, in] in float32."""

    def weight_as(self, dtype: torch.dtype) -> Tensor:
        """The weight [out, in] in the type of a matmul."""
        return self.dequantized().to(dtype)

    @abstractmethod
    def requantized(self, weight: Tensor) -> Self | "QuantizedLinear":
        """A layer that holds another weight [out, in] in the closest type that can be written here."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] → [..., out]; the weight is dequantised to the type of the input."""
        return F.linear(x, self.weight_as(x.dtype), None if self.bias is None else self.bias.to(x.dtype))
