"""The page at / and what it needs besides jobs: its files, a session for the token, presets, samples."""

import re
from mimetypes import guess_type
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel

from talkinghead_lab.errors import MediaError, TalkingHeadError
from talkinghead_lab.foundation.paths import SAMPLE_PREFIX, local_file
from talkinghead_lab.foundation.presets import presets as known_presets
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.request_fields import MEDIA_FIELDS
from talkinghead_lab.service.problems import Problem
from talkinghead_lab.service.schemas import problem_responses
from talkinghead_lab.service.session import COOKIE, session_value
from talkinghead_lab.service.settings import ServiceSettings
from talkinghead_lab.service.submissions import FIELDS

FOLDER = Path(__file__).parent / "page"
# Nothing is loaded from elsewhere; blob: is what the visitor chose or recorded.
POLICY = (
    "default-src 'self'; img-src 'self' blob:; media-src 'self' blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'"
)
BINARY = "application/octet-stream"
# What a visitor brings; a preset has its own for the samples.
VISITORS = (*MEDIA_FIELDS, "prompt", "audio_mix", "segments")
HEADERS = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache", "Referrer-Policy": "no-referrer"}


class Preset(BaseModel):
    """Fields of a request to start from; `title` says for what."""

    name: str
    title: str
    fields: dict[str, Any]


class _PageFiles(StaticFiles):
    """The files of the page, with its policy."""

    async def get_response(self, path: str, scope: Any) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response


def add_page(app: FastAPI, guarded: APIRouter, settings: ServiceSettings) -> None:
    """Add the page to an application; the routes of `guarded` need the token."""

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(FOLDER / "index.html", headers=HEADERS)

    app.mount("/page", _PageFiles(directory=FOLDER), name="page")

    @guarded.post("/api/session", status_code=204, summary="Keep the token in a cookie, for browsers")
    async def begin_session(request: Request) -> Response:
        response = Response(status_code=204)
        if settings.token is not None:
            secure = request.url.scheme == "https" or request.headers.get("x-forwarded-proto") == "https"
            value = session_value(settings.token.get_secret_value())
            response.set_cookie(COOKIE, value, httponly=True, samesite="strict", secure=secure)
        return response

    @guarded.delete("/api/session", status_code=204, summary="Forget the cookie")
    async def end_session() -> Response:
        response = Response(status_code=204)
        response.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return response

    @guarded.get(
        "/api/samples/{name}",
        response_class=FileResponse,
        responses=problem_responses(404, 422)
        | {200: {"content": {"image/*": {}, "audio/*": {}, "video/*": {}, BINARY: {}}}},
        summary="A file of the package that requests call `sample:NAME`",
    )
    def sample(name: str) -> FileResponse:
        try:
            file = local_file(SAMPLE_PREFIX + name)
        except MediaError:
            raise Problem(404, "No such sample.") from None
        return FileResponse(file, media_type=guess_type(file.name)[0] or BINARY)

    @guarded.get("/api/presets", summary="Fields of a request to start from")
    def list_presets() -> list[Preset]:
        return [Preset(name="", title="Defaults of the service", fields={}), *presets(settings)]


def presets(settings: ServiceSettings) -> list[Preset]:
    """The presets that this service can run."""
    checkpoint = "released" if settings.released else "embedded"
    found = []
    for name, file in sorted(known_presets().items()):
        try:
            params = GenerationParams.from_yaml(file)
        except TalkingHeadError:
            continue  # a sweep
        if params.checkpoint != checkpoint or not all(
            lora.path.startswith(SAMPLE_PREFIX) for lora in params.loras
        ):
            continue
        given = params.model_dump(mode="json", exclude_unset=True)
        fields = {name: given[name] for name in given if name in FIELDS and name not in VISITORS}
        found.append(Preset(name=name, title=_title(file), fields=fields))
    return found


def _title(file: Path) -> str:
    """The name of a preset and the beginning of its first comment."""
    comment = re.match(r"# ([^,.:;\n]+)", file.read_text(encoding="utf-8"))
    return f"{file.stem}: {comment[1]}" if comment else file.stem
