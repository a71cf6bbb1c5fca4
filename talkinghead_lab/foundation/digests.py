"""Digests of large files that rarely change, cached by path, size, times and inode."""

import hashlib
import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Self

from talkinghead_lab.errors import CheckpointError, OutputError
from talkinghead_lab.foundation.files import atomic_path
from talkinghead_lab.foundation.paths import user_cache_folder


class FileState(NamedTuple):
    """A file at one moment. A file that was changed or replaced since then has another state.

    Args:
        path: absolute, links resolved.
        size: in bytes.
        modified: mtime in ns.
        changed: ctime in ns; it shows a change whose mtime was set back.
        inode: of the file.
        device: of the file system.
    """

    path: str
    size: int
    modified: int
    changed: int
    inode: int
    device: int

    @classmethod
    def of(cls, path: Path) -> Self:
        """The present state of a file.

        Raises:
            OSError: there is none.
        """
        path = path.resolve()
        now = path.stat()
        return cls(str(path), now.st_size, now.st_mtime_ns, now.st_ctime_ns, now.st_ino, now.st_dev)

    @property
    def is_overwritten(self) -> bool:
        """Whether the bytes of this very file have changed, and with them what was mapped into memory."""
        try:
            now = FileState.of(Path(self.path))
        except OSError:
            return False
        same_file = (self.inode, self.device) == (now.inode, now.device)
        return same_file and (self.size, self.modified) != (now.size, now.modified)


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def known_sha256(file: Path | FileState, folder: Path | None = None) -> str:
    """SHA-256 of a file's bytes, from the cache if its state is known there.

    Args:
        file: the file as it is now, or as it was before.
        folder: the cache; unset: `digests` in `user_cache_folder()`. If it is not writable, every call reads
            the file.

    Raises:
        CheckpointError: the file has changed meanwhile, and the digest of its state is not known.
    """
    state = FileState.of(file) if isinstance(file, Path) else file
    cached = cached_sha256(state, folder)
    if cached is not None:
        return cached
    digest = sha256_of_file(Path(state.path))
    if FileState.of(Path(state.path)) != state:
        raise CheckpointError(
            "the file was changed while it was in use",
            received=state.path,
            remedy="Try again when it is complete.",
        )
    _write(_entry(state, folder), state, digest)
    return digest


def cached_sha256(state: FileState, folder: Path | None = None) -> str | None:
    """SHA-256 of a file in this state if the cache of `known_sha256` has it; reads no file but the entry."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(_entry(state, folder).read_text(encoding="utf-8"))
        if known["facts"] == list(state):
            return str(known["sha256"])
    return None


def remember_sha256(path: Path, digest: str, folder: Path | None = None) -> None:
    """Put the digest of a file, known by other means, into the cache of `known_sha256`."""
    state = FileState.of(path)
    _write(_entry(state, folder), state, digest)


def _entry(state: FileState, folder: Path | None) -> Path:
    folder = folder or user_cache_folder() / "digests"
    return folder / f"{hashlib.sha256(json.dumps(list(state)).encode()).hexdigest()}.json"


def _write(entry: Path, state: FileState, digest: str) -> None:
    with suppress(OSError, OutputError):
        entry.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(entry, overwrite=True) as temporary:
            temporary.write_text(json.dumps({"facts": list(state), "sha256": digest}), encoding="utf-8")


def combined(parts: Iterable[object]) -> str:
    """One SHA-256 of values that JSON can represent."""
    return hashlib.sha256(json.dumps(list(parts), sort_keys=True).encode()).hexdigest()
