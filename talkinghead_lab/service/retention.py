"""The output folder: one folder per run, ownership of runs, and removal of old ones.

The service owns a run's folder if `.runs/` has a file of the same name. The process that writes the run
holds a lock on that file; the operating system releases it when the process ends for any reason.
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

from talkinghead_lab.runs.jobs import INPUTS

RUN_NAME = re.compile(r"\d{8}_\d{6}_[0-9a-f]{16}")
VIDEO_NAME = re.compile(r"infinitetalk_\d+x\d+_[\w-]+_\d{8}_\d{6}\.mp4")
OTHER_NAMES = re.compile(
    r"request\.yaml|run\.json|checks\.json|contact_sheet\.png|\d{5}\.(?:mp4|safetensors)"
    r"|\.[0-9a-f]{16}\.partial(?:\.\w+)?|\.lock|(?:image|audio)_path(?:\.\w{1,10})?"
)
FINISHED = "checks.json"  # written last


@dataclass(frozen=True)
class KeptRun:
    """A run that no process is writing: size in bytes, seconds since its end, and whether it is complete."""

    name: str
    size: int
    age: float
    finished: bool


@dataclass(frozen=True)
class OutputFolder:
    """The folder in which every run has its own folder."""

    path: Path

    def new_name(self) -> str:
        """Create a name for a run: the current time and 64 random bits, so that URLs cannot be guessed."""
        return f"{datetime.now():%Y%m%d_%H%M%S}_{secrets.token_hex(8)}"

    @contextmanager
    def claimed(self, name: str) -> Iterator[Path]:
        """Own and lock a run; yields the path of its folder, which does not exist yet."""
        self._claims.mkdir(parents=True, exist_ok=True)
        # Lock the file before it gets its name, so that no other process ever sees it unlocked.
        with (self._claims / f".{name}").open("x") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            Path(file.name).rename(self._claims / name)
            yield self.path / name

    def video(self, name: str, file_name: str) -> Path | None:
        """The video of a finished run; None if there is none of that name."""
        if not (RUN_NAME.fullmatch(name) and VIDEO_NAME.fullmatch(file_name)):
            return None
        folder = self.path / name
        path = folder / file_name
        ours = (self._claims / name).is_file() and (folder / FINISHED).is_file()
        linked = folder.is_symlink() or path.is_symlink()
        return path if ours and not linked and path.is_file() else None

    def tidy(self, keep_seconds: float, keep_bytes: float) -> list[str]:
        """Remove interrupted runs, runs that are too old, and the oldest ones beyond `keep_bytes`.

        The newest finished run is kept regardless of its size.

        Returns:
            The names of the removed runs.
        """
        runs = [run for name in self._owned_names() if (run := self._inspect(name))]
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
        """Remove the files of a run, and its folder unless it contains other files."""
        with self._try_lock(name) as free:
            if not free:
                return
            folder = self.path / name
            for place in () if folder.is_symlink() else (folder / "chunks", folder / INPUTS, folder):
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

    def _owned_names(self) -> list[str]:
        with suppress(FileNotFoundError):
            return [file.name for file in self._claims.iterdir() if RUN_NAME.fullmatch(file.name)]
        return []

    def _inspect(self, name: str) -> KeptRun | None:
        """Inspect a run; None if a process is writing it."""
        with self._try_lock(name) as free:
            if not free:
                return None
            folder = self.path / name
            files = [] if folder.is_symlink() else [file for file in folder.rglob("*") if file.is_file()]
            size = sum(file.lstat().st_size for file in files)
            finished = folder / FINISHED in files
            ended = (folder / FINISHED if finished else self._claims / name).lstat().st_mtime
            return KeptRun(name, size, time.time() - ended, finished)

    @contextmanager
    def _try_lock(self, name: str) -> Iterator[bool]:
        """Try to hold the lock of a run; yields whether it was free."""
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
