"""Named errors: each states what was received, what is allowed and what to do next."""

import copy
import difflib
from collections.abc import Iterable
from typing import Any, Self


class TalkingHeadError(Exception):
    """Base class for errors the user can fix. They can be pickled, to be raised in another process.

    Args:
        problem: what is wrong, as a phrase.
        received: the offending value, shown with `repr` unless it is a string.
        allowed: the accepted values or range.
        remedy: what to do next, as a sentence.
    """

    exit_code = 1

    def __init__(
        self, problem: str, *, received: object = None, allowed: str | None = None, remedy: str | None = None
    ) -> None:
        self.problem, self.received, self.allowed, self.remedy = problem, received, allowed, remedy
        message = problem
        if received is not None:
            message += f": received {received if isinstance(received, str) else repr(received)}"
        if allowed:
            message += f"; allowed: {allowed}"
        super().__init__(message + "." + (f" {remedy}" if remedy else ""))

    def renamed(self, name: str, to: str) -> Self:
        """The same error, which calls a file by another name."""
        error = copy.copy(self)
        error.args = tuple(str(part).replace(name, to) for part in self.args)
        error.problem = self.problem.replace(name, to)
        if isinstance(self.received, str):
            error.received = self.received.replace(name, to)
        return error

    def __reduce__(self) -> tuple[Any, ...]:
        # By default `__init__` would be called with the whole message.
        return _restored, (type(self), self.args, vars(self))


def _restored(
    kind: type[TalkingHeadError], arguments: tuple[Any, ...], fields: dict[str, Any]
) -> TalkingHeadError:
    error = kind.__new__(kind, *arguments)
    vars(error).update(fields)
    return error


class InvalidRequest(TalkingHeadError, ValueError):
    """A parameter is unknown, out of range or contradicts another.

    Args:
        problem, received, allowed, remedy: see `TalkingHeadError`.
        field: name of the parameter, where the error is about one.
    """

    exit_code = 2

    def __init__(
        self,
        problem: str,
        *,
        received: object = None,
        allowed: str | None = None,
        remedy: str | None = None,
        field: str | None = None,
    ) -> None:
        super().__init__(problem, received=received, allowed=allowed, remedy=remedy)
        self.field = field


class MediaError(TalkingHeadError):
    """A picture, recording or video cannot be read or used."""

    exit_code = 2


class MediaTooLarge(MediaError):
    """A file has more bytes, a picture more pixels, or a recording is longer than allowed."""


class CheckpointError(TalkingHeadError):
    """A weight file is missing, damaged or does not fit its network."""

    exit_code = 2


class DownloadError(TalkingHeadError):
    """The hub cannot be reached, refuses access, or does not have or send what was asked for."""


class OutputError(TalkingHeadError):
    """A result cannot be written: no space, no permission, or the name is taken."""


class NoFinishedRun(OutputError):
    """The folder is no finished run's, or holds none."""

    exit_code = 2


class NoSpaceLeft(OutputError):
    """The disk, the quota or the limit on file sizes is exhausted; the next result would not fit either."""


class FolderLocked(OutputError):
    """Another call is writing the folder."""


class MissingExtra(TalkingHeadError, ImportError):
    """An optional feature needs packages that are not installed."""


class OutOfMemory(TalkingHeadError, MemoryError):
    """The device ran out of memory. The failed work no longer holds any of it."""


class Stopped(TalkingHeadError):
    """The run was stopped on request; finished parts stay on disk."""

    exit_code = 130


def nearest_name(name: str, known: Iterable[str]) -> str:
    """A remedy sentence with the known name closest to `name`, or all known names if none is close."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"Did you mean `{close[0]}`?" if close else "Known names: " + ", ".join(known) + "."
