"""Files that appear whole or not at all: written beside their final name, synced, then linked into place."""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from talkinghead_lab.errors import OutputError

# EFBIG is what a limit on file sizes answers, EDQUOT a quota: for the reader the remedy is the same.
NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def atomic_path(final: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `final`; it becomes `final` when the block ends without an exception.

    The temporary file exists already, is hidden, has the suffix of `final`, and is gone after any exception,
    Ctrl-C included.

    Raises:
        OutputError: `final` exists and may not be overwritten, its folder is not writable, or space ran out.
    """
    final = Path(final)
    if not overwrite and os.path.lexists(final):
        raise _already_there(final)
    temporary = final.with_name(f".{final.stem[:80]}.{secrets.token_hex(4)}.partial{final.suffix}")
    try:
        temporary.open("xb").close()
    except OSError as error:
        raise _cannot_write(final, error) from error
    try:
        yield temporary
        _sync(temporary)
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
    if overwrite:
        temporary.replace(final)
    else:
        try:
            os.link(temporary, final)
        except FileExistsError:
            raise _already_there(final) from None
        except OSError:  # a file system without hard links
            if os.path.lexists(final):
                raise _already_there(final) from None
            temporary.rename(final)
    _sync(final.parent)


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
        remedy=f"The folder {final.parent} must exist and be writable.",
    )
