"""The form of a run's record, which is checked whenever it is read, and the files that it names."""

import os
import stat
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from talkinghead_lab.errors import OutputError

REMEDY = "Restore it from a copy, or remove run.json: then the same request makes the video again."


def _bare(name: str) -> str:
    if Path(name).name != name or "\\" in name or not name.isprintable():
        raise ValueError("not the name of a file in the run's folder")
    return name


FileName = Annotated[str, AfterValidator(_bare)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Part(BaseModel):
    """A part of a record. What later versions add is kept; nothing is converted."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)


class _Result(_Part):
    video_path: FileName
    duration_seconds: Amount
    resolution: Annotated[str, Field(pattern=r"^[0-9]{1,6}x[0-9]{1,6}$")]
    frame_count: Annotated[int, Field(ge=1)]
    metadata: dict[str, str]


class _Stage(_Part):
    seconds: Amount
    __pydantic_extra__: dict[str, float]


class _Visit(_Part):
    stage: str
    started: Amount
    seconds: Amount
    __pydantic_extra__: dict[str, float]


class _Measure(_Part):
    name: str
    value: float | None
    unit: str
    better: Literal["higher", "lower", "neither"]
    why_not: str | None


class _Chunk(_Part):
    latent_sha256: Digest
    frames_sha256: Digest


class _Record(_Part):
    """The parts that every version writes; those that have a default came later."""

    result: _Result
    request: dict[str, Any]
    resolved: dict[str, Any]
    inputs: dict[str, Digest]
    weights: dict[str, Digest]
    loras: list[dict[str, Any]]
    video_sha256: Digest
    environment: dict[str, Any]
    stages: dict[str, _Stage]
    timeline: list[_Visit]
    measures: list[_Measure]
    chunks: list[_Chunk]
    checks: dict[str, Any] = {}
    time_to_first_frame: dict[str, Amount] | None = None
    kernels: dict[str, Any] = {}


def check_form(record: Any, path: Path) -> None:
    """Check that a record has what its readers need.

    Raises:
        OutputError: it does not.
    """
    try:
        _Record.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        raise damaged(path, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def video_of(run_dir: Path, record: dict[str, Any]) -> Path:
    """The video of a run, which is a file in its folder.

    Raises:
        OutputError: it is gone, empty, or a link.
    """
    path: Path = run_dir / record["result"]["video_path"]
    size_of_own_file(path)
    return path


def size_of_own_file(path: Path) -> int:
    """Bytes of a file of a run, at least one.

    Raises:
        OutputError: it is gone, empty, or a link, which could name any file.
    """
    try:
        state = path.lstat()
    except OSError as error:
        raise _unusable(path, error.strerror) from None
    if not stat.S_ISREG(state.st_mode) or not state.st_size:
        raise _unusable(path, "empty, a link or not a file")
    return state.st_size


def read_own_file(path: Path) -> bytes:
    """Read a file of a run to show it; a link, which could name any file, is not followed.

    Raises:
        OutputError: it is gone, a link, or cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            return file.read()
    except OSError as error:
        raise _unusable(path, error.strerror) from None


def _unusable(path: Path, reason: str | None) -> OutputError:
    return OutputError(f"the run's file cannot be used ({reason})", received=str(path), remedy=REMEDY)


def damaged(path: Path, reason: str) -> OutputError:
    """The error for a record that cannot be used."""
    return OutputError(f"the record of the run is damaged ({reason})", received=str(path), remedy=REMEDY)
