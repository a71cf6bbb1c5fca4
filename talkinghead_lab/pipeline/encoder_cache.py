"""Keeps what the encoders give, on disk, by the content of all that decides it.

A sweep over guidance or steps asks for the same text, speech and picture in every cell; with an
`EncoderCache` passed to the pipeline they are encoded once, also by several processes and by later runs.
"""

import hashlib
import os
import platform
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from talkinghead_lab.errors import OutputError
from talkinghead_lab.foundation import digests, paths
from talkinghead_lab.foundation.files import atomic_path
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.weights.checkpoints import TRANSFORMER
from talkinghead_lab.weights.digests import weight_digests

GIB = 2**30
Tensors = tuple[Tensor, ...]


class EncodingStore(Protocol):
    """Gives what `compute` would: from a store where it is known, else by computing it.

    `inputs` are tensors, and things whose `str` tells all.
    """

    def __call__(self, kind: str, inputs: Iterable[object], compute: Callable[[], Tensors]) -> Tensors: ...


def no_cache(kind: str, inputs: Iterable[object], compute: Callable[[], Tensors]) -> Tensors:
    """Keep nothing."""
    return compute()


@dataclass
class EncoderCache:
    """A folder of encodings, at most `limit_bytes` large; what was not used for longest goes first.

    An entry's name is the digest of its inputs, of the encoders' weights, and of what can change how numbers
    round: device, number of threads, version of PyTorch. So a hit has the bytes that computing would give.
    An entry that is damaged is removed and computed again. A folder that cannot be written costs time only.

    Args:
        folder: where entries are kept; made when needed.
        encoders: digest of the encoders' weights.
        device: what they run on.
        limit_bytes: of all entries together.
    """

    folder: Path
    encoders: str
    device: torch.device
    limit_bytes: int = 10 * GIB
    hits: int = field(default=0, init=False)
    misses: int = field(default=0, init=False)

    @classmethod
    def of(cls, params: GenerationParams, device: torch.device, folder: Path | None = None) -> "EncoderCache":
        """A cache for the encoders of a request; the transformer and its LoRAs do not matter.

        Args:
            params: names the checkpoint.
            device: what the encoders run on.
            folder: unset: `encodings` in the user's cache folder.
        """
        weights = weight_digests(params)
        encoders = {name: digest for name, digest in weights.items() if _is_encoder(name)}
        folder = folder or paths.user_cache_folder() / "encodings"
        return cls(folder, digests.combined([encoders]), device)

    def __call__(self, kind: str, inputs: Iterable[object], compute: Callable[[], Tensors]) -> Tensors:
        """What `compute` gives for these inputs, on the CPU where it was known."""
        entry = self.folder / f"{kind}-{self._key(kind, inputs)}.safetensors"
        known = _read(entry)
        if known is not None:
            self.hits += 1
            with suppress(OSError):
                os.utime(entry)  # the time of last use decides what goes first
            return known
        self.misses += 1
        tensors = compute()
        self._store(entry, tensors)
        return tensors

    def _key(self, kind: str, inputs: Iterable[object]) -> str:
        gpu = self.device.type == "cuda"
        rounding = [torch.cuda.get_device_name(self.device) if gpu else platform.node()]
        rounding += [torch.__version__, "" if gpu else str(torch.get_num_threads())]
        digest = hashlib.sha256()
        for part in (kind, self.encoders, *rounding, *inputs):
            content = _bytes(part) if isinstance(part, Tensor) else str(part).encode()
            shape = (part.dtype, tuple(part.shape)) if isinstance(part, Tensor) else ()
            digest.update(f"{type(part).__name__}{shape}{len(content)}:".encode() + content)
        return digest.hexdigest()

    def _store(self, entry: Path, tensors: Tensors) -> None:
        named = {str(place): tensor.cpu().contiguous() for place, tensor in enumerate(tensors)}
        content = save(named, {"sha256": _digest(tuple(named.values()))})
        if len(content) > self.limit_bytes:
            return
        with suppress(OSError, OutputError):
            self.folder.mkdir(parents=True, exist_ok=True)
            with atomic_path(entry, overwrite=True) as temporary:
                temporary.write_bytes(content)
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        states = []
        for entry in self.folder.glob("*.safetensors"):
            with suppress(FileNotFoundError):  # another process dropped it
                states.append((entry.stat().st_mtime_ns, entry.stat().st_size, entry))
        total = sum(size for _, size, _ in states)
        for _, size, entry in sorted(states):
            if total <= self.limit_bytes:
                return
            entry.unlink(missing_ok=True)
            total -= size


def _is_encoder(name: str) -> bool:
    """Whether a weight file is an encoder's; beside a quantised transformer lies a text encoder, t5_…"""
    place, _, file = name.partition("/")
    return (
        file.startswith("t5_") if place == "infinitetalk" else not file.startswith((TRANSFORMER, "config."))
    )


def _read(entry: Path) -> Tensors | None:
    """An entry's tensors; a damaged one is removed."""
    try:
        with safe_open(entry, "pt") as file:
            tensors = tuple(file.get_tensor(str(place)) for place in range(len(file.keys())))
            if (file.metadata() or {}).get("sha256") == _digest(tensors):
                return tensors
    except FileNotFoundError:
        return None
    except (SafetensorError, OSError):
        pass
    with suppress(OSError):
        entry.unlink(missing_ok=True)
    return None


def _digest(tensors: Tensors) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode() + _bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
