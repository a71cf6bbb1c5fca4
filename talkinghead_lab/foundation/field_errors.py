"""Errors of a request's fields: which field, what it received, what it takes."""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from talkinghead_lab.errors import InvalidRequest, nearest_name

# pydantic names the alternative of a union behind its field
OF_UNIONS = ("constrained-", "function-", "tuple[", "list[", "literal[")

# Names of other programs for a frame that the video should end with, without `_path` and the like.
LAST_FRAME = re.compile(r"(end|last|tail|final)_?(image|frame|img|picture)")


class Contradiction(ValueError):
    """Two fields contradict each other; `field` is the one to change."""

    def __init__(self, message: str, field: str) -> None:
        super().__init__(message)
        self.field = field


def first_error(error: ValidationError, fields: Mapping[str, FieldInfo]) -> InvalidRequest:
    """Convert one of pydantic's errors into ours: field, received value, allowed values.

    Of the first field that is not valid, the innermost error tells most. The others are about lists that lost
    their wrong entries, or about what another alternative of a union would take, as text in place of a list.
    A name that is not known explains why another is missing.
    """
    found = error.errors(include_url=False)
    of_field = [each for each in found if each["loc"][:1] == found[0]["loc"][:1]]
    finding = max(of_field, key=_telling)
    if not finding["loc"]:  # fields that contradict each other
        error_of_fields: Contradiction = finding["ctx"]["error"]
        return InvalidRequest(str(error_of_fields), field=error_of_fields.field)
    place = place_of(finding["loc"])
    name = ".".join(place)
    entries = _entry_names(fields[place[0]].annotation) if place[0] in fields else []
    if finding["type"] == "missing" and not place[-1].isdecimal():
        return InvalidRequest(f"`{name}` is missing", remedy=f"Set `{name}`.", field=place[0])
    if finding["type"] == "extra_forbidden":
        nearest = nearest_name(place[-1], entries)
        return InvalidRequest("unknown entry", received=name, remedy=nearest, field=place[0])
    if finding["type"] == "missing":
        name = ".".join(place[:-1])
    remedy = "Give text: in quotes, or with papermill by `-r`." if finding["type"] == "string_type" else None
    return not_valid(name, finding["input"], _allowed(finding, entries), fields, remedy)


def _telling(finding: Mapping[str, Any]) -> tuple[int, bool, bool]:
    """How much an error tells; of equal ones, the first counts."""
    is_list = isinstance(finding["input"], list | tuple)
    of_list = is_list and finding["type"] not in ("string_type", "int_type", "float_type")
    return len(place_of(finding["loc"])), finding["type"] == "extra_forbidden", of_list


def place_of(location: Iterable[int | str]) -> list[str]:
    """Where a value stands, without pydantic's names for the alternatives of a union."""
    return [str(part) for part in location if not str(part).startswith(OF_UNIONS)]


def _allowed(finding: Mapping[str, Any], entries: Collection[str]) -> str:
    """What a value may be, in the words of parameter files."""
    limits = finding.get("ctx", {})
    words = {
        "tuple_type": "a list",
        "model_type": f"a mapping of {', '.join(entries)}",
        "too_short": f"at least {limits.get('min_length')} in the list",
        "too_long": f"at most {limits.get('max_length')} in the list",
        "missing": f"at least {finding['loc'][-1] + 1} in the list" if finding["type"] == "missing" else "",
    }
    said: str = finding["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return words.get(finding["type"], said)


def _entry_names(annotation: object) -> list[str]:
    """The names in the mappings that a field lists."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return list(annotation.model_fields)
    return [name for part in get_args(annotation) for name in _entry_names(part)]


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
