"""The project folder, the bundled samples and the user's cache."""

import os
import stat
from pathlib import Path

from talkinghead_lab.errors import MediaError, nearest_name


def user_cache_folder() -> Path:
    """The folder for cached results: TALKINGHEAD_CACHE, otherwise a folder in XDG_CACHE_HOME or ~/.cache."""
    if own := os.environ.get("TALKINGHEAD_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "talkinghead_lab"


SAMPLE_PREFIX = "sample:"
OWN_NOTEBOOK = "01_generate.ipynb"  # tells the project's folder, or a copy of it, from any other `notebooks/`
EMBEDDED_FOLDER = Path(__file__).parents[1] / "embedded"
SAMPLES_FOLDER = EMBEDDED_FOLDER / "samples"


def project_folder() -> Path:
    """The base of relative paths: the working directory, or its parent in the project's own `notebooks/`."""
    here = Path.cwd()
    is_own = (here / OWN_NOTEBOOK).is_file() or (here.parent / "talkinghead_lab" / "__init__.py").is_file()
    return here.parent if here.name == "notebooks" and is_own else here


def absolute(path: object) -> object:
    """The absolute path of a request's field; names of bundled samples stay unchanged.

    Raises:
        ValueError: it is empty.
    """
    if isinstance(path, str) and not path.strip():
        raise ValueError("must not be empty")
    if not isinstance(path, str | Path) or str(path).startswith(SAMPLE_PREFIX):
        return path
    return str(project_folder() / Path(path).expanduser())


def local_file(value: str) -> Path:
    """The file a path of a request names; `sample:NAME` is a file bundled with the package.

    Raises:
        MediaError: no such sample or file, not a regular file, or not readable.
    """
    if value.startswith(SAMPLE_PREFIX):
        samples = {file.stem: file for file in SAMPLES_FOLDER.iterdir() if file.is_file()}
        name = value.removeprefix(SAMPLE_PREFIX)
        if name not in samples:
            raise MediaError("no such sample", received=value, remedy=nearest_name(name, samples))
        return samples[name]
    path = Path(value)
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:  # ValueError: a null byte
        reason = getattr(error, "strerror", None) or error
        remedy = "Check the path and the working directory."
        raise MediaError(f"no such file ({reason})", received=value[:500], remedy=remedy) from None
    if not stat.S_ISREG(mode) or not os.access(path, os.R_OK):
        raise MediaError(
            "not a file that can be read", received=value, remedy="Check its type and permissions."
        )
    return path
