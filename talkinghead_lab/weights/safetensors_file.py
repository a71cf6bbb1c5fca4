"""Write a `.safetensors` file tensor by tensor; the library's own writer needs all of them in memory."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

# Names of types in the header: https://github.com/huggingface/safetensors#format
TYPES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8",
    torch.uint8: "U8",
}
ALIGNMENT = 8  # of the first tensor; wider types come first, so every tensor is aligned to its own size


@dataclass(frozen=True)
class Entry:
    """Type and shape of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> Self:
        """Those of a tensor, which may be on the meta device."""
        return cls(tensor.dtype, tuple(tensor.shape))

    @property
    def bytes(self) -> int:
        """The size of the values."""
        return prod(self.shape) * self.dtype.itemsize


class SafetensorsFile:
    """A `.safetensors` file whose tensors are written in any order.

    Args:
        path: of the file; it is overwritten.
        entries: every tensor that will be written.
        metadata: text by key for the header.
    """

    def __init__(self, path: Path, entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> None:
        self.entries, self.offsets, end = dict(entries), {}, 0
        for name in sorted(entries, key=lambda name: (-entries[name].dtype.itemsize, name)):
            self.offsets[name] = end
            end += entries[name].bytes
        header = json.dumps(
            {"__metadata__": dict(metadata)} | {n: self._field(n) for n in self.offsets}
        ).encode()
        header += b" " * (-len(header) % ALIGNMENT)
        self._start = 8 + len(header)
        self.bytes = self._start + end
        self._file = path.open("wb")
        self._file.write(len(header).to_bytes(8, "little") + header)
        self._missing = set(entries)

    def _field(self, name: str) -> dict[str, object]:
        entry, start = self.entries[name], self.offsets[name]
        return {
            "dtype": TYPES[entry.dtype],
            "shape": entry.shape,
            "data_offsets": [start, start + entry.bytes],
        }

    def write(self, name: str, tensor: Tensor) -> None:
        """Write the values of a tensor.

        Raises:
            ValueError: no such tensor is expected.
        """
        if name not in self._missing or Entry.of(tensor) != self.entries[name]:
            raise ValueError(f"{name} {Entry.of(tensor)} is not a tensor to write")
        self._missing.remove(name)
        self._file.seek(self._start + self.offsets[name])
        self._file.write(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data)

    def close(self) -> None:
        """End the file.

        Raises:
            ValueError: a tensor was not written.
        """
        self._file.close()
        if self._missing:
            raise ValueError(f"{len(self._missing)} tensors were not written, {min(self._missing)} is one")
