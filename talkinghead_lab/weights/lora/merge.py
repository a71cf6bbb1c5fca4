"""Merge a LoRA file into the weights of a model, whole or not at all."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from talkinghead_lab.errors import CheckpointError
from talkinghead_lab.models.quantized.linear import QuantizedLinear
from talkinghead_lab.weights.lora.keys import LayerUpdate, by_layer
from talkinghead_lab.weights.lora.reading import Scaling, is_finite, read_lora
from talkinghead_lab.weights.lora.updates import Delta, Shape, full, product
from talkinghead_lab.weights.reading import replace_module

# Of the search for the factor that makes up for rounding: rows that are tried, precision, and the largest
# factor, which serves changes down to 0.1 % of the weight in int8.
SAMPLED_ROWS, TOLERANCE, LARGEST_GAIN = 128, 0.02, 8.0


@dataclass(frozen=True)
class Change:
    """How one weight changes.

    Args:
        module: name of the module that holds it.
        attribute: its name in the module.
        delta: what is added.
        norms: the new norms of the rows or columns of the sum, shaped to be broadcast (DoRA).
    """

    module: str
    attribute: str
    delta: Delta
    norms: Tensor | None = None


def merge_lora(model: nn.Module, path: Path, strength: float) -> int:
    """Add a LoRA file to a model's weights, one layer at a time, on the device that holds them.

    With strength s, W becomes W + s · Δ, where Δ is the update that the file was trained with. A quantised
    layer is dequantised, updated and quantised again. All of the file is checked before a weight changes.

    Returns:
        The number of changed weights.

    Raises:
        CheckpointError: as `changes_of` and `apply_change`.
    """
    changes = changes_of(model, path)
    for change in changes:
        apply_change(model, change, strength, path)
    return len(changes)


def changes_of(model: nn.Module, path: Path) -> list[Change]:
    """Read a LoRA file and check all of it against a model, whose weights may be on the meta device.

    Raises:
        CheckpointError: unreadable; keys that match no layer; parts that are missing, of the wrong shape or
            not supported; two updates of one weight.
    """
    file, scaling = read_lora(path)
    changes = [c for update in by_layer(model, file) for c in _changes(model, update, scaling)]
    if not changes:
        raise CheckpointError("the LoRA holds no update", received=str(path))
    return changes


def _changes(model: nn.Module, update: LayerUpdate, scaling: Scaling) -> list[Change]:
    """What an update changes in its layer: the weight or bare parameter, and the bias."""
    module, attribute = _holder(model, update.layer)
    shape, parts = _shape(model, module, attribute), update.parts
    changes, found = [], product(update, shape, scaling)
    if found is None and (extra := parts.keys() - {"diff", "diff_b"}):
        raise update.error("holds only half of a low-rank pair", sorted(extra))
    if found is not None:
        if "diff" in parts:
            raise update.error("holds two updates of one weight", sorted(parts))
        changes.append(Change(module, attribute, found[0], _norms(update, shape)))
    elif "diff" in parts:
        changes.append(Change(module, attribute, full(update, "diff", shape)))
    if biases := parts.keys() & {"diff_b", "up_bias"}:
        bias = getattr(model.get_submodule(module), "bias", None)
        if len(biases) > 1 or bias is None or attribute != "weight":
            raise update.error("updates a bias", sorted(biases), "one update of an existing bias")
        (part,) = biases
        scale = found[1] if found is not None and part == "up_bias" else 1.0
        changes.append(Change(module, "bias", full(update, part, tuple(bias.shape), scale)))
    return changes


def _holder(model: nn.Module, layer: str) -> tuple[str, str]:
    """The module and attribute of a layer's weight; a layer may also be a bare parameter."""
    module, _, leaf = layer.rpartition(".")
    if leaf in dict(model.get_submodule(module).named_parameters(recurse=False)):
        return module, leaf
    return layer, "weight"


