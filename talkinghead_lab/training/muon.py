"""Muon, which trains small networks in a fraction of AdamW's steps, on layer weights and in CUDA graphs.

Jordan et al. 2024, `Muon: An optimizer for hidden layers in neural networks`. `match_rms_adamw` scales the
updates to the size of AdamW's (Liu et al., arXiv 2502.16982).
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def layer_weights(modules: nn.Module) -> list[nn.Parameter]:
    """Trainable weights of linear layers and convolutions that are true matrices [out, in · taps]."""
    kinds = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
    layers = [layer for layer in modules.modules() if isinstance(layer, kinds)]
    weights = [layer._parameters.get("weight") for layer in layers]
    return [w for w in weights if w is not None and w.requires_grad and min(w.flatten(1).shape) > 1]


class LayerMuon(torch.optim.Muon):
    """`torch.optim.Muon` on weights of any rank, with a learning rate that a CUDA graph reads at replay.

    `torch.optim.Muon` accepts matrices only, so it gets views [out, in · taps] of the weights. It also reads
    the learning rate on the host, which a graph would freeze. Its update, weight decay included, is linear in
    the learning rate: it is computed at a rate of 1 and scaled on the device.

    Args:
        weights: contiguous, on their final device.
        lr: scalar tensor, changed in place between steps.
    """

    def __init__(self, weights: Iterable[nn.Parameter], lr: Tensor, weight_decay: float = 0.01) -> None:
        self.weights = list(weights)
        self.matrices: list[Tensor] = [
            nn.Parameter(weight.detach().view(len(weight), -1)) for weight in self.weights
        ]
        rate: Any = lr  # documented as float or tensor, annotated as float
        super().__init__(self.matrices, rate, weight_decay, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closures here
        """Update the weights from their gradients."""
        for weight, matrix in zip(self.weights, self.matrices, strict=True):
            matrix.grad = None if weight.grad is None else weight.grad.flatten(1)
        before = [matrix.clone() for matrix in self.matrices]
        (group,) = self.param_groups
        rate, group["lr"] = group["lr"], 1.0
        super().step()  # type: ignore[no-untyped-call]  # PyTorch does not annotate it
        group["lr"] = rate
        torch._foreach_sub_(self.matrices, before)
        torch._foreach_mul_(self.matrices, rate)
        torch._foreach_add_(self.matrices, before)
        for matrix in self.matrices:
            matrix.grad = None
