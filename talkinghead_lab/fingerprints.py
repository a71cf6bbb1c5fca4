"""Digests of large files that change seldom: computed once, then known by path, size, times and inode."""

import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from talkinghead_lab import checkpoints
from talkinghead_lab.errors import OutputError
from talkinghead_lab.files import atomic_path
from talkinghead_lab.params import GenerationParams, local_file


def user_cache_folder() -> Path:
    """Where the package keeps what it can compute again: TALKINGHEAD_CACHE, else below XDG_CACHE_HOME."""
    if own := os.environ.get("TALKINGHEAD_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "talkinghead_lab"


def sha256_of_file(path: Path) -> str:
    """Digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def known_sha256(path: Path, folder: Path | None = None) -> str:
    """Digest of a file's bytes, read from the cache where path, size, times and inode are those of before.

    Args:
        path: the file.
        folder: where digests are kept; unset: `digests` in `user_cache_folder()`. One that cannot be written
            costs time, never the answer.
    """
    path, folder = path.resolve(), folder or user_cache_folder() / "digests"
    state = path.stat()
    # The time of the last change of state catches a file whose time of modification was set back.
    facts = [str(path), state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino, state.st_dev]
    entry = folder / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(entry.read_text(encoding="utf-8"))
        if known["facts"] == facts:
            return known["sha256"]
    digest = sha256_of_file(path)
    with suppress(OSError, OutputError):
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(entry, overwrite=True) as temporary:
            temporary.write_text(json.dumps({"facts": facts, "sha256": digest}), encoding="utf-8")
    return digest


def of_weights(params: GenerationParams) -> dict[str, str]:
    """Digest of every file that loading a request's checkpoint reads, by its place in the checkpoint.

    Raises:
        CheckpointError: the checkpoint is not there or not whole.
    """
    files = checkpoints.weight_files(checkpoints.locate(params))
    return {name: known_sha256(path) for name, path in files.items()}


def of_loras(params: GenerationParams) -> list[dict[str, object]]:
    """Path, scale and digest of each LoRA, in the order in which they are merged."""
    return [
        {"path": lora.path, "scale": lora.scale, "sha256": known_sha256(local_file(lora.path))}
        for lora in params.loras
    ]


def of_media(params: GenerationParams) -> dict[str, str]:
    """Digest of the picture and of each recording, by the request's name for it."""
    names = ("image_path", "audio_path", "second_audio_path")
    named = {name: getattr(params, name) for name in names}
    return {name: known_sha256(local_file(value)) for name, value in named.items() if value is not None}


def combined(parts: Iterable[object]) -> str:
    """One digest of values that JSON can hold."""
    return hashlib.sha256(json.dumps(list(parts), sort_keys=True).encode()).hexdigest()
