"""Digests of large files that rarely change, cached by path, size, times and inode."""

import hashlib
import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from talkinghead_lab.errors import OutputError
from talkinghead_lab.foundation.files import atomic_path
from talkinghead_lab.foundation.paths import user_cache_folder


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def known_sha256(path: Path, folder: Path | None = None) -> str:
    """SHA-256 of a file's bytes, from the cache if path, size, times and inode are unchanged.

    Args:
        path: the file.
        folder: the cache; unset: `digests` in `user_cache_folder()`. If it is not writable, every call reads
            the file.
    """
    path, folder = path.resolve(), folder or user_cache_folder() / "digests"
    state = path.stat()
    # ctime detects a changed file whose mtime was set back.
    facts = [str(path), state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino, state.st_dev]
    entry = folder / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(entry.read_text(encoding="utf-8"))
        if known["facts"] == facts:
            return str(known["sha256"])
    digest = sha256_of_file(path)
    with suppress(OSError, OutputError):
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(entry, overwrite=True) as temporary:
            temporary.write_text(json.dumps({"facts": facts, "sha256": digest}), encoding="utf-8")
    return digest


def combined(parts: Iterable[object]) -> str:
    """One SHA-256 of values that JSON can represent."""
    return hashlib.sha256(json.dumps(list(parts), sort_keys=True).encode()).hexdigest()
