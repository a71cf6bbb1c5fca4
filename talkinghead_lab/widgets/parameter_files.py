"""Parameter files: the presets of the panel, and saving its request as a new file."""

import itertools
import re
from contextlib import suppress
from pathlib import Path

from talkinghead_lab.errors import InvalidRequest, TalkingHeadError
from talkinghead_lab.foundation.files import atomic_path
from talkinghead_lab.foundation.presets import FOLDER
from talkinghead_lab.foundation.presets import presets as known_presets
from talkinghead_lab.params import GenerationParams


def presets(runs_folder: Path) -> list[tuple[str, str]]:
    """(name, path) of all files with a request: presets, then saved ones; the first entry is empty."""
    found = [("choose …", "")]
    saved = {file.stem: file for file in sorted((runs_folder / FOLDER).glob("*.yaml"))}
    for name, file in [*sorted(known_presets().items()), *saved.items()]:
        with suppress(TalkingHeadError):  # a sweep, or not valid
            GenerationParams.from_yaml(file)
            found.append((name, str(file)))
    return found


def free_name(runs_folder: Path, name: str) -> str:
    """The name, with a number appended if a saved file already has it."""
    stem = re.sub(r"-\d+$", "", name)
    numbered = (f"{stem}-{number}" if number > 1 else stem for number in itertools.count(1))
    return next(name for name in numbered if not (runs_folder / FOLDER / f"{name}.yaml").exists())


def save_request(params: GenerationParams, runs_folder: Path, name: str) -> Path:
    """Write a request with all its fields, because the defaults of a notebook may differ.

    Raises:
        InvalidRequest: the name is not allowed.
        OutputError: the file exists or cannot be written.
    """
    if not re.fullmatch(r"\w[\w. -]{0,80}", name):
        raise InvalidRequest(
            "the file name is not allowed",
            received=name,
            allowed="letters, digits, spaces, _ . -",
            remedy="Change it.",
        )
    path = runs_folder / FOLDER / f"{name.removesuffix('.yaml')}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(params.to_yaml(complete=True), encoding="utf-8")
    return path
