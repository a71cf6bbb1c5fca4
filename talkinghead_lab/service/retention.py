"""The output folder: one folder per run, ownership of runs, and removal of old ones.

The service owns a run's folder if `.runs/` has a file of the same name. The process that writes the run
holds a lock on that file; the operating system releases it when the process ends for any reason.
"""

import fcntl
import logging
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from itertools import chain
from pathlib import Path

from talkinghead_lab.runs.jobs import GROWING, INPUTS
from talkinghead_lab.service.file_clock import FileClock
from talkinghead_lab.service.inputs import COPY_NAME

RUN_NAME = re.compile(r"\d{8}_\d{6}_[0-9a-f]{16}")
VIDEO_NAME = re.compile(r"infinitetalk_\d+x\d+_[\w-]+_\d{8}_\d{6}\.mp4")
OTHER_NAMES = re.compile(
    r"request\.yaml|run\.json|checks\.json|contact_sheet\.png|growing\.mp4|\d{5}\.(?:mp4|safetensors)"
    r"|\.[0-9a-f]{16}\.partial(?:\.\w+)?|\.lock"
)
FINISHED = "checks.json"  # written last
UNNAMED_SECONDS = 60.0  # age at which a claim without its name is abandoned
LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class KeptRun:
    """A run that no process is writing: size in bytes, time of its end, and whether it is complete."""

    name: str
    size: int
    ended: float
    finished: bool


