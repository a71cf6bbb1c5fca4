"""Atomic files, and folders with a single writer."""

import errno
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from talkinghead_lab.errors import FolderLocked, NoSpaceLeft, OutputError

# EFBIG comes from a limit on file sizes, EDQUOT from a quota; the remedy is the same.
NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}  # some network file systems
LOCK = ".lock"


def is_no_space(error: BaseException) -> bool:
    """Whether an error, or one that it was raised from, says that no space is left."""
    cause: BaseException | None = error
    while cause is not None:
        if getattr(cause, "errno", None) in NO_SPACE:
            return True
        cause = cause.__cause__ or cause.__context__
    return False


@contextmanager
def output_errors(problem: str, path: Path) -> Iterator[None]:
    """Turn errors of the file system in the block into `OutputError`, or `NoSpaceLeft`.

    Args:
        problem: what cannot be done, as a phrase.
        path: what it is about.
    """
    try:
        yield
    except OSError as error:
        kind = NoSpaceLeft if error.errno in NO_SPACE else OutputError
        raise kind(f"{problem} ({error.strerror})", received=str(path)) from error


@contextmanager
def atomic_path(final: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary path in the folder of `final`; it is renamed to `final` if the block succeeds.

    The temporary file already exists, is hidden and has the suffix of `final`. Any exception removes it,
    Ctrl-C included.

    Raises:
        NoSpaceLeft: while creating or writing the file.
        OutputError: `final` exists and `overwrite` is off, or its folder is not writable.
    """
    final = Path(final)
    temporary = final.with_name(f".{secrets.token_hex(8)}.partial{final.suffix}")
    try:
        try:
            if _exists(final) and not overwrite:
                raise _already_there(final)
            temporary.open("xb").close()
        except OSError as error:
            raise _cannot_write(final, error) from error
        yield temporary
        _publish(temporary, final, overwrite)
    except OSError as error:
        # Other errors may come from what the block read, so they keep their type.
        if error.errno in NO_SPACE:
            raise _cannot_write(final, error) from error
        raise
    finally:
        with suppress(OSError):
            temporary.unlink()


def remove_file(path: Path) -> None:
    """Remove a file, if it is there.

    Raises:
        OutputError: it cannot be removed, for example because it is a folder.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"the file cannot be removed ({error.strerror})",
            received=str(path),
            remedy="Move it away, and check the permissions of its folder.",
        ) from None


def _publish(temporary: Path, final: Path, overwrite: bool) -> None:
    """Give a complete file its final name; a link, unlike a rename, never replaces an existing file."""
    try:
        _sync(temporary)
        if overwrite:
            temporary.replace(final)
        else:
            _link(temporary, final)
        _sync(final.parent)
    except FileExistsError:
        raise _already_there(final) from None
    except OSError as error:
        raise _cannot_write(final, error) from error


def _link(temporary: Path, final: Path) -> None:
    try:
        os.link(temporary, final)
    except OSError:
        if _exists(final):
            raise FileExistsError from None
        temporary.rename(final)  # a file system without hard links


def _exists(path: Path) -> bool:
    """Whether a name is taken, also by a dangling link; raises OSError for an impossible name."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _already_there(final: Path) -> OutputError:
    return OutputError(
        "the output already exists and is not overwritten",
        received=str(final),
        remedy="Choose another name, or move the file away.",
    )


def _cannot_write(final: Path, error: OSError) -> OutputError:
    if error.errno in NO_SPACE:
        return NoSpaceLeft(
            f"no space left while writing ({error.strerror})",
            received=str(final),
            remedy=f"Free space under {final.parent}, or write to another disk. "
            "No half-written file was left behind.",
        )
    return OutputError(
        f"the file cannot be written ({error.strerror})",
        received=str(final),
        remedy=f"Check the name; the folder {final.parent} must exist and be writable.",
    )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder against every other call, in this process or another, while the block runs.

    Does not wait. The operating system releases the lock when the process ends, even if it is killed, so
    a lock file that is left behind blocks nobody. A file system without locks gives no protection.

    Raises:
        FolderLocked: another call holds the lock; the error names its process.
        OutputError: the folder is not writable.
    """
    path = folder / LOCK
    # Not thread-local, so that a generator may be closed in another thread. A soft lock would survive a kill.
    lock = FileLock(path, blocking=False, thread_local=False, fallback_to_soft=False)
    try:
        folder.stat()  # FileLock would create a missing folder
        lock.acquire()
    except Timeout:
        raise FolderLocked(
            f"the folder is being written by {_holder(path)}",
            received=str(folder),
            remedy="Wait for it, stop it, or choose another folder.",
        ) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise _cannot_write(path, error) from error
    try:
        _write_holder(path)
        yield
    finally:
        # Unlinked while still locked: FileLock refuses a file that has lost its name since it was opened.
        path.unlink(missing_ok=True)
        lock.release()


def _write_holder(path: Path) -> None:
    try:
        path.write_text(f"process {os.getpid()} on {socket.gethostname()} since {datetime.now():%F %T}")
    except OSError as error:
        raise _cannot_write(path, error) from error


def _holder(path: Path) -> str:
    """The process that a lock file names; it is empty or gone for a moment while the lock changes hands."""
    with suppress(OSError, ValueError):
        return path.read_text(encoding="utf-8") or "another process"
    return "another process"
