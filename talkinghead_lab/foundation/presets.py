"""Presets: parameter files that are found by name, and what else ships with the package.

In a checkout, the files of `SHIPPED` are folders of the project. A wheel holds copies, see setup.py.
"""

import difflib
import os
from pathlib import Path

from talkinghead_lab.errors import InvalidRequest
from talkinghead_lab.foundation.paths import project_folder

PACKAGE = Path(__file__).parents[1]
FOLDER = "params"
NOTEBOOKS = "notebooks"
SWEEP_PREFIX = "sweep-"  # begins the names of presets that are sweeps


def shipped_folder(name: str) -> Path:
    """`FOLDER` or `NOTEBOOKS` as shipped: in an installed package a part of it, otherwise beside it."""
    packed = PACKAGE / "shipped" / name
    return packed if packed.is_dir() else PACKAGE.parent / name


def presets() -> dict[str, Path]:
    """The presets by name: those of the package, then those in the project's own `params/`, which win."""
    folders = (shipped_folder(FOLDER), project_folder() / FOLDER)
    return {file.stem: file for folder in folders for file in sorted(folder.glob("*.yaml"))}


def preset_names(*, sweeps: bool) -> list[str]:
    """The names of the presets that are sweeps, or of those that are requests."""
    return sorted(name for name in presets() if name.startswith(SWEEP_PREFIX) == sweeps)


def parameter_file(given: str | Path, *, sweep: bool = False) -> Path:
    """The file that is meant: `given` if it is one, otherwise the preset of that name.

    Args:
        given: path, relative to the working directory or the project folder; or name of a preset.
        sweep: whether a sweep is expected, which decides the names that an error lists.

    Raises:
        InvalidRequest: there is neither.
    """
    name = str(given)
    candidates = (Path(name).expanduser(), project_folder() / name)
    found = [path for path in candidates if os.path.exists(path)]  # noqa: PTH110 (`Path` raises for long names)
    for path in found:
        if not path.is_dir():  # a file, or a pipe as a shell's `<(…)` gives
            return path
    known = presets()
    if name in known:
        return known[name]
    if found:
        remedy = "Name the file in it; that of a run is request.yaml, that of a sweep sweep.yaml."
        raise InvalidRequest("this is a folder, not a parameter file", received=name, remedy=remedy)
    names = preset_names(sweeps=sweep)
    close = difflib.get_close_matches(Path(name).stem.lower(), names, n=1, cutoff=0.5)
    raise InvalidRequest(
        "the parameter file cannot be read: there is no such file or preset",
        received=name[:500],
        allowed=f"a YAML or JSON file, or the name of a preset: {', '.join(names)}",
        remedy=f"Did you mean `{close[0]}`?" if close else "Check the path and the working directory.",
    )
