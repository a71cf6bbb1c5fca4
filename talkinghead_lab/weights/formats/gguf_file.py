"""Open GGUF files: tensors as stored, memory-mapped, with quantised matrices as layers.

Format: docs/gguf.md of ggml, versions 2 and 3. The reader of the package `gguf` takes 18 s for a file of
umT5, because it makes objects of all tokens in its metadata, and does not check sizes.
"""

import math
import re
import struct
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from talkinghead_lab.errors import CheckpointError
from talkinghead_lab.models.kernels.block_types import BLOCK_TYPES
from talkinghead_lab.models.quantized.blocks import BlockQuantizedLinear
from talkinghead_lab.models.quantized.linear import QuantizedLinear

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32  # bytes, unless the metadata says otherwise
# Larger numbers stand in damaged files only. The vocabulary of umT5 has 256,384 tokens.
MOST_ENTRIES, MOST_DIMENSIONS, LONGEST_NAME = 2**20, 8, 512
KEPT_ITEMS = MOST_DIMENSIONS  # longer arrays of the metadata are skipped
NUMBERS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))  # format of a value
TEXT, ARRAY = 8, 9
# `ggml_type` of ggml.h.
PLAIN = {
    **{0: torch.float32, 1: torch.float16, 28: torch.float64, 30: torch.bfloat16},
    **{24: torch.int8, 25: torch.int16, 26: torch.int32, 27: torch.int64},
}
QUANTIZED = {
    **{2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0"},
    **{10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K"},
}
UNSUPPORTED = {
    **{9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL"},
    **{21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4"},
    **{40: "NVFP4", 41: "Q1_0"},
}
SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
ORIGINAL_SHAPE = "comfy.gguf.orig_shape."
REMEDY = "Use the file in Q8_0, Q6_K, Q5_K or Q4_K, or an unquantised one."


class _Header:
    """Reads the numbers and texts of a file from the start on; any error means that it is damaged."""

    def __init__(self, data: memoryview) -> None:
        self.data, self.at = data, len(MAGIC)

    def number(self, code: str) -> Any:
        (value,) = struct.unpack_from(f"<{code}", self.data, self.at)
        self.at += struct.calcsize(f"<{code}")
        return value

    def count(self) -> int:
        count: int = self.number("Q")
        if count > MOST_ENTRIES:
            raise ValueError(f"{count} entries at byte {self.at - 8}")
        return count

    def skip(self, nbytes: int) -> None:
        self.at += nbytes
        if self.at > len(self.data):
            raise ValueError(f"an entry ends at byte {self.at} of {len(self.data)}")

    def text(self) -> str:
        length: int = self.number("Q")
        self.skip(length)
        return bytes(self.data[self.at - length : self.at]).decode()

    def value(self, kind: int) -> Any:
        """A value of the metadata; None in place of a long array."""
        if kind == TEXT:
            return self.text()
        if kind != ARRAY:
            return self.number(NUMBERS[kind])
        kind, count = self.number("I"), self.count()
        if kind == TEXT:
            for _ in range(count):
                self.skip(self.number("Q"))
            return None
        if count <= KEPT_ITEMS:
            return [self.number(NUMBERS[kind]) for _ in range(count)]
        return self.skip(count * struct.calcsize(f"<{NUMBERS[kind]}"))


def open_gguf(path: Path) -> tuple[dict[str, Tensor | QuantizedLinear], dict[str, str]]:
    """Tensors and metadata of a GGUF file. Arrays of the metadata are left out.

    Raises:
        CheckpointError: one file of several, or a tensor or a version that is not supported.
        Exception: of many kinds, if the file is damaged.
    """
    content = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)
    header = _Header(content.numpy().data)
    version = header.number("I")
    if version not in VERSIONS:
        raise CheckpointError(
            "a version of GGUF that is not supported",
            received=f"version {version} in {path}",
            allowed="versions 2 and 3, little-endian",
            remedy="Convert the file with a current llama.cpp.",
        )
    tensor_count = header.count()
    metadata = {header.text(): header.value(header.number("I")) for _ in range(header.count())}
    if metadata.get("split.count", 1) > 1 or SPLIT.search(path.name):
        raise CheckpointError(
            "one file of a split GGUF",
            received=str(path),
            remedy="Merge the files: `llama-gguf-split --merge FIRST_FILE TARGET`.",
        )
    infos = [_tensor_info(header) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", ALIGNMENT)
    start = -(-header.at // alignment) * alignment
    tensors: dict[str, Tensor | QuantizedLinear] = {}
    for name, shape, kind, offset in infos:
        if name in tensors:
            raise ValueError(f"`{name}` occurs twice")
        original = metadata.get(ORIGINAL_SHAPE + name, shape)
        tensors[name] = _tensor(name, shape, kind, content[start + offset :], tuple(original), path)
    return tensors, {
        key: str(value) for key, value in metadata.items() if isinstance(value, str | int | float)
    }


def _tensor_info(header: _Header) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape, type and offset of a tensor. GGUF stores the innermost dimension first."""
    name, dimensions = header.text(), header.number("I")
    if dimensions > MOST_DIMENSIONS or len(name) > LONGEST_NAME:
        raise ValueError(f"`{name[:80]}` has {dimensions} dimensions and {len(name)} characters")
    shape = [header.number("Q") for _ in range(dimensions)]
    if 0 in shape:
        raise ValueError(f"`{name}` is empty")
    return name, tuple(reversed(shape)), header.number("I"), header.number("Q")


def _tensor(
    name: str, shape: tuple[int, ...], kind: int, content: Tensor, original: tuple[int, ...], path: Path
) -> Tensor | QuantizedLinear:
    """A tensor whose bytes are at the start of `content`."""
    if kind in PLAIN:
        return _start(content, name, PLAIN[kind], original, math.prod(shape) * PLAIN[kind].itemsize)
    if kind not in QUANTIZED:
        raise CheckpointError(
            f"`{name}` is stored in a type that is not supported",
            received=f"{UNSUPPORTED.get(kind, f'type {kind}')} in {path}",
            allowed=f"F32, F16, BF16, {', '.join(BLOCK_TYPES)}",
            remedy=REMEDY,
        )
    stored_as, block = QUANTIZED[kind], BLOCK_TYPES[QUANTIZED[kind]]
    if len(shape) != 2 or original != shape:
        raise CheckpointError(
            f"`{name}` is quantised but not stored as a matrix",
            received=f"{stored_as}, shape {original}, in {path}",
            allowed="quantised matrices; other tensors in F32, F16 or BF16",
            remedy=REMEDY,
        )
    blocks, rest = divmod(shape[1], block.weights)
    if rest:
        raise ValueError(f"rows of `{name}` hold {shape[1]} weights, not blocks of {block.weights}")
    rows = shape[0], blocks * block.nbytes
    return BlockQuantizedLinear(_start(content, name, torch.uint8, rows, math.prod(rows)), stored_as)


def _start(content: Tensor, name: str, dtype: torch.dtype, shape: tuple[int, ...], nbytes: int) -> Tensor:
    if nbytes > len(content):
        raise ValueError(f"`{name}` ends beyond the file")
    # A view would keep the file mapped even after its data has moved elsewhere.
    return content[:nbytes].view(dtype).view(shape).detach()
