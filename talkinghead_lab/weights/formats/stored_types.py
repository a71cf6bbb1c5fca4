"""Turn what a quantised file holds for one matrix into one layer, whatever program wrote the file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from talkinghead_lab.errors import CheckpointError
from talkinghead_lab.models.kernels.fp8 import FP8
from talkinghead_lab.models.quantized.rows import RowQuantizedLinear
from talkinghead_lab.weights.formats.containers import Stored, WeightFile

# Stored types by their names in maps of optimum-quanto.
QUANTO_TYPES = {"qint8": torch.int8, "qfloat8_e4m3fn": FP8, "qfloat8": FP8}
DATA, SCALE = "._data", "._scale"  # suffixes of a weight's parts
ACTIVATION_SCALES = (".input_scale", ".output_scale")


def combined(file: WeightFile) -> dict[str, Stored]:
    """The tensors of a file with each quantised matrix as one entry, under the name of its weight.

    Raises:
        CheckpointError: a scale is missing, or the file is quantised in a way that is not supported.
    """
    kinds = quanto_map(file.path)
    return dict(file.tensors) if kinds is None else _from_quanto(file, kinds)


def quanto_map(path: Path) -> Mapping[str, Any] | None:
    """The map of quantised layers beside a file of optimum-quanto; None if the file has none."""
    stem, kind = path.stem.split("_", 1) if "_" in path.stem else (path.stem, "")
    for sidecar in (path.with_suffix(".json"), path.with_name(f"{stem}_map_{kind}.json")):
        fields = read_json(sidecar) if sidecar.is_file() else {}
        if fields and all(isinstance(kinds, dict) for kinds in fields.values()):
            return fields
    return None


def _from_quanto(file: WeightFile, kinds: Mapping[str, Any]) -> dict[str, Stored]:
    tensors = {name: tensor for name, tensor in file.tensors.items() if not name.endswith(ACTIVATION_SCALES)}
    for layer, kind in kinds.items():
        stored = QUANTO_TYPES.get(str(kind.get("weights")))
        if stored is None or kind.get("activations", "none") != "none":
            raise CheckpointError(
                f"the quantisation of layer {layer} is not supported",
                received=kind,
                allowed=f"weights one of {', '.join(QUANTO_TYPES)}; activations none",
            )
        weight = f"{layer}.weight"
        data, scale = (tensors.pop(weight + suffix, None) for suffix in (DATA, SCALE))
        if not isinstance(data, Tensor) or not isinstance(scale, Tensor) or data.dtype is not stored:
            raise CheckpointError(
                "the file holds no such quantised layer as its map names",
                received=f"{layer} in {file.path}",
                remedy="Use the map that came with the file.",
            )
        tensors[weight] = RowQuantizedLinear(data, scale)
    return tensors


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: the file cannot be read, or holds something else.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot be read as JSON ({error})", received=str(path)) from None
    if not isinstance(fields, dict):
        raise CheckpointError("is not a JSON object", received=str(path))
    return fields
