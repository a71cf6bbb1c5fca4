"""Completion by the shell: presets, and the fields of a request after `-p`, with the values of each.

The shell runs the command anew for each completion, with the variable `REQUESTED` and the line so far.
"""

import argparse
import os
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args, get_origin

from talkinghead_lab.foundation.presets import preset_names

REQUESTED = "_ARGCOMPLETE"  # set by the shell function that `register-python-argcomplete` prints
FILES = ("yaml", "yml", "json")  # of requests and sweeps


def complete_if_requested(parser: argparse.ArgumentParser) -> None:
    """Print the completions of the shell's line and end the process, if a shell asks for that."""
    if REQUESTED in os.environ:
        import argcomplete

        argcomplete.autocomplete(parser)


def complete_preset(prefix: str, *, sweeps: bool, **_: object) -> Iterable[str]:
    """Presets that are sweeps or requests, and parameter files."""
    return [*preset_names(sweeps=sweeps), *_files(prefix, FILES)]


def complete_override(prefix: str, **_: object) -> Mapping[str, str] | Iterable[str]:
    """After `-p` the names of fields, each with its description; after a name its values."""
    from argcomplete.lexers import split_line

    line, cursor = os.environ.get("COMP_LINE", ""), int(os.environ.get("COMP_POINT", "0"))
    before = split_line(line, cursor)[3][-1]
    from talkinghead_lab.params import GenerationParams

    fields = GenerationParams.model_fields
    if before == "-p":
        return {name: field.description or "" for name, field in fields.items()}
    return _values(before, fields[before].annotation, prefix) if before in fields else []


def _values(name: str, kind: Any, prefix: str) -> list[str]:
    words = _words(kind)
    if words or not _is_path(name):
        return words
    return [*_samples(), *_files(prefix)] if name.endswith("_path") else _files(prefix)


def _words(kind: Any) -> list[str]:
    """The values of a field that are words."""
    if kind is bool:
        return ["true", "false"]
    if get_origin(kind) is Literal:
        return list(map(str, get_args(kind)))
    return [word for part in get_args(kind) for word in _words(part)]


def _is_path(name: str) -> bool:
    from talkinghead_lab.request_fields import RELEASED_ONLY

    return name.endswith(("_path", "_dir")) or name in RELEASED_ONLY


def _samples() -> list[str]:
    from talkinghead_lab.foundation.paths import SAMPLE_PREFIX, SAMPLES_FOLDER

    return sorted(f"{SAMPLE_PREFIX}{file.stem}" for file in SAMPLES_FOLDER.iterdir())


def _files(prefix: str, suffixes: Iterable[str] = ()) -> list[str]:
    from argcomplete.completers import FilesCompleter

    return list(FilesCompleter(suffixes)(prefix))
