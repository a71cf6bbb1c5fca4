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
UNSAFE = re.compile("Unsupported (global|class)|Trying to|Can only|TorchScript archives")
# First bytes: a zip archive, any pickle, and the pickle that PyTorch wrote before 2020.
ZIP, PICKLE, OLD_PYTORCH = b"PK\x03\x04", b"\x80", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"
LFS_POINTER = "version https://git-lfs"
# aria2 reserves the space of a file before it fills it, and keeps this beside it until then.
UNFINISHED = ".aria2"
# A tensor of ComfyUI that may be empty: only its presence and type count; see `scaled`.
EMPTY_MARKER = "scaled_fp8"

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
        is_link = path.is_symlink()
        raise CheckpointError(
            "a link to a weight file leads nowhere" if is_link else "no such weight file",
            received=f"{path} → {path.readlink()}" if is_link else str(path),
        )
    found: Any
    metadata: dict[str, str]
    try:
        found, metadata = _content(path)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(
            f"the weight file cannot be read ({error.strerror or error})",
            received=str(path),
            remedy="Check its permissions and its disk.",
        ) from None
    except Exception as error:  # parsers of damaged files raise many kinds
        if UNSAFE.search(str(error)):
            raise _more_than_tensors(path) from None
        raise CheckpointError(
            f"the weight file is damaged or truncated ({_reason(error):.200})",
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


def _content(path: Path) -> tuple[Any, dict[str, str]]:
    """What a file holds, and the text in its header."""
    with path.open("rb") as file:
        head = file.read(64)
    if path.with_name(path.name + UNFINISHED).exists():
        raise CheckpointError(
            "the download of the weight file is not finished",
            received=f"{path.name}{UNFINISHED} beside {path}",
            remedy="Let aria2 go on, or delete both files and download again.",
        )
    if head.startswith(MAGIC):
        return open_gguf(path)
    # The length of a safetensors header, below 4 GiB, and its first byte.
    if head[4:9] == b"\0\0\0\0{":
        return load_file(path), _header_metadata(path)
    if head.startswith((ZIP, PICKLE)) and path.suffix.lower() == ".safetensors":
        raise CheckpointError(
            "the weight file is one of PyTorch, not of safetensors",
            received=str(path),
            remedy=f"Rename it to {path.stem}.pth.",
        )
    if head.startswith(ZIP):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True), {}
    if head.startswith(OLD_PYTORCH):
        return torch.load(path, map_location="cpu", weights_only=True), {}
    if head.startswith(PICKLE):
        raise _more_than_tensors(path)
    _refuse_text(head, path)
    raise ValueError("it starts like no safetensors, PyTorch or GGUF file" if head else "it is empty")


def _refuse_text(head: bytes, path: Path) -> None:
    """Refuse what servers and tools put in place of a file: a page of an error, a pointer."""
    text = head.decode(errors="ignore")
    if text.startswith(LFS_POINTER):
        raise CheckpointError(
            "the weight file is only a pointer of Git LFS",
            received=str(path),
            remedy="Run `git lfs pull` in its repository, or download the file itself.",
        )
    if text.strip() and text.replace("\n", " ").replace("\t", " ").replace("\r", " ").isprintable():
        raise CheckpointError(
            f"the weight file holds text: {text.strip()[:40]!r}",
            received=str(path),
            remedy="It may be the page of a server's error. Download the file itself.",
        )


def _more_than_tensors(path: Path) -> CheckpointError:
    return CheckpointError(
        "the file holds more than tensors and was not opened",
        received=str(path),
        remedy="It could run code. Use the released file, or convert one you trust to safetensors.",
    )


def _reason(error: Exception) -> str:
    """The first line of an error that says something; PyTorch's first line advises to run the code."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    if isinstance(error, pickle.UnpicklingError):
        lines = [line for line in lines if "weights_only" not in line]
    return lines[0] if lines else type(error).__name__


def _header_metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata() or {})


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
