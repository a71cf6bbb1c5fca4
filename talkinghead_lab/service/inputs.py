"""Which files a request may read, and their maximum size; they are copied before anything reads them."""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from talkinghead_lab.errors import MediaError
from talkinghead_lab.foundation.paths import SAMPLE_PREFIX, local_file
from talkinghead_lab.foundation.snapshot import READ_ONLY, Snapshot, open_beneath
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.request_fields import MEDIA_FIELDS
from talkinghead_lab.service.problems import Problem
from talkinghead_lab.service.settings import ServiceSettings

MASKS = "speaker_masks"  # a list of files
UNUSABLE_PATH = (OSError, ValueError, RuntimeError)  # a name too long, a null byte, a loop of links
SUFFIX = re.compile(r"\.\w{1,10}", re.ASCII)
# Names from `copy_allowed`: a key of `GenerationParams.media`, which begins with its field, and a suffix.
COPY_NAME = re.compile(rf"(?:{'|'.join(GenerationParams.model_fields)})(?:\.\w+)*", re.ASCII)


def in_shared(settings: ServiceSettings, value: str) -> str:
    """Make a path of a request absolute; relative paths start at the shared folder."""
    return value if value.startswith(SAMPLE_PREFIX) else str(settings.shared_dir.absolute() / value)


def in_allowed_folders(settings: ServiceSettings, fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a request with absolute paths.

    Raises:
        Problem: 403 a LoRA outside the shared folder, 404 a path that names nothing; other files are checked
            as they are opened.
    """
    located = dict(fields)
    for name in MEDIA_FIELDS:
        if isinstance(value := fields.get(name), str):
            located[name] = in_shared(settings, value)
    if isinstance(masks := fields.get(MASKS), list):
        located[MASKS] = [in_shared(settings, path) if isinstance(path, str) else path for path in masks]
    for name in ("segments", "image_path"):
        parts = fields.get(name)
        for part in parts if isinstance(parts, list) else ():
            if isinstance(part, dict) and isinstance(part.get("file"), str):
                part["file"] = in_shared(settings, part["file"])
    loras = fields.get("loras")
    for lora in loras if isinstance(loras, list) else ():
        path = lora.get("path") if isinstance(lora, dict) else None
        if not isinstance(path, str):
            continue  # not valid: the request says why
        lora["path"] = in_shared(settings, path)
        try:
            inside = Path(lora["path"]).resolve().is_relative_to(settings.shared_dir.resolve())
        except UNUSABLE_PATH:
            raise Problem(404, "`loras`: no such file.") from None
        if not (inside or path.startswith(SAMPLE_PREFIX)):
            raise Problem(403, "`loras`: a file is outside the shared folder.")
    return located


def copy_allowed(settings: ServiceSettings, folder: Path, field: str, value: str) -> Snapshot:
    """Copy the file of a field into a folder. It is opened once; what replaces it later is not read.

    Raises:
        Problem: 403 outside the shared and output folders, 404 not found, 413 too large.
        MediaError, OutputError: it cannot be copied.
    """
    with _opened(settings, field, value) as descriptor:
        suffix = Path(value).suffix
        name = field + (suffix if SUFFIX.fullmatch(suffix) else "")
        return Snapshot.take(descriptor, f"`{field}`", folder / name)


@contextmanager
def _opened(settings: ServiceSettings, field: str, value: str) -> Iterator[int]:
    """Open the file of an absolute path or of a bundled sample."""
    try:
        descriptor = _open(settings, field, value)
    except MediaError as error:
        raise Problem(404, f"`{field}`: {error.problem.split(' (')[0]}.") from None
    except UNUSABLE_PATH:
        raise Problem(404, f"`{field}`: no such file.") from None
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise Problem(404, f"`{field}`: not a file that can be read.")
        if facts.st_size > settings.largest_mib * 2**20:
            raise Problem(413, f"`{field}` is larger than {settings.largest_mib:g} MiB.")
        yield descriptor
    finally:
        os.close(descriptor)


def _open(settings: ServiceSettings, field: str, value: str) -> int:
    if value.startswith(SAMPLE_PREFIX):
        return os.open(local_file(value), READ_ONLY)
    # Links are resolved here, and none is followed when the file is opened: it may have been replaced since.
    path = Path(value).resolve()
    for folder in (settings.shared_dir.resolve(), settings.output_dir.resolve()):
        if path != folder and path.is_relative_to(folder):
            return open_beneath(folder, path.relative_to(folder))
    raise Problem(403, f"`{field}` is outside the shared and output folders.")
