"""Files of optimum-quanto: each quantised weight is a pair of tensors, and a map names the layers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from talkinghead_lab.errors import CheckpointError
from talkinghead_lab.models.kernels.fp8 import E5M2, FP8
from talkinghead_lab.weights.formats.containers import Stored, WeightFile
from talkinghead_lab.weights.formats.json_files import parse_base64, read_json
from talkinghead_lab.weights.formats.rows import rows

# Stored types by their names in maps of optimum-quanto.
QUANTO_TYPES = {
    "qint8": torch.int8,
    "qfloat8": FP8,
    "qfloat8_e4m3fn": FP8,
    "qfloat8_e5m2": E5M2,
}
DATA, SCALE = "._data", "._scale"  # suffixes of a weight's parts
# Where Wan2GP (`safetensors2.torch_write_file` of mmgp) writes the map: JSON in base64.
HEADER_MAP = "quantization_map_base64"


def quanto_map(path: Path) -> Mapping[str, Any] | None:
    """The map of quantised layers beside a file of optimum-quanto; None if the file has none.

    For `a_b.safetensors` it is `a_b.json` (InfiniteTalk), `a_map_b.json` (its text encoder) or
    `a_b_map.json` (mmgp).
    """
    stem, kind = path.stem.split("_", 1) if "_" in path.stem else (path.stem, "")
    names = (f"{path.stem}.json", f"{stem}_map_{kind}.json", f"{path.stem}_map.json")
    for sidecar in map(path.with_name, names):
        fields = read_json(sidecar) if sidecar.is_file() else {}
        if fields and all(isinstance(kinds, dict) for kinds in fields.values()):
            return fields
    return None


def _header_map(file: WeightFile) -> Mapping[str, Any] | None:
    encoded = file.metadata.get(HEADER_MAP)
    return None if encoded is None else parse_base64(encoded, f"{HEADER_MAP} in the header of {file.path}")


def from_quanto(file: WeightFile) -> dict[str, Stored]:
    """The tensors of a file with each pair that its map names as one layer; all of them without a map.

    Raises:
        CheckpointError: the file does not hold what its map names, or a type is not supported.
    """
    tensors, kinds = dict(file.tensors), _header_map(file)
    if kinds is None:
        kinds = quanto_map(file.path) or {}
    for layer, kind in kinds.items():
        fields = kind if isinstance(kind, dict) else {}
        if fields.get("weights") == "none":
            continue
        stored = QUANTO_TYPES.get(str(fields.get("weights")))
        if stored is None or fields.get("activations") not in (None, "none"):
            raise CheckpointError(
                f"the quantisation of layer {layer} is not supported",
                received=kind,
                allowed=f"weights one of {', '.join(QUANTO_TYPES)}; activations none",
            )
        weight = f"{layer}.weight"
        data, scale = (tensors.pop(weight + suffix, None) for suffix in (DATA, SCALE))
        if (
            not (isinstance(data, Tensor) and isinstance(scale, Tensor))
            or data.dtype is not stored
            or weight in tensors
        ):
            raise CheckpointError(
                "the file holds no such quantised layer as its map names",
                received=f"{layer} in {file.path}",
                remedy="Use the map that came with the file.",
            )
        tensors[weight] = rows(weight, data, scale, file.path)
    return tensors
