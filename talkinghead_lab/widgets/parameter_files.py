"""Parameter files: those to start from, and the request of the panel as a new one."""

import itertools
import re
from pathlib import Path

from talkinghead_lab.errors import InvalidRequest, TalkingHeadError
from talkinghead_lab.foundation.files import atomic_path
from talkinghead_lab.foundation.paths import project_folder
from talkinghead_lab.params import GenerationParams

FOLDER = "params"  # in the project, and in the folder of runs


def presets(runs_folder: Path) -> list[tuple[str, str]]:
    """(name, path) of the files that hold a request: shipped ones, then saved ones; first no choice."""
    found = [("choose …", "")]
    for folder in (project_folder() / FOLDER, runs_folder / FOLDER):
        for file in sorted(folder.glob("*.yaml")):
            try:
                GenerationParams.from_yaml(file)
            except TalkingHeadError:
                continue  # a sweep
            found.append((file.stem, str(file)))
    return found


def free_name(runs_folder: Path, name: str) -> str:
    """The name, with the first number behind it that no saved file has."""
    stem = re.sub(r"-\d+$", "", name)
    numbered = (f"{stem}-{number}" if number > 1 else stem for number in itertools.count(1))
    return next(name for name in numbered if not (runs_folder / FOLDER / f"{name}.yaml").exists())


def save_request(params: GenerationParams, runs_folder: Path, name: str) -> Path:
    """Write a request with all its fields, for notebooks whose own defaults are others.

    Raises:
        InvalidRequest: the name cannot be used.
        OutputError: the file exists, or nothing can be written.
    """
    if not re.fullmatch(r"\w[\w. -]{0,80}", name):
        raise InvalidRequest(
            "the file's name cannot be used",
            received=name,
            allowed="letters, digits, spaces, _ . -",
            remedy="Change it.",
        )
    path = runs_folder / FOLDER / f"{name.removesuffix('.yaml')}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(params.to_yaml(complete=True), encoding="utf-8")
    return path
