"""What `POST /api/jobs` takes: any field of the request, as JSON or as form data whose files are uploads."""

import asyncio
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from fastapi import Request
from starlette.datastructures import UploadFile

from talkinghead_lab.foundation.digests import sha256_of_file
from talkinghead_lab.foundation.parameter_text import unrepeated
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.request_fields import MEDIA_FIELDS, RELEASED_ONLY, WEIGHT_FOLDERS
from talkinghead_lab.service.inputs import MASKS, SUFFIX
from talkinghead_lab.service.jobs import QueuedJob
from talkinghead_lab.service.problems import Problem

# The service is started with its weights and its device; a client does not choose them.
SERVICE_FIELDS = frozenset({"checkpoint", "device", *WEIGHT_FOLDERS, *RELEASED_ONLY})
FIELDS = tuple(name for name in GenerationParams.model_fields if name not in SERVICE_FIELDS)
# In a form, the text of these is JSON; an example of each.
LISTS = {
    "loras": '[{"path": "mine.safetensors"}]',
    MASKS: '["left.png", "right.png"]',
    "segments": '[{"speaker": 1, "file": "hello.wav"}]',
}
UPLOADS = (*MEDIA_FIELDS, MASKS)
SEGMENT = re.compile(r"segments\.([0-9]{1,3})", re.ASCII)  # a file of a form: that of this segment, from 0
EMPTY_IS_A_VALUE = ("prompt", "negative_prompt")
CALLBACK = "callback_url"
FORM = "multipart/form-data"
MAX_PARTS = 100
MAX_KEY_LENGTH = 200


@dataclass(frozen=True)
class Submission:
    """A request as it was sent.

    Args:
        fields: of `GenerationParams`; those that mean "unset" are left out.
        callback_url: where to report the end of the job.
        digest: SHA-256 of all fields and uploaded files, to recognise a repeated request.
    """

    fields: dict[str, Any]
    callback_url: str | None
    digest: str


class RepeatedRequests:
    """Jobs by the `Idempotency-Key` of their requests, so that a client can safely send a request again.

    Args:
        find: the job of an id; None: it is no longer known, and its key is forgotten with it.
    """

    def __init__(self, find: Callable[[str], QueuedJob | None]) -> None:
        self._find = find
        self._known: dict[str, tuple[str, str]] = {}  # digest of the content, id of the job
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def lock(self, key: str | None) -> asyncio.Lock:
        """What to hold from the question to the answer: two requests with one key may arrive at once.

        Raises:
            Problem: 422, the key is not valid.
        """
        if key is None:
            return asyncio.Lock()
        if not (1 <= len(key) <= MAX_KEY_LENGTH and key.isascii() and key.isprintable()):
            raise Problem(422, f"`Idempotency-Key`: 1 to {MAX_KEY_LENGTH} printable ASCII characters.")
        return self._locks.setdefault(key, asyncio.Lock())

    def job(self, key: str | None, digest: str) -> QueuedJob | None:
        """The job of an earlier request with this key.

        Raises:
            Problem: 422, that request had other content.
        """
        known, name = self._known.get(key or "", ("", ""))
        job = self._find(name)
        if job is not None and known != digest:
            raise Problem(422, "`Idempotency-Key`: an earlier request with this key had other content.")
        return job

    def remember(self, key: str | None, digest: str, job: QueuedJob) -> None:
        """Remember a job."""
        if key is not None:
            self._known = {old: entry for old, entry in self._known.items() if self._find(entry[1])}
            self._known[key] = (digest, job.id)


