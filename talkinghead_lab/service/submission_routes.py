"""Endpoints beyond the contract: jobs from any request or upload, plans of requests, finished videos."""

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Header, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from talkinghead_lab.errors import InvalidRequest
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.runs.folder import REQUEST
from talkinghead_lab.service.problems import Problem
from talkinghead_lab.service.schemas import JobView, problem_responses
from talkinghead_lab.service.serving import Service
from talkinghead_lab.service.submissions import BODY, FIELDS, component_schemas

REFUSALS = problem_responses(400, 403, 404, 413, 422, 503, 507)


class PlanAnswer(BaseModel):
    """What a request would do. Boxes are [left, top, right, bottom] in pixels of the picture."""

    frame_size: tuple[int, int]
    picture: tuple[int, int]
    crop: tuple[int, int, int, int] | None
    seconds: float
    frames: int
    chunks: int
    steps: int
    forward_passes: int
    skippable_passes: int
    warnings: list[str]
    people: list[tuple[int, int, int, int]] | None


class KeptVideo(BaseModel):
    """A finished video; `created` is in seconds since 1970, `fields` are those of its request."""

    id: str
    url: str
    created: float
    prompt: str
    fields: dict[str, Any]


def describe_bodies(app: FastAPI) -> None:
    """Add the schemas of the bodies to the OpenAPI description: FastAPI does not see them."""
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        description = describe()
        description["components"]["schemas"].update(component_schemas())
        return description

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI's documentation extends it


def add_submissions(router: APIRouter, service: Service) -> None:
    """Add the endpoints to a router."""

    @router.post(
        "/api/jobs",
        status_code=202,
        response_model=JobView,
        responses=REFUSALS,
        openapi_extra={"requestBody": BODY},
        summary="Queue a job for a request with any field, or with uploaded files",
    )
    async def submit_job(
        request: Request,
        idempotency_key: Annotated[
            str | None, Header(description="the same key and content give the same job")
        ] = None,
    ) -> Response:
        job, repeated = await service.submit_once(request, idempotency_key)
        headers = {"Location": f"/api/jobs/{job.id}", "X-Job-Id": job.id}
        headers |= {"Idempotency-Replayed": "true"} if repeated else {}
        return JSONResponse(JobView.of(job, service.jobs).model_dump(), 202, headers)

    @router.post(
        "/api/plan",
        responses=REFUSALS,
        openapi_extra={"requestBody": BODY},
        summary="What a request would do: its size, crop, chunks and warnings; nothing is generated",
    )
    async def plan(
        request: Request,
        people: Annotated[bool, Query(description="propose boxes for the people in the picture")] = False,
    ) -> PlanAnswer:
        return PlanAnswer(**await service.plan(request, people))

    @router.get(
        "/api/jobs/{job_id}/request",
        response_class=Response,
        responses=problem_responses(404, 422) | {200: {"content": {"application/yaml": {}}}},
        summary="The request of a job or a finished video, as a parameter file",
    )
    async def show_request(job_id: str) -> Response:
        text = await asyncio.to_thread(_request_of, service, job_id)
        return Response(text, media_type="application/yaml")

    @router.get("/api/videos", summary="Finished videos that are still kept, newest first")
    def list_videos() -> list[KeptVideo]:
        return list(filter(None, map(_kept, service.generator.output.videos())))


def _request_of(service: Service, job_id: str) -> str:
    job = service.jobs.get(job_id)
    if job is not None:
        return job.params.to_yaml()
    video = service.generator.output.video_of(job_id)
    if video is None:
        raise Problem(404, "No such job or video.")
    return GenerationParams.from_yaml(video.with_name(REQUEST)).to_yaml()


def _kept(video: Path) -> KeptVideo | None:
    """What the list says of a video; None if it was removed meanwhile."""
    name = video.parent.name
    with suppress(OSError, InvalidRequest):
        request = GenerationParams.from_yaml(video.with_name(REQUEST))
        return KeptVideo(
            id=name,
            url=f"/api/videos/{name}/{video.name}",
            created=video.stat().st_mtime,
            prompt=request.prompts[0].text,
            fields=request.model_dump(mode="json", include=set(FIELDS)),
        )
    return None