def _shape(model: nn.Module, module: str, attribute: str) -> Shape:
    holder = model.get_submodule(module)
    if attribute == "weight" and isinstance(holder, QuantizedLinear):
        return holder.shape
    return tuple(holder.get_parameter(attribute).shape)


def _norms(update: LayerUpdate, shape: Shape) -> Tensor | None:
    """DoRA's norms (arXiv 2402.09353): of rows as in the paper and PEFT, or of columns as LyCORIS can."""
    found = [update.parts[part] for part in ("dora_scale", "magnitude") if part in update.parts]
    if not found:
        return None
    rows, columns = (shape[0], *(1 for _ in shape[1:])), (1, shape[1], *(1 for _ in shape[2:]))
    # PEFT names the rows of a convolution in the second dimension, where LyCORIS has columns.
    by_peft = (1, *rows[:-1]) if "magnitude" in update.parts else rows
    (norms, *others), size = found, tuple(found[0].shape)
    if size in ((shape[0],), rows, by_peft) and not others:
        return norms.view(rows)
    if size == columns and not others:
        return norms
    sizes = [tuple(each.shape) for each in found]
    raise update.error("does not fit", f"DoRA norms of shape {sizes}", f"{rows} or {columns}")


@torch.no_grad()
def apply_change(model: nn.Module, change: Change, strength: float, path: Path) -> None:
    """Change one weight.

    Raises:
        CheckpointError: the merged weight exceeds its type.
    """
    holder: Any = model.get_submodule(change.module)
    is_quantised = change.attribute == "weight" and isinstance(holder, QuantizedLinear)
    weight: Tensor = holder.dequantized() if is_quantised else getattr(holder, change.attribute)
    delta = change.delta.on(weight.device, weight.shape)
    if change.norms is not None:
        delta = _with_norms(weight.float() + delta, change.norms.to(weight.device)) - weight.float()
    delta.mul_(strength)
    if is_quantised:
        delta.mul_(_gain(holder, weight, delta))
    # In place: a layer has up to 71 million values, and every new copy of them takes as long as the matmul.
    merged = delta.add_(weight).to(weight.dtype)
    if not merged.is_meta and not is_finite(merged):
        raise CheckpointError(
            f"the LoRA {path.name} makes {change.module}.{change.attribute} exceed {weight.dtype}",
            received=f"strength {strength:g}",
            remedy="Lower its `scale`, or use a LoRA that was made for this model.",
        )
    if is_quantised:
        replace_module(model, change.module, holder.requantized(merged))
    else:
        setattr(holder, change.attribute, nn.Parameter(merged, requires_grad=False))


def _gain(layer: QuantizedLinear, weight: Tensor, delta: Tensor) -> float:
    """The factor by which a change must grow to keep its size when the layer is quantised again.

    The weight is a multiple of the steps of its type, and a change of less than half a step is rounded away:
    of a change of 1 % in fp8, a third remains. Rows are quantised apart, so a sample of them tells.
    """
    rows = slice(None, None, max(1, len(weight) // SAMPLED_ROWS))
    weight, delta = weight[rows], delta[rows]
    if weight.is_meta or not delta.any():
        return 1.0

    def kept(gain: float) -> float:
        change = layer.requantized(weight + gain * delta).dequantized() - weight
        return float((change * delta).sum() / delta.square().sum())

    if kept(1.0) > 1 - TOLERANCE:
        return 1.0
    low, high = 1.0, LARGEST_GAIN
    while high / low > 1 + TOLERANCE:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if kept(middle) < 1 else (low, middle)
    return high


def _with_norms(weight: Tensor, wanted: Tensor) -> Tensor:
    """A weight whose rows or columns are scaled to the norms `wanted`, which are shaped to be broadcast."""
    others = [i for i, n in enumerate(wanted.shape) if n == 1]
    norms: Tensor = torch.linalg.vector_norm(weight, dim=others, keepdim=True)
    return weight * (wanted.float() / norms.clamp_min(torch.finfo(torch.float32).eps))