async def read_submission(request: Request, uploads: Path) -> Submission:
    """Read the body of a request; uploaded files go to a new folder, each named like its field.

    Raises:
        Problem: 400 not JSON, 413 a file is too large, 415 another type of body, 422 an unknown field.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    digest = hashlib.sha256()
    if kind == FORM:
        given = await _read_form(request, uploads, digest)
    elif kind == "application/json":
        given = read_json(await request.body())
    else:
        raise Problem(415, f"The body must be application/json or {FORM}.")
    callback = given.pop(CALLBACK, None)
    if not isinstance(callback, str | None):
        raise Problem(422, f"`{CALLBACK}`: text is needed.")
    fields = {name: value for name, value in given.items() if not _is_unset(name, value)}
    for name in LISTS:
        if isinstance(text := fields.get(name), str):
            fields[name] = _parsed(name, text)
    _place_files(fields)
    if refused := SERVICE_FIELDS & fields.keys():
        raise Problem(422, f"`{min(refused)}` is set by the service.")
    # Uploads have a folder of their own in each request; their content was hashed.
    plain = json.dumps([fields, callback or None], sort_keys=True).replace(f"{uploads}/", "")
    digest.update(plain.encode())
    return Submission(fields, callback or None, digest.hexdigest())


def read_json(body: bytes) -> dict[str, Any]:
    """The fields in a body of JSON.

    Raises:
        Problem: 400 it is not JSON or repeats a key, 422 it is no object.
    """
    try:
        given = json.loads(body, object_pairs_hook=unrepeated)
    except (ValueError, RecursionError) as error:
        raise Problem(400, f"The body is not valid JSON ({str(error)[:100]}).") from None
    if not isinstance(given, dict):
        raise Problem(422, "The body must be a JSON object with fields of the request.")
    return given


async def _read_form(request: Request, uploads: Path, digest: "hashlib._Hash") -> dict[str, Any]:
    given: dict[str, Any] = {}
    async with request.form(max_files=MAX_PARTS, max_fields=MAX_PARTS) as form:
        for name, part in form.multi_items():
            earlier = given.get(name)
            is_next_mask = name == MASKS and isinstance(earlier, list) and isinstance(part, UploadFile)
            if earlier is not None and not is_next_mask:
                raise Problem(422, f"`{name[:40]}` is given twice.")
            if not isinstance(part, UploadFile):
                given[name] = part
                continue
            if name not in UPLOADS and not SEGMENT.fullmatch(name):
                allowed = ", ".join((*UPLOADS, "segments.0, segments.1, …"))
                raise Problem(422, f"`{name[:40]}` cannot be a file; files: {allowed}.")
            suffix = Path(part.filename or "").suffix
            stem = f"{name}.{len(earlier or ())}" if name == MASKS else name
            target = uploads / (stem + (suffix if SUFFIX.fullmatch(suffix) else ""))
            await asyncio.to_thread(_store, part, target)
            digest.update(f"{name} {await asyncio.to_thread(sha256_of_file, target)}".encode())
            given[name] = [*(earlier or ()), str(target)] if name == MASKS else str(target)
    return given


def _place_files(fields: dict[str, Any]) -> None:
    """Give each segment the file that was sent for it."""
    segments = fields.get("segments")
    for name in [name for name in fields if SEGMENT.fullmatch(name)]:
        number, path = int(name.partition(".")[2]), fields.pop(name)
        if not isinstance(segments, list) or not number < len(segments):
            raise Problem(422, f"`{name}`: `segments` has no such segment.")
        if not isinstance(segments[number], dict) or "file" in segments[number]:
            raise Problem(422, f"`{name}`: the segment has a `file` already, or is no object.")
        segments[number]["file"] = path


def _store(part: UploadFile, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("xb") as file:
        shutil.copyfileobj(part.file, file)


def _parsed(name: str, text: str) -> Any:
    """A list in a form."""
    try:
        return json.loads(text, object_pairs_hook=unrepeated)
    except (ValueError, RecursionError):
        raise Problem(422, f"`{name}`: JSON is needed, such as {LISTS[name]}.") from None


def _is_unset(name: str, value: Any) -> bool:
    if name == "seed" and value in (-1, "-1"):
        return True
    return value is None or (value == "" and name not in EMPTY_IS_A_VALUE)


SCHEMAS = "#/components/schemas/"
BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {"schema": {"$ref": f"{SCHEMAS}JobRequest"}},
        FORM: {"schema": {"$ref": f"{SCHEMAS}JobUpload"}},
    },
}


def component_schemas() -> dict[str, Any]:
    """The schemas that `BODY` names, and those that they use."""
    schema = GenerationParams.model_json_schema(ref_template=SCHEMAS + "{model}")
    # Without defaults, which generated clients would send: what is left out follows the service's settings.
    as_json: dict[str, Any] = {
        name: {key: value for key, value in schema["properties"][name].items() if key != "default"}
        for name in FIELDS
    }
    as_json[CALLBACK] = {"type": "string", "description": "URL to call when the job has ended"}
    meanings = {name: field.get("description", "") for name, field in as_json.items()}
    as_form: dict[str, dict[str, Any]] = {
        name: {"type": "string", "description": meaning} for name, meaning in meanings.items()
    }
    for name in MEDIA_FIELDS:
        as_form[name]["format"] = "binary"
    as_form[MASKS] |= {"type": "array", "items": {"type": "string", "format": "binary"}}
    named: dict[str, Any] = schema.get("$defs", {})
    return named | {"JobRequest": _object(as_json), "JobUpload": _object(as_form)}


def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": ["image_path"],
        "additionalProperties": False,
    }
