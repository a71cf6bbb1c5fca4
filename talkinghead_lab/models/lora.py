"""LoRAs that are kept beside the weights, so that their strength can change from step to step.

Such a LoRA costs two narrow matmuls a layer. Its strength is a tensor: compiled code reads it, and is not
compiled again for another one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LoraLinear(nn.Module):
    """A linear layer of any stored type, and the low-rank pair that is added to its weight.

    Args:
        base: the layer; a `LoraLinear` where several LoRAs update it.
        up: [out, rank], with the scale that the LoRA was trained with.
        down: [rank, in].
        strength: a number, shared by all layers of the LoRA.
    """

    def __init__(self, base: nn.Module, up: Tensor, down: Tensor, strength: Tensor) -> None:
        super().__init__()
        self.base = base
        self.up, self.down = (nn.Parameter(part, requires_grad=False) for part in (up, down))
        self.strength = strength

    @property
    def bias(self) -> Tensor | None:
        """The bias of the layer, [out]."""
        return cast(Tensor | None, self.base.bias)

    def weight_as(self, dtype: torch.dtype) -> Tensor:
        """The sum [out, in] in the type of a matmul."""
        base = self.base
        weight = base.weight.detach() if isinstance(base, nn.Linear) else base.weight_as(torch.float32)  # type: ignore[operator]
        update = self.up.detach().float() @ self.down.detach().float()
        return (weight + self.strength * update).to(dtype)

    def of_rows(self, base: nn.Module, rows: slice) -> "LoraLinear":
        """Some output channels of the layer, of which `base` has these."""
        return LoraLinear(base, self.up[rows], self.down, self.strength)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] → [..., out], in the type of the input."""
        base = self.base
        if isinstance(base, nn.Linear):
            out = F.linear(x, base.weight.to(x.dtype), None if base.bias is None else base.bias.to(x.dtype))
        else:
            out = base(x)
        narrow = F.linear(x, self.down.to(x.dtype)) * self.strength
        # In place: the output can be the largest tensor of a forward pass.
        out.flatten(0, -2).addmm_(narrow.flatten(0, -2), self.up.to(x.dtype).t())
        return out


@dataclass
class ScheduledParameter:
    """A parameter of another kind of layer, such as a bias, that changes with the strengths of LoRAs.

    Args:
        parameter: what changes, in place.
        base: its value without LoRAs, float32 on the CPU.
        updates: what LoRAs add to it at strength 1, likewise, by their number.
    """

    parameter: Tensor
    base: Tensor
    updates: dict[int, Tensor] = field(default_factory=dict)

    def set(self, strengths: Sequence[float]) -> None:
        """Change the parameter."""
        changed = self.base.clone()
        for number, update in self.updates.items():
            changed.add_(update, alpha=strengths[number])
        self.parameter.data.copy_(changed)


class LoraStrengths:
    """The strengths of the LoRAs that are kept beside the weights of a network.

    Args:
        count: number of LoRAs.
        device: where the network runs.
    """

    def __init__(self, count: int, device: torch.device | str) -> None:
        self.values = [torch.zeros((), device=device) for _ in range(count)]
        self.parameters: dict[str, ScheduledParameter] = {}

    def set(self, strengths: Sequence[float]) -> None:
        """Set the strength of each LoRA."""
        for value, strength in zip(self.values, strengths, strict=True):
            value.fill_(strength)
        for parameter in self.parameters.values():
            parameter.set(strengths)
