"""Keep LoRA files beside the weights of a model, for strengths that change from step to step."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from talkinghead_lab.errors import CheckpointError
from talkinghead_lab.models.dit.model import DiT
from talkinghead_lab.models.lora import LoraLinear, LoraStrengths, ScheduledParameter
from talkinghead_lab.models.quantized.linear import QuantizedLinear
from talkinghead_lab.offload.requirements import STREAMED_BLOCKS
from talkinghead_lab.offload.streamed_blocks import STREAMED_ELEMENTS
from talkinghead_lab.weights.lora.merge import Change, changes_of
from talkinghead_lab.weights.reading import replace_module

BLOCKS = STREAMED_BLOCKS["transformer"]


class AttachedLoras:
    """LoRA files that become part of a transformer, part by part.

    All of the files are checked before anything changes. Low-rank pairs of linear layers become `LoraLinear`;
    biases, norms and other small parameters are changed in each step.

    Args:
        dit: its weights may be on the meta device.
        paths: of the LoRAs.
        device: where the transformer runs.
        dtype: of the matrices.

    Raises:
        CheckpointError: as `changes_of`; or an update of a linear layer that is no low-rank pair.
    """

    def __init__(
        self, dit: DiT, paths: Sequence[Path], device: torch.device | str, dtype: torch.dtype
    ) -> None:
        self.dit, self.dtype = dit, dtype
        self.changes = [changes_of(dit, path) for path in paths]
        for path, changes in zip(paths, self.changes, strict=True):
            for change in changes:
                _check(dit, change, path)
        dit.lora_strengths = LoraStrengths(len(paths), device)

    @torch.no_grad()
    def attach(self, part: str) -> None:
        """Attach to the layers of the part of the transformer with a dotted name, as they are stored now."""
        for number, changes in enumerate(self.changes):
            for change in changes:
                if f"{change.module}.".startswith(f"{part}."):
                    self._attach(number, change)

    def attach_all(self) -> None:
        """Attach to all layers."""
        for part, _ in self.dit.named_children():
            self.attach(part)

    def _attach(self, number: int, change: Change) -> None:
        holder: Any = self.dit.get_submodule(change.module)
        if _is_linear_weight(holder, change):
            up, down = (factor.flatten(1).float() for factor in change.delta.factors)
            place = next(iter((*holder.buffers(), *holder.parameters()))).device
            up, down = (part.to(place, self.dtype) for part in (change.delta.scale * up, down))
            layer = LoraLinear(holder, up, down, self.dit.lora_strengths.values[number])
            replace_module(self.dit, change.module, layer)
            return
        while isinstance(holder, LoraLinear):
            holder = holder.base
        name = f"{change.module}.{change.attribute}"
        known = self.dit.lora_strengths.parameters
        if name not in known:
            value: Tensor = getattr(holder, change.attribute).detach()
            # Copied: the value may be mapped from the weight file.
            parameter = nn.Parameter(value.clone(), requires_grad=False)
            setattr(holder, change.attribute, parameter)
            base = value.float() if value.is_meta else value.float().cpu()
            known[name] = ScheduledParameter(parameter, base)
        base = known[name].base
        known[name].updates[number] = change.delta.on(base.device, base.shape)


def _is_linear_weight(holder: nn.Module, change: Change) -> bool:
    return change.attribute == "weight" and isinstance(holder, nn.Linear | QuantizedLinear | LoraLinear)


def _check(dit: DiT, change: Change, path: Path) -> None:
    holder = dit.get_submodule(change.module)
    if _is_linear_weight(holder, change):
        fits = change.delta.is_pair and change.norms is None
    else:
        elements = getattr(holder, change.attribute).numel()
        streams = change.module.startswith(BLOCKS) and elements >= STREAMED_ELEMENTS
        fits = change.norms is None and not streams
    if not fits:
        raise CheckpointError(
            f"the LoRA {path.name} can only be merged, so its strength cannot change with the step",
            received=f"an update of {change.module}.{change.attribute} that is no low-rank pair",
            allowed="low-rank pairs without DoRA for linear layers",
            remedy="Give its `scale` as one number.",
        )
