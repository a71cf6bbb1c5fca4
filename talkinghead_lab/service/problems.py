"""Errors as answers: application/problem+json (RFC 9457) without paths, stack traces or received values."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from talkinghead_lab.errors import InvalidRequest, MediaError, OutputError, Stopped, TalkingHeadError
from talkinghead_lab.foundation.files import NO_SPACE

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_SECONDS = 30
ABSOLUTE_PATH = re.compile(r"(?<![\w.~])/[^\s'\",;:)]+")
CLIENT_CLOSED_REQUEST = 499  # nginx's code for a client that went away; nobody is there to read it
NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "Cannot allocate memory")


@dataclass(eq=False)
class Problem(Exception):
    """An answer that says what is wrong: status, one sentence or more, and headers to send along."""

    status: int
    detail: str
    headers: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The members of RFC 9457."""
        known = self.status in set(HTTPStatus)
        title = HTTPStatus(self.status).phrase if known else "Client Closed Request"
        return {"type": "about:blank", "title": title, "status": self.status, "detail": self.detail}


def busy(detail: str) -> Problem:
    """503: the same request may succeed later."""
    return Problem(503, detail, {"Retry-After": str(RETRY_AFTER_SECONDS)})


def without_paths(text: str) -> str:
    """`text` with every absolute path taken out."""
    return ABSOLUTE_PATH.sub("(path)", text)


def problem_of(error: BaseException) -> Problem:
    """What a caller is told about an exception of the pipeline."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, Stopped):
        return Problem(CLIENT_CLOSED_REQUEST, "The run was stopped.")
    if any(getattr(cause, "errno", None) in NO_SPACE for cause in _causes(error)):
        return Problem(507, "There is no space left to write the video. Free some, then ask again.")
    if any(_is_out_of_memory(cause) for cause in _causes(error)):
        return busy("The memory does not suffice for this request. Ask again later, or for fewer pixels.")
    if isinstance(error, InvalidRequest | MediaError):
        return Problem(422, _sentence(error))
    if isinstance(error, OutputError):
        return Problem(500, "The video could not be written. The service's log says why.")
    return Problem(500, "The generation failed. The service's log says why.")


def _sentence(error: TalkingHeadError) -> str:
    """Problem, what is allowed and what to do; what was received may be a path, and the caller knows it."""
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
    # PyTorch has a class of its own for GPUs (a RuntimeError); its CPU allocator raises a plain one.
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError | OSError) and any(words in str(error) for words in NO_MEMORY)