@dataclass(frozen=True)
class OutputFolder:
    """The folder in which every run has its own folder."""

    path: Path
    _sizes: dict[str, int] = field(default_factory=dict, compare=False, repr=False)  # of finished runs
    _immovable: set[str] = field(default_factory=set, compare=False, repr=False)  # runs already reported

    @cached_property
    def _clock(self) -> FileClock:
        return FileClock(self._claims)

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

    def growing_video(self, name: str) -> Path:
        """Where the video of a run under way grows."""
        return self.path / name / GROWING

    def uploads(self, name: str) -> Path:
        """The folder of what a client uploaded for a run; it is kept as long as the run."""
        return self.path / ".uploads" / name

    def remove_uploads(self, name: str) -> None:
        """Remove what was uploaded for a run."""
        shutil.rmtree(self.uploads(name), ignore_errors=True)

    def forget_uploads(self) -> None:
        """Remove uploads that belong to no run. Not while jobs wait: theirs have no run yet."""
        with suppress(FileNotFoundError):
            for folder in (self.path / ".uploads").iterdir():
                if not (self._claims / folder.name).exists():
                    self.remove_uploads(folder.name)

    def videos(self) -> list[Path]:
        """The videos of finished runs, newest first."""
        dated = []
        for video in filter(None, map(self.video_of, self._owned_names())):
            with suppress(FileNotFoundError):  # removed meanwhile
                dated.append(
                    ((video.parent / FINISHED).stat().st_mtime_ns, video)
                )  # names of one second are in no order
        return [video for _, video in sorted(dated, reverse=True)]

    def video_of(self, name: str) -> Path | None:
        """The video of a finished run; None if there is none."""
        videos = (file.name for file in (self.path / name).glob("infinitetalk_*.mp4"))
        return next((path for path in (self.video(name, video) for video in videos) if path), None)

    def tidy(self, keep_seconds: float, keep_bytes: float) -> list[str]:
        """Remove interrupted runs, runs that are too old, and the oldest ones beyond `keep_bytes`.

        The newest finished run is kept regardless of its size. What cannot be removed is tried again.

        Returns:
            The names of the removed runs.
        """
        if not self._claims.is_dir():
            return []
        known = set(self._sizes)  # these had ended when the clock was read last
        now, jump = self._clock.read()
        self._remove_abandoned_claims(now)
        runs = [run for name in self._owned_names() if (run := self._inspect(name))]
        if jump:
            LOG.warning("the clock has jumped: runs keep their age", extra={"seconds": round(jump)})
            runs = [self._shifted(run, now, jump, run.name in known) for run in runs]
        finished = sorted((run for run in runs if run.finished), key=lambda run: run.ended, reverse=True)
        surplus = [run for run in runs if not run.finished]
        total = 0.0
        for place, run in enumerate(finished):
            total += run.size
            if now - run.ended > keep_seconds or (place and total > keep_bytes):
                surplus.append(run)
        return [run.name for run in surplus if self._remove_with_uploads(run.name)]

    def _remove_with_uploads(self, name: str) -> bool:
        removed = self.remove(name)
        if removed:
            self.remove_uploads(name)
        return removed

    def remove(self, name: str) -> bool:
        """Remove the files of a run, and its folder unless it contains other files.

        Returns:
            Whether all of it is removed; not if a process is writing it.
        """
        with self._try_lock(name) as free:
            if not free:
                return False
            try:
                self._remove_files(self.path / name)
                (self._claims / name).unlink(missing_ok=True)
            except OSError as error:
                if name not in self._immovable:
                    LOG.warning("a run cannot be removed", extra={"run": name, "reason": str(error)})
                self._immovable.add(name)
                return False
            self._sizes.pop(name, None)
            return True

    @staticmethod
    def _remove_files(folder: Path) -> None:
        """Remove all files of a run that can be removed.

        Raises:
            OSError: of one that cannot.
        """
        failures = []
        for place in () if folder.is_symlink() else (folder / "chunks", folder / INPUTS, folder):
            if not place.is_dir() or place.is_symlink():
                continue
            for file in place.iterdir():
                known = (COPY_NAME,) if place.name == INPUTS else (VIDEO_NAME, OTHER_NAMES)
                ours = any(names.fullmatch(file.name) for names in known)
                if ours and file.is_file() and not file.is_symlink():
                    try:
                        file.unlink(missing_ok=True)
                    except OSError as error:
                        failures.append(error)
            with suppress(OSError):  # not empty
                place.rmdir()
        if failures:
            raise failures[0]

    @property
    def _claims(self) -> Path:
        return self.path / ".runs"

    def _owned_names(self) -> list[str]:
        with suppress(FileNotFoundError):
            return [file.name for file in self._claims.iterdir() if RUN_NAME.fullmatch(file.name)]
        return []

    def _remove_abandoned_claims(self, now: float) -> None:
        """Remove claims whose process ended before it gave them their name."""
        for path in self._claims.glob(".*_*"):
            with suppress(OSError), path.open() as file:
                # A young one may belong to a process that is about to lock it.
                if abs(now - path.lstat().st_mtime) > UNNAMED_SECONDS and RUN_NAME.fullmatch(path.name[1:]):
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()

    def _inspect(self, name: str) -> KeptRun | None:
        """Inspect a run; None if a process is writing it, or its files cannot be listed."""
        with suppress(OSError), self._try_lock(name) as free:
            if not free:
                return None
            folder, claim = self.path / name, self._claims / name
            marker = folder / FINISHED
            if folder.is_symlink() or not marker.is_file():
                return KeptRun(name, 0, claim.lstat().st_mtime, finished=False)
            if name not in self._sizes:
                files = chain(folder.rglob("*"), self.uploads(name).rglob("*"))
                self._sizes[name] = sum(file.lstat().st_size for file in files if file.is_file())
            return KeptRun(name, self._sizes[name], marker.lstat().st_mtime, finished=True)
        return None

    def _shifted(self, run: KeptRun, now: float, jump: float, known: bool) -> KeptRun:
        """Give a run that ended before a jump of the clock, or is known to have done so, the age it had.

        A clock set back leaves other runs in doubt: those that do not end in the future are taken for new.
        """
        before = now - jump
        from_before = known or (run.ended <= before if jump > 0 else run.ended > now)
        if not (run.finished and from_before):
            return run
        ended = min(run.ended + jump, now)
        os.utime(self.path / run.name / FINISHED, (ended, ended), follow_symlinks=False)
        return replace(run, ended=ended)

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
