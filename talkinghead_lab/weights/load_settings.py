"""What the networks are loaded from, and how."""

from dataclasses import dataclass, fields
from pathlib import Path

import torch

from talkinghead_lab.weights.checkpoints import CheckpointFiles


@dataclass(frozen=True)
class LoraFile:
    """A low-rank adapter that is merged into the transformer, and its strength."""

    path: Path
    scale: float


@dataclass(frozen=True)
class LoadSettings:
    """Everything that decides what loading gives; networks loaded with equal settings are interchangeable.

    Args:
        files: the checkpoint.
        loras: merged into the transformer, in order.
        device: where the networks run.
        compute: type that the transformer computes in.
        storage: 8-bit type that the transformer's linear layers are quantised to; None: not quantised here.
        decode: type that frames are decoded in.
        attention: kernel of self-attention.
        compiled: whether the transformer's blocks are compiled.
        offloaded: whether weights stay in host memory and move to the device stage by stage.
    """

    files: CheckpointFiles
    loras: tuple[LoraFile, ...]
    device: torch.device
    compute: torch.dtype
    storage: torch.dtype | None
    decode: torch.dtype
    attention: str
    compiled: bool
    offloaded: bool

    def differences(self, other: "LoadSettings") -> list[str]:
        """Names of the settings that are not equal."""
        return [each.name for each in fields(self) if getattr(self, each.name) != getattr(other, each.name)]
