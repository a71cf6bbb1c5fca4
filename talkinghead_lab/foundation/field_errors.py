"""Errors of a request's fields: which field, what it received, what it takes."""

import re
from collections.abc import Iterable, Mapping

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from talkinghead_lab.errors import InvalidRequest, nearest_name

# pydantic names the alternative of a union behind its field
OF_UNIONS = ("constrained-", "function-", "tuple[", "literal[")

# Names of other programs for a frame that the video should end with, without `_path` and the like.
LAST_FRAME = re.compile(r"(end|last|tail|final)_?(image|frame|img|picture)")


class Contradiction(ValueError):
    """Two fields contradict each other; `field` is the one to change."""

    def __init__(self, message: str, field: str) -> None:
        super().__init__(message)
        self.field = field


def first_error(error: ValidationError, fields: Mapping[str, FieldInfo]) -> InvalidRequest:
    """Convert pydantic's first error into ours: field, received value, allowed values."""
    found = error.errors(include_url=False)
    finding = found[0]
    if isinstance(finding["input"], list | tuple):  # not what another alternative of a union would take
        finding = next((each for each in found[1:] if each["loc"][:1] == finding["loc"][:1]), finding)
    place = [str(part) for part in finding["loc"] if not str(part).startswith(OF_UNIONS)]
    name = ".".join(place) or "request"
    if finding["type"] == "missing":
        return InvalidRequest(f"`{name}` is missing", remedy=f"Set `{name}`.", field=name.partition(".")[0])
    if not finding["loc"]:  # fields that contradict each other
        error_of_fields: Contradiction = finding["ctx"]["error"]
        return InvalidRequest(str(error_of_fields), field=error_of_fields.field)
    remedy = "Give text: in quotes, or with papermill by `-r`." if finding["type"] == "string_type" else None
    allowed = finding["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return not_valid(name, finding["input"], allowed, fields, remedy)


def unknown_parameter(name: str, known: Iterable[str]) -> InvalidRequest:
    """The error of a field that no request has."""
    if LAST_FRAME.match(name):
        problem = "a video cannot be given its last frame: the weights were trained with a first frame only"
        remedy = "Leave it out. `image_path` gives the first frame, `continue_video` the frames before it."
        return InvalidRequest(problem, received=name, remedy=remedy, field=name)
    return InvalidRequest("unknown parameter", received=name, remedy=nearest_name(name, known), field=name)


def not_valid(
    name: str, value: object, allowed: str, fields: Mapping[str, FieldInfo], remedy: str | None = None
) -> InvalidRequest:
    """The error of a value that its field does not take; `name` may be that of a part, as `loras.0.scale`."""
    top = name.partition(".")[0]
    meaning = f"`{name}`: {fields[top].description}." if top in fields else None
    received = repr(value)
    return InvalidRequest(
        f"`{name}` is not valid",
        received=received if len(received) <= 80 else f"{received[:60]}… ({len(received)} characters)",
        allowed=allowed,
        remedy=" ".join(filter(None, (remedy, meaning))) or None,
        field=top,
    )
