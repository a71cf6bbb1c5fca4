"""Muon: momentum whose matrices are made orthogonal, which teaches small networks in a fraction of the steps.

Jordan et al. 2024, `Muon: An optimizer for hidden layers in neural networks`; the scale that gives updates
the size of AdamW's is of Liu et al., arXiv 2502.16982.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

# Of the odd polynomial of degree five that drives singular values towards one (Jordan et al.).
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


def orthogonal(matrices: Tensor) -> Tensor:
    """[N, rows, columns] with singular values near one: Newton–Schulz, without a decomposition."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    for _ in range(ITERATIONS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if tall else x


def matrices_of(modules: nn.Module) -> list[nn.Parameter]:
    """The weights of linear layers and convolutions, which act as matrices [out, in · taps]."""
    kinds = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
    layers = [layer for layer in modules.modules() if isinstance(layer, kinds)]
    weights = [layer._parameters.get("weight") for layer in layers]
    return [w for w in weights if w is not None and w.requires_grad and min(w.flatten(1).shape) > 1]


class Muon(torch.optim.Optimizer):
    """Steps along orthogonal momentum; the learning rate may be a tensor, so that a step can be captured."""

    def __init__(
        self, weights: Iterable[nn.Parameter], lr: Tensor, momentum: float = 0.95, weight_decay: float = 0.01
    ):
        super().__init__(weights, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        for group in self.param_groups:
            for weight in group["params"]:
                self.state[weight]["momentum"] = torch.zeros_like(weight)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Matrices of one shape are made orthogonal together."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = {}
            for weight in group["params"]:
                if weight.grad is not None:
                    shapes.setdefault(weight.flatten(1).shape, []).append(weight)
            for shape, weights in shapes.items():
                self._step_together(weights, 0.2 * max(shape) ** 0.5 * group["lr"], group)

    def _step_together(self, weights: list[Tensor], size: Tensor, group: dict[str, Any]) -> None:
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        moving = [self.state[weight]["momentum"] for weight in weights]
        torch._foreach_mul_(moving, group["momentum"])
        torch._foreach_add_(moving, gradients)
        ahead = torch._foreach_add(gradients, moving, alpha=group["momentum"])
        updates = orthogonal(torch.stack([one.flatten(1) for one in ahead])) * size
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_sub_(weights, [u.view_as(w) for u, w in zip(updates, weights, strict=True)])
