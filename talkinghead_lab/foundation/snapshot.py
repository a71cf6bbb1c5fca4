"""Private copies of files, so that whatever happens to the originals, a run sees one content throughout."""

import errno
import fcntl
import os
import shutil
import stat
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from talkinghead_lab.errors import MediaError, MediaTooLarge, NoSpaceLeft, OutputError, TalkingHeadError
from talkinghead_lab.foundation.digests import sha256_of_file
from talkinghead_lab.foundation.files import NO_SPACE

MAX_BYTES = 64 * 2**30  # ten times a feature film
FICLONE = 0x40049409  # linux/fs.h; `fcntl` has it from Python 3.13 on
PREFIX = "talkinghead-input-"  # of temporary folders, which are locked as long as their copy is used
READ_ONLY = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # opening a pipe without a writer would wait for ever
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Snapshot:
    """A copy of a file, removed when nothing refers to it any more. Where possible, it shares blocks.

    Args:
        path: the copy; it keeps the suffix, by which FFmpeg tells some formats.
        original: what the user calls the file.
        lock: open descriptor of its folder, closed with the copy's removal.
        sha256: digest of the copy.
    """

    def __init__(self, path: Path, original: str, lock: int | None = None) -> None:
        self.path, self.original, self.sha256 = path, original, sha256_of_file(path)
        self._finalizer = weakref.finalize(self, _remove, path, lock)

    @classmethod
    def take(cls, descriptor: int, original: str, path: Path | None = None) -> Self:
        """Copy an open file.

        Args:
            descriptor: the file, open for reading.
            original: what the user calls it.
            path: where the copy goes; its folder is removed with the last copy. None: a temporary folder;
                those that killed processes left are removed.

        Raises:
            MediaError: not a regular file, larger than 64 GiB, or it changed while it was copied.
            OutputError: the copy cannot be written.
        """
        before = os.fstat(descriptor)
        if not stat.S_ISREG(before.st_mode):
            raise MediaError("not a file that can be read", received=original, remedy="Check its type.")
        if before.st_size > MAX_BYTES:
            raise MediaTooLarge(
                "the file is too large", received=original, allowed=f"up to {MAX_BYTES // 2**30} GiB"
            )
        lock = None
        try:
            if path is None:
                folder, lock = _temporary_folder()
                path = folder / f"copy{Path(original).suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            _copy(descriptor, path, before.st_size)
        except OSError as error:
            if path is not None:
                _remove(path, lock)
            raise _cannot_copy(original, path, error) from error
        after = os.fstat(descriptor)
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            _remove(path, lock)
            raise MediaError(
                "the file changed while it was copied",
                received=original,
                remedy="Try again when it is complete.",
            )
        return cls(path, original, lock)

    @contextmanager
    def named_as_original(self) -> Iterator[None]:
        """Within the block, errors name the original instead of the copy."""
        try:
            yield
        except TalkingHeadError as error:
            raise error.renamed(str(self.path), self.original) from error.__cause__


def open_beneath(folder: Path, relative: Path) -> int:
    """Open a file below a folder for reading, without following any link below the folder.

    Raises:
        OSError: no such file, a link, or not readable.
    """
    place = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        *folders, name = relative.parts
        for part in folders:
            inner = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place)
            os.close(place)
            place = inner
        return os.open(name, READ_ONLY | os.O_NOFOLLOW, dir_fd=place)
    finally:
        os.close(place)


def _copy(source: int, path: Path, size: int) -> None:
    """Copy the first `size` bytes; of a file that has become shorter, what there is."""
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with suppress(OSError):  # another file system, or one without shared blocks
            fcntl.ioctl(target, FICLONE, source)
            return
        if size > shutil.disk_usage(path.parent).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done = 0
        while done < size:
            copied = os.sendfile(target, source, done, size - done)
            if not copied:
                return
            done += copied
    finally:
        os.close(target)


def _remove(path: Path, lock: int | None) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)
        path.parent.rmdir()  # fails while there are other copies
    if lock is not None:
        os.close(lock)


def _temporary_folder() -> tuple[Path, int]:
    """Create a temporary folder: its path, and its descriptor, which holds the lock."""
    _remove_abandoned(Path(tempfile.gettempdir()))
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        with suppress(FileNotFoundError):
            lock = os.open(folder, FOLDER)
            with suppress(OSError):  # a file system without locks; then nothing is ever abandoned
                fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.exists():  # no other process took it for abandoned before it was locked
                return folder, lock
            os.close(lock)


def _remove_abandoned(place: Path) -> None:
    """Remove temporary folders of this user that no process locks: theirs was killed."""
    for folder in place.glob(f"{PREFIX}*"):
        with suppress(OSError):  # locked, removed meanwhile, a link, or not made here
            descriptor = os.open(folder, FOLDER | os.O_NOFOLLOW)
            try:
                if os.fstat(descriptor).st_uid == os.geteuid():
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    for copy in folder.iterdir():
                        copy.unlink()
                    folder.rmdir()
            finally:
                os.close(descriptor)


def _cannot_copy(original: str, path: Path | None, error: OSError) -> OutputError:
    folder = path.parent.parent if path else tempfile.gettempdir()
    if error.errno in NO_SPACE:
        remedy = f"Free space under {folder}; TMPDIR names another folder for copies."
        return NoSpaceLeft("no space left to copy an input", received=original, remedy=remedy)
    return OutputError(
        f"an input cannot be copied ({error.strerror})", received=original, remedy=f"Check {folder}."
    )
