"""Files that appear whole or not at all: written beside their final name, synced, then linked into place.
Folders that one call at a time may write.
"""

import errno
import fcntl
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TextIO

from talkinghead_lab.errors import OutputError

# EFBIG is what a limit on file sizes answers, EDQUOT a quota: for the reader the remedy is the same.
NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}  # some network file systems
LOCK = ".lock"


@contextmanager
def atomic_path(final: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `final`; it becomes `final` when the block ends without an exception.

    The temporary file exists already, is hidden, has the suffix of `final`, and is gone after any exception,
    Ctrl-C included.

    Raises:
        OutputError: `final` exists and may not be overwritten, its folder is not writable, or space ran out.
    """
    final = Path(final)
    temporary = final.with_name(f".{secrets.token_hex(8)}.partial{final.suffix}")
    try:
        if _exists(final) and not overwrite:
            raise _already_there(final)
        temporary.open("xb").close()
    except OSError as error:
        raise _cannot_write(final, error) from error
    try:
        yield temporary
        _publish(temporary, final, overwrite)
    except OSError as error:
        # An error of another kind may stem from what the block read, and keeps its own name.
        if error.errno in NO_SPACE:
            raise _cannot_write(final, error) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _publish(temporary: Path, final: Path, overwrite: bool) -> None:
    """Give a finished file its final name; a link, unlike a rename, never replaces what is there."""
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
    """Whether a name is taken, by a dangling link too; a name that cannot be is an OSError."""
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
        "the output exists already and is not overwritten",
        received=str(final),
        remedy="Choose another name, or move the file away.",
    )


def _cannot_write(final: Path, error: OSError) -> OutputError:
    if error.errno in NO_SPACE:
        return OutputError(
            f"no space left while writing ({error.strerror})",
            received=str(final),
            remedy=f"Free space under {final.parent}, or write to another disk. Nothing was left behind.",
        )
    return OutputError(
        f"the file cannot be written ({error.strerror})",
        received=str(final),
        remedy=f"Check the name; the folder {final.parent} must exist and be writable.",
    )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep every other call, in this process or another, from writing a folder while the block runs.

    The system itself lets the lock go when its process ends, even killed, so none is ever stale; what lies
    there then is an empty shell that the next call takes. A file system without locks gives none.

    Raises:
        OutputError: another call holds the lock, with its process; or the folder cannot be written.
    """
    path = folder / LOCK
    try:
        file = _acquire(path)
    except OSError as error:
        raise _cannot_write(path, error) from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is held: who opened it before finds it gone, and tries again
        file.close()


def _acquire(path: Path) -> TextIO:
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read() or "another process"
            file.close()
            raise OutputError(
                f"the folder is being written by {holder}",
                received=str(path.parent),
                remedy="Wait for it, stop it, or choose another folder.",
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        if _is_still_there(file, path):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()} since {datetime.now():%F %T}")
            file.flush()
            return file
        file.close()


def _is_still_there(file: TextIO, path: Path) -> bool:
    """Whether an open file is the one of that name; its last holder may have removed it."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
