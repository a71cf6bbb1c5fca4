"""Read low-rank adapters (LoRA, arXiv 2106.09685) in the common formats and merge them into weights."""

import logging
import re
from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor, nn

from talkinghead_lab.errors import CheckpointError
from talkinghead_lab.models.quantized.linear import QuantizedLinear
from talkinghead_lab.weights.formats.containers import read_tensors
from talkinghead_lab.weights.reading import replace_module

logger = logging.getLogger(__name__)

PREFIXES = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.", "lora_unet_")
ROLES = {
    "lora_down.weight": "down",
    "lora_A.weight": "down",
    "lora_A.default.weight": "down",
    "lora_up.weight": "up",
    "lora_B.weight": "up",
    "lora_B.default.weight": "up",
    "alpha": "alpha",
    "diff": "diff",
    "diff_b": "diff_b",
}
KEY = re.compile(
    rf"(?P<layer>.+?)\.(?P<role>{'|'.join(sorted(map(re.escape, ROLES), key=len, reverse=True))})"
)


def merge_lora(model: nn.Module, path: Path, strength: float) -> int:
    """Add a LoRA file to a model's weights; quantised layers are requantised row by row.

    The low-rank update is strength · alpha / rank · up @ down (alpha defaults to the rank).

    Returns:
        The number of changed weights. Keys that match no layer are logged.

    Raises:
        CheckpointError: unreadable file, incomplete low-rank pair, wrong shape, or no matching key.
    """
    updates, unmatched_keys = _by_layer(model, _read(path))
    changed = 0
    for layer, parts in updates.items():
        for name, delta in _deltas(layer, parts, path):
            _add(model, name, delta, strength, path)
            changed += 1
    if not changed:
        raise CheckpointError(
            "no key of the LoRA matches this model",
            received=f"{path.name} with {', '.join(unmatched_keys[:3])}, …",
            remedy="It was made for another model.",
        )
    if unmatched_keys:
        logger.warning(
            "%s: %d keys match no layer: %s", path.name, len(unmatched_keys), ", ".join(unmatched_keys[:8])
        )
    return changed


def _read(path: Path) -> dict[str, Tensor]:
    try:
        tensors = read_tensors(path)
    except CheckpointError as error:
        raise CheckpointError(
            f"the LoRA cannot be read: {error.problem}", received=str(path), remedy=error.remedy
        ) from None
    for key, tensor in tensors.items():
        if not tensor.is_floating_point() and not key.endswith("alpha"):
            raise CheckpointError(
                f"`{key}` of the LoRA {path} is not floating point", received=str(tensor.dtype)
            )
    return tensors


def _by_layer(model: nn.Module, tensors: dict[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    """Group tensors by the layer they change; the second list holds keys that match no layer."""
    layers = {name: name for name, _ in model.named_modules() if name}
    layers |= {name: name for name, _ in model.named_parameters()}
    layers |= {name.replace(".", "_"): name for name in list(layers)}
    updates: dict[str, dict[str, Tensor]] = defaultdict(dict)
    unmatched_keys = []
    for key, tensor in tensors.items():
        match = KEY.fullmatch(key)
        layer = layers.get(_without_prefix(match["layer"])) if match else None
        if match and layer:
            updates[layer][ROLES[match["role"]]] = tensor
        else:
            unmatched_keys.append(key)
    return updates, unmatched_keys


def _without_prefix(name: str) -> str:
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _deltas(layer: str, parts: dict[str, Tensor], path: Path) -> list[tuple[str, Tensor]]:
    """(parameter name, float32 update at strength 1) of one layer."""
    deltas = []
    if ("down" in parts) != ("up" in parts):
        raise CheckpointError(f"{path.name} holds only half of a low-rank pair", received=layer)
    if "down" in parts:
        down, up = parts["down"].float(), parts["up"].float()
        if down.shape[0] != up.shape[1]:
            raise CheckpointError(
                f"the low-rank pair of {layer} in {path.name} has two different ranks",
                received=f"{down.shape[0]} and {up.shape[1]}",
            )
        scale = parts["alpha"].item() / down.shape[0] if "alpha" in parts else 1.0
        deltas.append((f"{layer}.weight", scale * up.flatten(1) @ down.flatten(1)))
    if "diff" in parts:
        deltas.append((f"{layer}.weight", parts["diff"].float()))
    if "diff_b" in parts:
        deltas.append((f"{layer}.bias", parts["diff_b"].float()))
    return deltas


@torch.no_grad()
def _add(model: nn.Module, name: str, delta: Tensor, strength: float, path: Path) -> None:
    holder, attribute = _holder(model, name)
    weight = getattr(holder, attribute, None)
    if weight is None or delta.numel() != weight.numel():
        raise CheckpointError(
            f"the LoRA {path.name} does not fit {name}",
            received=f"an update of shape {tuple(delta.shape)}",
            allowed="no such weight" if weight is None else f"shape {tuple(weight.shape)}",
            remedy="It was made for another model.",
        )
    delta = strength * delta.to(weight.device)
    if isinstance(holder, QuantizedLinear) and attribute == "weight":
        layer = name.removesuffix(".weight")
        replace_module(model, layer, holder.requantized(holder.dequantized() + delta.view(holder.shape)))
        return
    merged = (weight.float() + delta.view_as(weight)).to(weight.dtype)
    setattr(holder, attribute, nn.Parameter(merged, requires_grad=False))


def _holder(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module and attribute that `LAYER.weight` names; LAYER may also be a bare parameter."""
    layer, _, attribute = name.rpartition(".")
    parent, _, leaf = layer.rpartition(".")
    if leaf in dict(model.get_submodule(parent).named_parameters(recurse=False)):
        return model.get_submodule(parent), leaf
    return model.get_submodule(layer), attribute
