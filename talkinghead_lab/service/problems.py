"""Errors as application/problem+json (RFC 9457), without paths, tracebacks or received values."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from talkinghead_lab.errors import (
    InvalidRequest,
    MediaError,
    MediaTooLarge,
    NoSpaceLeft,
    OutputError,
    Stopped,
    TalkingHeadError,
)
from talkinghead_lab.foundation.files import is_no_space

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_SECONDS = 30
RESTARTS = "The service restarts. Send the request again."
NO_SPACE = "No space left on the device for the video. Free some space, then try again."
LITTLE_MEMORY = "Not enough memory for this request. Try again later, or with fewer pixels."
ABSOLUTE_PATH = re.compile(r"(?<![\w.~])/[^\s'\",;:)]+")
CLIENT_CLOSED_REQUEST = 499  # nginx's code for a client that disconnected
NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "Cannot allocate memory")


@dataclass(eq=False)
class Problem(Exception):
    """An error response.

    Args:
        status: HTTP status.
        detail: a description in full sentences.
        headers: further headers.
        kind: what metrics count it as.
    """

    status: int
    detail: str
    headers: dict[str, str] = field(default_factory=dict)
    kind: str = "request"

    def to_json(self) -> dict[str, Any]:
        """The members of RFC 9457."""
        known = self.status in set(HTTPStatus)
        title = HTTPStatus(self.status).phrase if known else "Client Closed Request"
        return {"type": "about:blank", "title": title, "status": self.status, "detail": self.detail}


def busy(detail: str, headers: dict[str, str] | None = None, kind: str = "busy") -> Problem:
    """A 503 with `Retry-After`: the same request may succeed later."""
    return Problem(503, detail, {"Retry-After": str(RETRY_AFTER_SECONDS)} | (headers or {}), kind)


def without_paths(text: str) -> str:
    """Replace every absolute path in `text`."""
    return ABSOLUTE_PATH.sub("(path)", text)


def problem_of(error: BaseException) -> Problem:
    """Convert an exception of the pipeline to what the client may know about it."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, Stopped):
        return Problem(CLIENT_CLOSED_REQUEST, "The run was stopped.", kind="stopped")
    if isinstance(error, NoSpaceLeft) or is_no_space(error):
        return Problem(507, NO_SPACE, kind="no_space")
    if any(_is_out_of_memory(cause) for cause in _causes(error)):
        return busy(LITTLE_MEMORY, kind="out_of_memory")
    if isinstance(error, MediaTooLarge):
        return Problem(413, _sentence(error), kind="media_too_large")
    if isinstance(error, InvalidRequest | MediaError):
        return Problem(422, _sentence(error), kind="media" if isinstance(error, MediaError) else "request")
    if isinstance(error, OutputError):
        return Problem(500, "The video could not be written. See the log of the service.", kind="output")
    return Problem(500, "The generation failed. See the log of the service.", kind="internal")


def _sentence(error: TalkingHeadError) -> str:
    """Problem, allowed values and remedy; the received value is left out, because it may be a path."""
    parts = [error.problem[:1].upper() + error.problem[1:]]
    if error.allowed:
        parts.append(f"; allowed: {error.allowed}")
    return without_paths("".join(parts) + "." + (f" {error.remedy}" if error.remedy else ""))


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in seen:
        seen.append(current)
        yield current
        current = current.__cause__ or current.__context__


def _is_out_of_memory(error: BaseException) -> bool:
    # PyTorch raises a subclass of RuntimeError on a GPU, and a plain RuntimeError on a CPU.
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError | OSError) and any(words in str(error) for words in NO_MEMORY)
