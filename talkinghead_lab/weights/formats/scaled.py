"""8-bit matrices as ComfyUI, LightX2V, Wan2GP and others write them: raw, or with scales of their own names.

Sources: `convert_old_quants` of comfy/utils.py and `_load_quantized_module` of comfy/ops.py in ComfyUI;
tools/convert in LightX2V.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from talkinghead_lab.errors import CheckpointError
from talkinghead_lab.models.kernels.fp8 import E5M2, FP8
from talkinghead_lab.models.quantized.rows import RowQuantizedLinear
from talkinghead_lab.weights.formats.containers import EMPTY_MARKER, Stored
from talkinghead_lab.weights.formats.json_files import parse_json
from talkinghead_lab.weights.formats.rows import EIGHT_BITS, rows
from talkinghead_lab.weights.formats.unsupported import check_plain, refusal

WEIGHT = ".weight"
WEIGHT_SCALES = (".scale_weight", ".weight_scale")
# Calibrated scales of activations. They do not change what a layer computes, only how its input is quantised;
# here each token gets a scale of its own at run time, which is closer and never clips.
ACTIVATION_SCALES = (".scale_input", ".input_scale", ".output_scale")
# A tensor of ComfyUI that marks a network with scales; two elements: multiply in full precision.
MARKER = EMPTY_MARKER
# What ComfyUI says of a layer, as JSON: in a tensor of bytes, or for all layers in the header.
LAYER_FORMAT, HEADER_FORMATS = ".comfy_quant", "_quantization_metadata"
FORMATS = {"float8_e4m3fn": FP8, "float8_e5m2": E5M2, "int8_tensorwise": torch.int8}


@dataclass(frozen=True)
class LayerFormat:
    """What a file says of a quantised layer: its stored type, and whether to multiply in full precision."""

    stored: torch.dtype
    full_precision: bool


def from_scales(tensors: Mapping[str, Stored], metadata: Mapping[str, str], path: Path) -> dict[str, Stored]:
    """The tensors of a file with each 8-bit weight and its scales as one entry, under the weight's name.

    fp8 tensors that are no weights of two dimensions become plain ones.

    Raises:
        CheckpointError: a scale without a weight, a weight without a scale that it must have, a scale that
            cannot be right, or an unsupported type.
    """
    left = dict(tensors)
    formats = _layer_formats(left, metadata, path)
    for name, weight in list(left.items()):
        if not isinstance(weight, Tensor) or weight.dtype not in EIGHT_BITS or name.endswith(WEIGHT_SCALES):
            continue
        layer = name.removesuffix(WEIGHT)
        scale = _pop_scale(left, layer, path) if layer != name else None
        said = formats.pop(layer, None)
        if said is not None and (scale is None or said.stored is not weight.dtype):
            raise CheckpointError(
                "a weight is not stored as the file says",
                received=f"{name} in {path}: {weight.dtype}, {'no' if scale is None else 'a'} scale",
                allowed=f"{said.stored} with a scale",
                remedy="The file is incomplete or damaged.",
            )
        if weight.dtype is torch.int8 and scale is None:
            continue
        left[name] = stored = rows(name, weight, scale, path)
        if isinstance(stored, RowQuantizedLinear) and said is not None:
            stored.full_precision = said.full_precision
    for layer, said in formats.items():
        raise CheckpointError(
            "the file does not hold a layer that it says is quantised",
            received=f"{layer} in {path}",
            allowed=f"{layer}{WEIGHT} of {said.stored}",
            remedy="The file is incomplete or damaged.",
        )
    return _without_scales(left, path)


def _layer_formats(
    tensors: dict[str, Stored], metadata: Mapping[str, str], path: Path
) -> dict[str, LayerFormat]:
    """What a file says of its layers, by their names; takes the tensors that say so out of `tensors`."""
    source = f"{HEADER_FORMATS} in the header of {path}"
    layers = parse_json(metadata.get(HEADER_FORMATS, "{}"), source).get("layers", {})
    said: dict[str, Any] = dict(layers) if isinstance(layers, dict) else {source: layers}
    for name in [name for name in tensors if name.endswith(LAYER_FORMAT)]:
        stored = tensors.pop(name)
        content = (
            stored.flatten().tolist() if isinstance(stored, Tensor) and stored.dtype is torch.uint8 else []
        )
        said[name.removesuffix(LAYER_FORMAT)] = parse_json(bytes(content), f"{name} in {path}")
    formats = {layer: _layer_format(layer, fields, path) for layer, fields in said.items()}
    for name in [name for name in tensors if name.rpartition(".")[2] == MARKER]:
        full_precision = tensors.pop(name).shape == (2,)
        for weight, tensor in tensors.items():
            if weight.startswith(name.removesuffix(MARKER)) and _is_matrix(tensor, weight):
                formats.setdefault(weight.removesuffix(WEIGHT), LayerFormat(tensor.dtype, full_precision))
    return formats


def _layer_format(layer: str, fields: Any, path: Path) -> LayerFormat:
    fields = fields if isinstance(fields, dict) else {"format": fields}
    name, parameters = str(fields.get("format")), fields.get("params")
    if name not in FORMATS:
        raise refusal(name, layer, path)
    if fields.get("convrot") or (isinstance(parameters, dict) and parameters.get("convrot")):
        raise refusal(f"{name} with rotated rows (ConvRot)", layer, path)
    return LayerFormat(FORMATS[name], bool(fields.get("full_precision_matrix_mult")))


def _is_matrix(tensor: Stored, name: str) -> TypeGuard[Tensor]:
    is_plain = isinstance(tensor, Tensor) and tensor.ndim == 2
    return is_plain and name.endswith(WEIGHT) and tensor.dtype in EIGHT_BITS


def _pop_scale(tensors: dict[str, Stored], layer: str, path: Path) -> Tensor | None:
    names = [layer + end for end in WEIGHT_SCALES if layer + end in tensors]
    if len(names) > 1:
        raise CheckpointError("a weight has two scales", received=f"{' and '.join(names)} in {path}")
    scale = tensors.pop(names[0]) if names else None
    return scale if isinstance(scale, Tensor) else None


def _without_scales(tensors: Mapping[str, Stored], path: Path) -> dict[str, Stored]:
    """The tensors without scales that change nothing: of activations, and 1 for a weight in a plain type."""
    kept = dict(tensors)
    for name, scale in tensors.items():
        layer, _, end = name.rpartition(".")
        weight = tensors.get(layer + WEIGHT)
        if f".{end}" in ACTIVATION_SCALES and weight is not None:
            del kept[name]
        if f".{end}" in WEIGHT_SCALES and isinstance(scale, Tensor):
            if isinstance(weight, Tensor):
                check_plain(layer + WEIGHT, weight, path)
            if weight is None or not bool((scale == 1).all()):
                raise CheckpointError(
                    "a scale belongs to no 8-bit weight",
                    received=f"{name} in {path}",
                    allowed=f"{layer}{WEIGHT} in fp8 or int8",
                    remedy="The file is incomplete or damaged.",
                )
            del kept[name]
    return kept
