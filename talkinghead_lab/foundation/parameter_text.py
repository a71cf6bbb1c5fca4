"""Parameters as text, from files and from the shell: the field decides what a value is, not its looks.

A YAML 1.1 reader takes `yes` for a boolean, `12:30` for 750 and `010` for 8. Here a file is read as a tree
of texts, and `typed` converts each to the type of its field: text is verbatim, numbers are decimal.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from talkinghead_lab.errors import InvalidRequest

UNSET = ("", "~", "null", "none")  # in an optional field, without quotes and in any case
TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
WHOLE_NUMBER = re.compile(r"[+-]?[0-9]{1,40}(\.0*)?")
NUMBER = re.compile(r"[+-]?([0-9]{1,400}\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


class Plain(str):
    """Text without quotes: an optional field takes some of its spellings as unset."""

    __slots__ = ()


class _TextLoader(yaml.SafeLoader):
    """A YAML reader whose scalars are all text; merge keys (`<<`) work, a repeated key is an error."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> str:
        if kind is not yaml.ScalarNode:
            return str(super().resolve(kind, value, implicit))  # type: ignore[no-untyped-call]  # PyYAML is untyped
        return f"tag:yaml.org,2002:{'merge' if value == '<<' and implicit[0] else 'str'}"

    def construct_scalar(self, node: Any) -> Any:
        text = _joined_surrogates(super().construct_scalar(node))
        return Plain(text) if node.style is None else text

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                problem = f"the key {key.value!r} is repeated"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return node


def parse(text: str) -> Any:
    """Read JSON or YAML as mappings, lists and texts.

    Raises:
        ValueError: it is neither.
    """
    try:
        if text.lstrip()[:1] in ("{", "["):
            try:
                return parse_json(text)
            except ValueError:
                pass  # YAML in flow style
        return yaml.load(text, _TextLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"not valid YAML ({error})") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


def parse_json(text: str) -> Any:
    """Read JSON as mappings, lists and texts; numbers and truth values keep their spelling, null is None."""
    try:
        return _texts(
            json.loads(
                text,
                object_pairs_hook=unrepeated,
                parse_int=Plain,
                parse_float=Plain,
                parse_constant=Plain,
            )
        )
    except ValueError as error:
        raise ValueError(f"not valid JSON ({error})") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_mapping(path: str | Path, what: str = "the parameter file") -> dict[str, Any]:
    """Read a YAML or JSON file that contains one mapping of names to values, as texts.

    Args:
        path: of the file.
        what: what errors call it.

    Raises:
        InvalidRequest: it cannot be read, or contains something else.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidRequest(
            f"{what} cannot be read: it is not text",
            received=str(path),
            allowed="YAML or JSON",
            remedy="Of a video made by this package, `GenerationParams.from_video` reads the request.",
        ) from None
    except OSError as error:
        raise InvalidRequest(f"{what} cannot be read ({error})", received=str(path)) from None
    try:
        fields = parse_json(text) if path.suffix.lower() == ".json" else parse(text)
    except ValueError as error:
        raise InvalidRequest(f"{what} is {error}", received=str(path)) from None
    if not isinstance(fields, dict) or not all(isinstance(name, str) for name in fields):
        raise InvalidRequest(
            f"{what} is not a mapping of names to values", received=str(path), allowed="YAML or JSON"
        )
    return {str(name): value for name, value in fields.items()}


def typed(kind: Any, value: Any) -> Any:
    """Convert text to the type of its field; other values are returned as they are.

    Args:
        kind: annotation of the field.
        value: text, or lists and mappings of texts.

    Raises:
        ValueError: the text is no value of that type; the message says what is allowed.
    """
    origin, options = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return typed(options[0], value)
    if origin in (Union, UnionType):
        if NoneType in options and isinstance(value, Plain) and value.strip().lower() in UNSET:
            return None
        words = [word for option in options for word in get_args(option) if get_origin(option) is Literal]
        if value is None or value in words:
            return value if value is None else str(value)
        kinds = [o for o in options if o is not NoneType and get_origin(o) is not Literal]
        listed = not isinstance(value, str) or value.lstrip().startswith("[")
        if isinstance(value, str) and listed and str in map(_bare, kinds):  # otherwise it is verbatim
            listed = _lists_mappings(value)
        return typed(next((o for o in kinds if listed and _is_list(o)), kinds[0]), value)
    if isinstance(value, bool) and kind in (int, float):
        raise ValueError("a valid number")
    if not isinstance(value, str):
        return _typed_parts(kind, value)
    if kind is str or origin is Literal:
        return str(value)
    if kind is bool:
        return _truth(value)
    return _number(kind, value) if kind in (int, float) else _typed_parts(kind, parse(value))


def _is_list(kind: Any) -> bool:
    return get_origin(_bare(kind)) is tuple


def _bare(kind: Any) -> Any:
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _lists_mappings(text: str) -> bool:
    try:
        found = parse(text)
    except ValueError:
        return False
    return isinstance(found, list) and bool(found) and all(isinstance(entry, dict) for entry in found)


def _typed_parts(kind: Any, value: Any) -> Any:
    """Convert the entries of a list or mapping; what does not fit is left to the field's own validation."""
    if get_origin(kind) is tuple and isinstance(value, list | tuple):
        kinds = get_args(kind)
        kinds = kinds[:1] * len(value) if kinds[1:] == (...,) else kinds
        return (
            [typed(*pair) for pair in zip(kinds, value, strict=True)] if len(kinds) == len(value) else value
        )
    if isinstance(kind, type) and issubclass(kind, BaseModel) and isinstance(value, Mapping):
        known = kind.model_fields
        return {
            name: typed(known[name].annotation, part) if name in known else part
            for name, part in value.items()
        }
    return value


def _truth(text: str) -> bool:
    if text.strip().lower() not in TRUTH:
        raise ValueError("a valid boolean: true or false")
    return TRUTH[text.strip().lower()]


def _number(kind: type, text: str) -> float:
    """A decimal number: `010` is 10; underscores, hexadecimal and sexagesimal notation are refused."""
    text = text.strip()
    if WHOLE_NUMBER.fullmatch(text):
        return int(text.partition(".")[0])
    if kind is int:
        raise ValueError("a valid integer, in decimal digits")
    if not NUMBER.fullmatch(text):
        raise ValueError("a valid number, in decimal digits")
    return float(text)


def _texts(value: Any) -> Any:
    """JSON's truth values as they are written; `null` is no text."""
    if isinstance(value, bool):
        return Plain(json.dumps(value))
    if isinstance(value, list):
        return [_texts(part) for part in value]
    return {name: _texts(part) for name, part in value.items()} if isinstance(value, dict) else value


def unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, for `object_pairs_hook`.

    Raises:
        ValueError: a key is repeated: one of its values would be lost.
    """
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {repeated!r} is repeated")
    return fields


def _joined_surrogates(text: str) -> str:
    r"""Join the halves of characters that YAML escapes in two parts, as in "\ud83d\ude00"."""
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        return text  # half a character, which text fields refuse
