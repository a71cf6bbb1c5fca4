"""Caches encodings on disk, keyed by everything that determines them.

The cells of a sweep over guidance or steps share text, speech and picture. With an `EncoderCache` passed to
the pipeline, these are encoded once, also across processes and later runs.
"""

import hashlib
import os
import platform
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from talkinghead_lab.errors import OutputError
from talkinghead_lab.foundation import digests, paths
from talkinghead_lab.foundation.devices import GIB
from talkinghead_lab.foundation.digests import FileState
from talkinghead_lab.foundation.files import atomic_path
from talkinghead_lab.weights.locating import TRANSFORMER

# Part of every key: raise it when an encoder computes something else from the same inputs and weights.
ENCODERS_VERSION = 2
Tensors = tuple[Tensor, ...]


class EncodingStore(Protocol):
    """Returns the result of `compute`, from a store where possible.

    `inputs` are the key: tensors, and values whose `str` identifies them.
    """

    def __call__(self, kind: str, inputs: Iterable[object], compute: Callable[[], Tensors]) -> Tensors:
        """Return the tensors of one kind, such as `text`."""
        ...


def no_cache(kind: str, inputs: Iterable[object], compute: Callable[[], Tensors]) -> Tensors:
    """Store nothing."""
    return compute()


@dataclass
class EncoderCache:
    """A folder of encodings of limited size; the least recently used entries are evicted first.

    An entry's name is a digest of its inputs, of the state of the encoders' files, and of everything that
    affects rounding: device, number of threads, PyTorch version. So a hit is byte-identical to computing.
    An entry that is damaged, or was renamed, is removed and recomputed. A folder that cannot be written costs
    time, nothing else.

    Args:
        folder: where entries are stored; made when needed.
        encoders: tells the encoders' weights from others.
        device: where the encoders run.
        limit_bytes: size of all entries together.
    """

    folder: Path
    encoders: str
    device: torch.device
    limit_bytes: int = 10 * GIB
    hits: int = field(default=0, init=False)
    misses: int = field(default=0, init=False)

    @classmethod
    def of(
        cls,
        weights: Mapping[str, FileState],
        device: torch.device,
        folder: Path | None = None,
    ) -> Self:
        """Make a cache for the encoders of a checkpoint; the transformer and its LoRAs do not matter.

        Args:
            weights: states of the checkpoint's files when they were loaded, by place.
            device: where the encoders run.
            folder: where entries are stored; None: `encodings` in the user's cache folder.
        """
        # Not their digests: hashing them takes longer than encoding, and would come before it.
        encoders = {name: list(state) for name, state in weights.items() if _is_encoder(name)}
        folder = folder or paths.user_cache_folder() / "encodings"
        return cls(folder, digests.combined([encoders]), device)

    def __call__(self, kind: str, inputs: Iterable[object], compute: Callable[[], Tensors]) -> Tensors:
        """Return the result of `compute` for these inputs; a cache hit is on the CPU."""
        key = self._key(kind, inputs)
        entry = self.folder / f"{kind}-{key}.safetensors"
        known = _read(entry, key)
        if known is not None:
            self.hits += 1
            with suppress(OSError):
                os.utime(entry)  # eviction goes by the time of last use
            return known
        self.misses += 1
        tensors = compute()
        self._store(entry, key, tensors)
        return tensors

    def _key(self, kind: str, inputs: Iterable[object]) -> str:
        gpu = self.device.type == "cuda"
        rounding = [torch.cuda.get_device_name(self.device) if gpu else platform.node()]
        rounding += [torch.__version__, "" if gpu else str(torch.get_num_threads())]
        digest = hashlib.sha256()
        for part in (ENCODERS_VERSION, kind, self.encoders, *rounding, *inputs):
            content = _bytes(part) if isinstance(part, Tensor) else memoryview(str(part).encode())
            shape = (part.dtype, tuple(part.shape)) if isinstance(part, Tensor) else ()
            digest.update(f"{type(part).__name__}{shape}{len(content)}:".encode())
            digest.update(content)
        return digest.hexdigest()

    def _store(self, entry: Path, key: str, tensors: Tensors) -> None:
        named = {str(place): tensor.cpu().contiguous() for place, tensor in enumerate(tensors)}
        if sum(tensor.nbytes for tensor in named.values()) > self.limit_bytes:
            return
        with suppress(OSError, OutputError, SafetensorError):
            self.folder.mkdir(parents=True, exist_ok=True)
            with atomic_path(entry, overwrite=True) as temporary:
                save_file(named, temporary, {"sha256": _digest(key, tuple(named.values()))})
            self._evict()

    def _evict(self) -> None:
        states = []
        for entry in self.folder.glob("*.safetensors"):
            with suppress(FileNotFoundError):  # evicted by another process
                states.append((entry.stat().st_mtime_ns, entry.stat().st_size, entry))
        total = sum(size for _, size, _ in states)
        for _, size, entry in sorted(states):
            if total <= self.limit_bytes:
                return
            entry.unlink(missing_ok=True)
            total -= size


def _is_encoder(name: str) -> bool:
    """Whether a weight file belongs to an encoder; a quantised transformer brings a text encoder, t5_*."""
    place, _, file = name.partition("/")
    if place == "infinitetalk":
        return file.startswith("t5_")
    # Elsewhere than in the Wan2.1 folder, the place tells: diffusers gives all networks one file name.
    is_transformer = place == "wan" and file.startswith(TRANSFORMER)
    return place not in ("transformer", "adapter") and not is_transformer and not file.startswith("config.")


def _read(entry: Path, key: str) -> Tensors | None:
    """Read an entry; remove it if it is damaged, or was stored under another key and renamed."""
    try:
        with safe_open(entry, "pt") as file:
            tensors = tuple(file.get_tensor(str(place)) for place in range(len(file.keys())))
            if (file.metadata() or {}).get("sha256") == _digest(key, tensors):
                return tensors
    except FileNotFoundError:
        return None
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError):
        pass
    with suppress(OSError):
        entry.unlink(missing_ok=True)
    return None


def _digest(key: str, tensors: Tensors) -> str:
    digest = hashlib.sha256(key.encode())
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor; not a copy, if it is contiguous and in host memory."""
    flat: Any = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return memoryview(flat)
