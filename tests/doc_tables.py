"""Tables of the pages that mirror the code; `python -m tests.doc_tables` writes them into the pages."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen
from pydantic.fields import FieldInfo

from talkinghead_lab.defaults import EMBEDDED, RELEASED_NEGATIVE_PROMPT
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.service import settings

ROOT = Path(__file__).parent.parent


def parameter_table() -> str:
    """A row for every field of a request."""
    rows = ["| name | default | allowed | meaning |", "| --- | --- | --- | --- |"]
    for name, field in GenerationParams.model_fields.items():
        default = _default(field, field.default)
        if name in EMBEDDED:
            default = f"{_default(field, EMBEDDED[name])}; released: {default}"
        rows.append(f"| `{name}` | {default} | {_allowed(field)} | {field.description} |")
    return "\n".join(rows)


def settings_table() -> str:
    """A row for every setting of the HTTP service."""
    rows = ["| variable | default | meaning |", "| --- | --- | --- |"]
    for name, field in settings.ServiceSettings.model_fields.items():
        default = "unset" if field.default is None else field.default
        rows.append(f"| `{name.upper()}` | {default} | {field.description} |")
    return "\n".join(rows)


# Each page has its table between `<!-- NAME: … -->` and `<!-- end -->`.
TABLES: dict[str, tuple[Path, Callable[[], str]]] = {
    "parameters": (ROOT / "docs/parameters.md", parameter_table),
    "settings": (ROOT / "docs/http.md", settings_table),
}


def table_of(name: str) -> str:
    """A table as its page has it."""
    page, _ = TABLES[name]
    return _split(page.read_text(), name)[1].strip()


def write_tables() -> None:
    """Write every table into its page."""
    for name, (page, table) in TABLES.items():
        before, _, after = _split(page.read_text(), name)
        page.write_text(f"{before}\n{table()}\n\n{after}")


def _split(text: str, name: str) -> tuple[str, str, str]:
    found = re.fullmatch(rf"(.*<!-- {name}: [^>]*-->\n)(.*?)(<!-- end -->.*)", text, re.S)
    assert found, f"no table between `<!-- {name}: … -->` and `<!-- end -->`"
    before, table, after = found.groups()
    return before, table, after


def _default(field: FieldInfo, value: Any) -> str:
    if field.is_required():
        return "required"
    if value == RELEASED_NEGATIVE_PROMPT:
        return "the released one"
    return {None: "unset", "": "empty", (): "none"}.get(value, str(value).lower())


def _allowed(field: FieldInfo) -> str:
    """Choices, range or length of a field; empty where its meaning says what it holds."""
    parts = [FieldInfo.from_annotation(part) for part in get_args(field.annotation)]
    if any(part.metadata for part in parts) and get_origin(field.annotation) is Union:
        return " or ".join(filter(None, map(_allowed, parts)))
    kinds = [field.annotation, *get_args(field.annotation)]
    if bool in kinds:
        return "true, false"
    choices = [choice for choice in get_args(field.annotation) if isinstance(choice, str)]
    if choices:
        return ", ".join(choices)
    longest = _bound(field, MaxLen, "max_length")
    if longest is not None:
        items = "characters" if field.annotation is str else "entries"
        return f"at most {longest} {items}"
    low, above = _bound(field, Ge, "ge"), _bound(field, Gt, "gt")
    high, below = _bound(field, Le, "le"), _bound(field, Lt, "lt")
    limits = [
        f"{sign} {_number(value)}"
        for sign, value in (("≥", low), (">", above), ("≤", high), ("<", below))
        if value is not None
    ]
    if low is not None and high is not None:
        return f"{_number(low)} to {_number(high)}"
    return ", ".join(limits)


def _bound(field: FieldInfo, kind: type, name: str) -> Any:
    return next((getattr(item, name) for item in field.metadata if isinstance(item, kind)), None)


def _number(value: float) -> str:
    return "2^63" if value == 2**63 else f"{value:,.0f}" if value == int(value) else str(value)


if __name__ == "__main__":
    write_tables()
