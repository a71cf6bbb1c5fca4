"""Open a weight file without copying it: `.safetensors`, a file of PyTorch, or GGUF."""

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from talkinghead_lab.errors import CheckpointError
from talkinghead_lab.models.quantized.linear import QuantizedLinear
from talkinghead_lab.weights.formats.gguf_file import MAGIC, open_gguf

# PyTorch's words for what a file of tensors does not hold; other errors of unpickling mean damage.
UNSAFE = re.compile("Unsupported (global|class)|Trying to|Can only")
# A tensor of ComfyUI that may be empty: only its presence and type count; see `scaled`.
EMPTY_MARKER = "scaled_fp8"

LINE_END = "\n"  # PyTorch's errors go on with a stack trace

# A tensor as it is stored: plain, or a quantised matrix.
Stored = Tensor | QuantizedLinear


@dataclass(frozen=True)
class WeightFile:
    """The content of a weight file; tensors are memory-mapped.

    Args:
        path: of the file.
        tensors: by the names in the file.
        metadata: text by key, from the header of `.safetensors` and GGUF files.
    """

    path: Path
    tensors: dict[str, Stored]
    metadata: Mapping[str, str] = field(default_factory=dict)


def open_file(path: Path) -> WeightFile:
    """Open a weight file; the container is known by its first bytes.

    PyTorch's form from before 2020, which is no zip archive, is copied. Tensors may lie in a `state_dict`.

    Raises:
        CheckpointError: missing, truncated or damaged, not supported, or the file holds more than tensors.
    """
    if not path.is_file():
        raise CheckpointError("no such weight file", received=str(path))
    found: Any
    metadata: dict[str, str]
    try:
        with path.open("rb") as file:
            is_gguf = file.read(len(MAGIC)) == MAGIC
        if is_gguf:
            found, metadata = open_gguf(path)
        elif path.suffix == ".safetensors":
            found, metadata = load_file(path), _header_metadata(path)
        else:
            found, metadata = _unpickled(path), {}
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(
            f"the weight file cannot be read ({error.strerror or error})",
            received=str(path),
            remedy="Check its permissions and its disk.",
        ) from None
    except Exception as error:  # parsers of damaged files raise many kinds
        if isinstance(error, pickle.UnpicklingError) and UNSAFE.search(str(error)):
            raise CheckpointError(
                "the file holds more than tensors and was not opened",
                received=str(path),
                remedy="It could run code. Use the released file, or convert one you trust to safetensors.",
            ) from None
        raise CheckpointError(
            f"the weight file is damaged or truncated ({str(error).partition(LINE_END)[0]:.200})",
            received=str(path),
            remedy="Download it again.",
        ) from None
    if isinstance(found, Mapping) and found.keys() == {"state_dict"}:
        found = found["state_dict"]
    if not isinstance(found, Mapping):
        kind = type(found).__name__
        raise CheckpointError(f"the weight file is of type {kind}, not tensors by name", received=str(path))
    for name, value in found.items():
        if problem := _problem(name, value):
            raise CheckpointError(f"`{str(name)[:80]}` of the weight file {problem}", received=str(path))
    return WeightFile(path, dict(found), metadata)


def _header_metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata() or {})


def _unpickled(path: Path) -> Any:
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
    return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)


def _problem(name: object, value: object) -> str | None:
    """Why an entry of a file cannot be a weight; None if it can."""
    if isinstance(value, QuantizedLinear):
        value = value.weight
    if not isinstance(name, str) or not isinstance(value, Tensor):
        return f"is of type {type(value).__name__}, not a tensor"
    if value.layout is not torch.strided or value.is_quantized or value.is_meta:
        return "is not a dense tensor"
    if value.numel() == 0 and name.rpartition(".")[2] != EMPTY_MARKER:
        return f"is empty: its shape is {tuple(value.shape)}"
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return f"has fewer values than its shape {tuple(value.shape)} says"
    return None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that may hold plain ones only; errors as for `open_file`."""
    return {name: tensor for name, tensor in open_file(path).tensors.items() if isinstance(tensor, Tensor)}
