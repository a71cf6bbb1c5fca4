"""Read a LoRA file: its tensors, and by what an update is scaled."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from talkinghead_lab.errors import CheckpointError
from talkinghead_lab.weights.formats.containers import WeightFile, open_file

# Where diffusers stores the configuration of an adapter in a file's header, and the network it is about.
HEADER_ENTRY, NETWORK = "lora_adapter_metadata", "transformer."
# Where PEFT stores it: next to the file.
CONFIG_FILE = "adapter_config.json"
TYPES = (
    *(torch.float32, torch.bfloat16, torch.float16, torch.float64),
    *(torch.float8_e4m3fn, torch.float8_e5m2),
)
ALPHA_TYPES = (*TYPES, torch.int64, torch.int32)


@dataclass(frozen=True)
class Scaling:
    """The configured scale of updates whose layer has no alpha in the file.

    Args:
        alpha: None scales by 1, as all public loaders do where a file says nothing.
        alphas: alpha of single layers, by the end of their name.
        rank_stabilised: divide by √rank instead of the rank (rsLoRA, arXiv 2312.03732).
    """

    alpha: float | None = None
    alphas: Mapping[str, float] = field(default_factory=dict)
    rank_stabilised: bool = False

    @classmethod
    def from_config(cls, config: Mapping[str, Any], source: str) -> "Scaling":
        """From the fields of PEFT's `LoraConfig`.

        Raises:
            CheckpointError: fields of other types, or patterns of layers that are more than names.
        """
        alphas = config.get("alpha_pattern") or {}
        alpha, stabilised = config.get("lora_alpha"), config.get("use_rslora") or False
        named = isinstance(alphas, Mapping) and all(
            name.replace(".", "").replace("_", "").isalnum() and _is_number(value)
            for name, value in alphas.items()
        )
        if not named or not isinstance(stabilised, bool) or not (alpha is None or _is_number(alpha)):
            raise CheckpointError(
                f"the configuration of the LoRA in {source} is not supported",
                received=f"lora_alpha {alpha!r}, alpha_pattern {alphas!r}, use_rslora {stabilised!r}"[:300],
                allowed="numbers, names of layers, true or false",
            )
        return cls(alpha, alphas, stabilised)

    def of(self, layer: str, rank: int) -> float:
        """The scale of an update of a rank; `layer` is spelled as in the file."""
        ends = (end for end in self.alphas if layer == end or layer.endswith(f".{end}"))
        alpha = self.alphas.get(next(ends, ""), self.alpha)
        return 1.0 if alpha is None else alpha / (math.sqrt(rank) if self.rank_stabilised else rank)


def read_lora(path: Path) -> tuple[WeightFile, Scaling]:
    """A LoRA file of plain, finite tensors, and their scaling.

    Raises:
        CheckpointError: unreadable; tensors that are not floating-point numbers; a scale that only a
            configuration next to the file states.
    """
    try:
        file = open_file(path)
    except CheckpointError as error:
        raise CheckpointError(
            f"the LoRA cannot be read: {error.problem}", received=str(path), remedy=error.remedy
        ) from None
    for key, tensor in file.tensors.items():
        if not isinstance(tensor, Tensor):
            raise CheckpointError(f"`{key}` of the LoRA {path} is quantised", received=tensor.stored_as)
        if tensor.dtype not in (ALPHA_TYPES if key.endswith("alpha") else TYPES):
            raise CheckpointError(
                f"`{key}` of the LoRA {path} is of a type that updates are not stored in",
                received=str(tensor.dtype),
                allowed=", ".join(map(str, TYPES)),
            )
        if not is_finite(tensor):
            raise CheckpointError(
                f"`{key}` of the LoRA {path} holds NaN or infinity",
                remedy="Its training diverged, or the file is damaged.",
            )
    scaling = _stated_in_header(file)
    if scaling is None:
        _refuse_stated_elsewhere(path)
    return file, scaling or Scaling()


def is_finite(tensor: Tensor) -> bool:
    """Whether float32 can hold all values of a tensor."""
    # `aminmax` passes NaN on, and takes a thirtieth of the time of `isfinite`; it has no 8-bit types.
    limits = torch.aminmax(tensor.float() if tensor.element_size() == 1 else tensor)
    return bool(torch.stack(limits).float().isfinite().all())


def _stated_in_header(file: WeightFile) -> Scaling | None:
    if HEADER_ENTRY not in file.metadata:
        return None
    config = _mapping(file.metadata[HEADER_ENTRY], file.path.name)
    config = {name.removeprefix(NETWORK): value for name, value in config.items() if name.startswith(NETWORK)}
    return Scaling.from_config(config, f"the header of {file.path.name}") if config else None


def _refuse_stated_elsewhere(path: Path) -> None:
    """Refuse a file whose scale stands in another file, which no record of a run would cover."""
    config_file = path.with_name(CONFIG_FILE)
    if not path.name.startswith("adapter_model") or not config_file.is_file():
        return
    config = _mapping(config_file.read_text(errors="replace"), str(config_file))
    rank = config.get("r")
    scaling = Scaling.from_config(config, str(config_file))
    scale = scaling.of("", rank) if isinstance(rank, int) and rank > 0 else math.nan
    if scale != 1.0 or scaling.alphas or config.get("rank_pattern"):
        raise CheckpointError(
            f"the scale of the LoRA {path.name} is stated only in {CONFIG_FILE} next to it",
            received=f"rank {rank}, lora_alpha {scaling.alpha}, use_rslora {scaling.rank_stabilised}",
            allowed="scales stated in the file, or 1",
            remedy="Copy the file to another folder"
            + (f", and set its `scale` to {scale:g} times what you want." if scale == scale else "."),
        )


def _mapping(text: str, source: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise CheckpointError(f"the configuration of the LoRA in {source} is damaged", received=text[:80])
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
