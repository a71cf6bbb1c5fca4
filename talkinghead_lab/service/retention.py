"""The output folder: a folder for each run, which of them are this service's, and how long they stay.

A run's folder is this service's where `.runs/` holds a file of its name. Whoever works on it holds a lock
on that file; the system lets go of it when the process ends, however it ends.
"""

import fcntl
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

RUN_NAME = re.compile(r"\d{8}_\d{6}_[0-9a-f]{16}")
VIDEO_NAME = re.compile(r"infinitetalk_\d+x\d+_[\w-]+_\d{8}_\d{6}\.mp4")
OTHER_NAMES = re.compile(
    r"request\.yaml|run\.json|checks\.json|contact_sheet\.png|\d{5}\.(?:mp4|safetensors)"
    r"|\.[0-9a-f]{16}\.partial(?:\.\w+)?|\.lock"
)
FINISHED = "checks.json"  # written last


@dataclass(frozen=True)
class KeptRun:
    """A run's folder that nobody works on: its bytes, seconds since it ended, whether it is whole."""

    name: str
    size: int
    age: float
    finished: bool


@dataclass(frozen=True)
class OutputFolder:
    """The folder that videos go to."""

    path: Path

    def new_name(self) -> str:
        """A name for a run: when it was asked for, and what nobody guesses."""
        return f"{datetime.now():%Y%m%d_%H%M%S}_{secrets.token_hex(8)}"

    @contextmanager
    def claimed(self, name: str) -> Iterator[Path]:
        """Mark a run as this service's and as under way; yields its folder, which is not made yet."""
        self._claims.mkdir(parents=True, exist_ok=True)
        # Locked before it has its name, so that nobody ever meets it unlocked.
        with (self._claims / f".{name}").open("x") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            Path(file.name).rename(self._claims / name)
            yield self.path / name

    def video(self, name: str, file_name: str) -> Path | None:
        """A finished run's video, or None where there is no such."""
        if not (RUN_NAME.fullmatch(name) and VIDEO_NAME.fullmatch(file_name)):
            return None
        folder = self.path / name
        path = folder / file_name
        ours = (self._claims / name).is_file() and (folder / FINISHED).is_file()
        linked = folder.is_symlink() or path.is_symlink()
        return path if ours and not linked and path.is_file() else None

    def tidy(self, keep_seconds: float, keep_bytes: float) -> list[str]:
        """Remove runs that were cut off or are too old, then the oldest while all are too large together.

        The newest finished run stays whatever its size.

        Returns:
            The removed runs' names.
        """
        runs = [run for name in self._claimed_names() if (run := self._look(name))]
        finished = sorted((run for run in runs if run.finished), key=lambda run: run.age)
        removed = [run for run in runs if not run.finished]
        total = 0.0
        for place, run in enumerate(finished):
            total += run.size
            if run.age > keep_seconds or (place and total > keep_bytes):
                removed.append(run)
        for run in removed:
            self.remove(run.name)
        return [run.name for run in removed]

    def remove(self, name: str) -> None:
        """Remove a run's own files; its folder too, unless somebody put something else there."""
        with self._unclaimed(name) as free:
            if not free:
                return
            folder = self.path / name
            for place in () if folder.is_symlink() else (folder / "chunks", folder):
                if place.is_dir() and not place.is_symlink():
                    for file in place.iterdir():
                        if (VIDEO_NAME.fullmatch(file.name) or OTHER_NAMES.fullmatch(file.name)) and (
                            file.is_file() and not file.is_symlink()
                        ):
                            file.unlink(missing_ok=True)
                    with suppress(OSError):  # not empty
                        place.rmdir()
            (self._claims / name).unlink(missing_ok=True)

    @property
    def _claims(self) -> Path:
        return self.path / ".runs"

    def _claimed_names(self) -> list[str]:
        with suppress(FileNotFoundError):
            return [file.name for file in self._claims.iterdir() if RUN_NAME.fullmatch(file.name)]
        return []

    def _look(self, name: str) -> KeptRun | None:
        """A run that nobody works on, or None."""
        with self._unclaimed(name) as free:
            if not free:
                return None
            folder = self.path / name
            files = [] if folder.is_symlink() else [file for file in folder.rglob("*") if file.is_file()]
            size = sum(file.lstat().st_size for file in files)
            finished = folder / FINISHED in files
            ended = (folder / FINISHED if finished else self._claims / name).lstat().st_mtime
            return KeptRun(name, size, time.time() - ended, finished)

    @contextmanager
    def _unclaimed(self, name: str) -> Iterator[bool]:
        """Hold a run's lock, if nobody else does."""
        try:
            descriptor = os.open(self._claims / name, os.O_RDWR | os.O_NOFOLLOW)
        except OSError:
            yield False
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
        finally:
            os.close(descriptor)
