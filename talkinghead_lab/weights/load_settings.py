"""What the networks are loaded from, and how."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch

from talkinghead_lab.errors import CheckpointError
from talkinghead_lab.foundation.digests import FileState
from talkinghead_lab.weights.locating import CheckpointFiles


@dataclass(frozen=True)
class LoraFile:
    """A low-rank adapter of the transformer, its strength, and the state of its file.

    It is merged into the weights; without a strength, it is kept beside them, and sampling sets its strength.
    """

    path: Path
    scale: float | None
    state: FileState | None = None

    def __str__(self) -> str:
        return f"{self.path} × {'a schedule' if self.scale is None else format(self.scale, 'g')}"


@dataclass(frozen=True)
class LoadSettings:
    """Everything that decides what loading gives; networks loaded with equal settings are interchangeable.

    Args:
        files: the checkpoint.
        loras: of the transformer, in order.
        device: where the networks run.
        compute: type that the transformer computes in.
        storage: 8-bit type that the transformer's plain linear layers are quantised to; None: none are.
        fp8_matmuls: whether the transformer's fp8 layers multiply in fp8.
        decode: type that frames are decoded in.
        attention: kernel of self-attention.
        compiled: whether the transformer's blocks are compiled.
        offloaded: whether weights stay in host memory and move to the device stage by stage.
        stored: how many tensors of the transformer's files are stored in each type.
        weights: states of the checkpoint's files before they are read, by place.
    """

    files: CheckpointFiles
    loras: tuple[LoraFile, ...]
    device: torch.device
    compute: torch.dtype
    storage: torch.dtype | None
    fp8_matmuls: bool
    decode: torch.dtype
    attention: str
    compiled: bool
    offloaded: bool
    stored: Mapping[str, int] = field(default_factory=dict)
    weights: Mapping[str, FileState] = field(default_factory=dict)

    def differences(self, other: "LoadSettings") -> dict[str, tuple[str, str]]:
        """The settings that are not equal, by name: their values here and there, in words."""
        mine, theirs = self._in_words(), other._in_words()
        found = {name: (mine[name], theirs[name]) for name in mine if mine[name] != theirs[name]}
        if not found and self != other:
            changed = [
                state.path
                for name, state in self._states().items()
                if state is not None and other._states().get(name) != state
            ]
            found["files"] = ("as they were when loaded", f"changed since: {', '.join(changed)}")
        return found

    def _in_words(self) -> dict[str, str]:
        words = {each.name: str(getattr(self, each.name)) for each in fields(self)}
        del words["files"], words["stored"], words["weights"]
        words["loras"] = ", ".join(map(str, self.loras)) or "none"
        return self.files.in_words() | words

    def _states(self) -> dict[str, FileState | None]:
        loras = {f"lora {number}": lora.state for number, lora in enumerate(self.loras)}
        return {**self.weights, **loras}

    def check_mapped_files(self) -> None:
        """Refuse weights that are mapped into memory and whose file was overwritten in place.

        Raises:
            CheckpointError: the networks' values have changed with the file.
        """
        if self.device.type != "cpu" and not self.offloaded:
            return
        for state in self.weights.values():
            if state.is_overwritten:
                raise CheckpointError(
                    "a weight file was overwritten while it was in use",
                    received=state.path,
                    remedy="Run it again. Replace weight files by renaming new ones.",
                )
