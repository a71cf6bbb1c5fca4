"""The HTTP endpoints. Generations run in the thread of the queue; the endpoints only wait for them."""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Header, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from talkinghead_lab import __version__
from talkinghead_lab.errors import TalkingHeadError, nearest_name
from talkinghead_lab.foundation.field_errors import place_of
from talkinghead_lab.service.generation import gpu_available
from talkinghead_lab.service.middleware import GuardMiddleware, RequestMiddleware
from talkinghead_lab.service.origins import LOOPBACK, OriginMiddleware
from talkinghead_lab.service.page import add_page
from talkinghead_lab.service.problems import Problem, problem_of, without_paths
from talkinghead_lab.service.responses import ResponseMiddleware, method_not_allowed, problem_response
from talkinghead_lab.service.schemas import Health, JobView, VideoAnswer, VideoRequest, problem_responses
from talkinghead_lab.service.server import max_connections
from talkinghead_lab.service.serving import Service
from talkinghead_lab.service.settings import ServiceSettings
from talkinghead_lab.service.streaming import finished_video, video_response
from talkinghead_lab.service.submission_routes import add_submissions, describe_bodies
from talkinghead_lab.service.submissions import read_json

SPARE_CONNECTIONS = 8  # for health checks, when all others are in use
STOP_SECONDS = 20.0  # time for the running job to stop at shutdown
MAX_FINDINGS = 4  # reported for one request body


def create_app(settings: ServiceSettings | None = None) -> FastAPI:
    """Create the application; without `settings`, they are read from the environment."""
    service = Service(settings or ServiceSettings.read())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # Before the first client connects, because either may take seconds.
        await asyncio.gather(asyncio.to_thread(gpu_available), asyncio.to_thread(service.generator.tidy))
        gc.freeze()  # modules: collecting them would keep the event loop
        service.start()
        yield
        await asyncio.to_thread(service.close, STOP_SECONDS)

    app = FastAPI(
        title="talkinghead_lab",
        version=__version__,
        summary="Makes a talking-head video from a portrait and a recording.",
        lifespan=lifespan,
        docs_url=None,  # these pages load scripts from a CDN
        redoc_url=None,
        responses=problem_responses(401, 408, 413, 415),
    )
    app.state.service = service
    hosts = service.settings.hosts
    # The last one is the outermost.
    app.add_middleware(OriginMiddleware, allowed_hosts=hosts)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK, *hosts], www_redirect=False)
    app.add_middleware(GuardMiddleware, settings=service.settings)
    app.add_middleware(ResponseMiddleware)
    app.add_middleware(RequestMiddleware, metrics=service.metrics, most=max_connections() - SPARE_CONNECTIONS)
    _add_error_handlers(app)
    # The middleware checks the token before it reads the body; this only declares it in OpenAPI.
    declared = [Depends(HTTPBearer(auto_error=False))] if service.settings.token else []
    guarded = APIRouter(dependencies=declared)
    _add_generation(guarded, service)
    _add_jobs(guarded, service)
    _add_files(guarded, service)
    add_submissions(guarded, service)
    add_page(app, guarded, service.settings)
    app.include_router(guarded)
    _add_health(app, service)
    describe_bodies(app)
    return app


def _add_error_handlers(app: FastAPI) -> None:
    async def known(request: Request, error: Exception) -> Response:
        return problem_response(problem_of(error))

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return problem_response(_invalid(error))

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == 405:
            return method_not_allowed(request.scope)
        return problem_response(
            Problem(error.status_code, error.detail.rstrip(".") + ".", dict(error.headers or {}))
        )

    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    for kind in (Problem, TalkingHeadError):
        app.add_exception_handler(kind, known)


def _invalid(error: RequestValidationError) -> Problem:
    """Describe an invalid body by its fields and their allowed values, without the received values."""
    findings = error.errors()
    if any(finding["type"] == "json_invalid" for finding in findings):
        return Problem(400, "The body is not valid JSON.")
    details = []
    for finding in findings[:MAX_FINDINGS]:
        name = ".".join(part[:40] for part in place_of(finding["loc"][1:])) or "body"
        told = finding["msg"].removeprefix("Value error, ")
        if finding["type"] == "extra_forbidden" and len(finding["loc"]) == 2:  # of the body itself
            told = "unknown field. " + nearest_name(name, VideoRequest.model_fields).rstrip(".")
        details.append(f"`{name}`: {told}")
    return Problem(422, without_paths("; ".join(details) + "."))


def _add_generation(router: APIRouter, service: Service) -> None:
    accepted: dict[int | str, dict[str, Any]] = {
        202: {"model": JobView, "description": "accepted, if the request has `Prefer: respond-async`"}
    }

    @router.post(
        "/api/generate-video",
        response_model=VideoAnswer,
        responses=accepted | problem_responses(400, 403, 404, 422, 499, 500, 503, 507),
        summary="Generate a video and respond when it is finished",
    )
    async def generate_video(
        body: VideoRequest,
        request: Request,
        prefer: Annotated[
            str | None, Header(description="`respond-async`: respond immediately with a job")
        ] = None,
    ) -> Response:
        read_json(await request.body())  # FastAPI takes the last of repeated keys
        job = await service.submit(body.model_dump(exclude_unset=True))
        headers = {"X-Job-Id": job.id}
        if prefer and "respond-async" in prefer:
            view = JobView.of(job, service.jobs)
            headers |= {"Location": f"/api/jobs/{job.id}", "Preference-Applied": "respond-async"}
            return JSONResponse(view.model_dump(), 202, headers)
        return JSONResponse(await service.finish(job, request), headers=headers)


def _add_jobs(router: APIRouter, service: Service) -> None:
    @router.get("/api/jobs", summary="All known jobs, oldest first")
    async def list_jobs() -> list[JobView]:
        return [JobView.of(job, service.jobs) for job in service.jobs.all()]

    @router.get("/api/jobs/{job_id}", responses=problem_responses(404, 422), summary="A job and its progress")
    async def show_job(job_id: str) -> JobView:
        return JobView.of(service.job(job_id), service.jobs)

    @router.get(
        "/api/jobs/{job_id}/events",
        response_class=StreamingResponse,
        responses=problem_responses(404, 422)
        | {
            200: {
                "description": "one `progress` event per change, then one `end` event",
                "content": {"text/event-stream": {}},
            }
        },
        summary="Progress of a job as server-sent events",
    )
    async def follow_job(job_id: str) -> StreamingResponse:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        events = service.events(service.job(job_id))
        return StreamingResponse(events, headers=headers, media_type="text/event-stream")

    @router.get(
        "/api/jobs/{job_id}/video",
        response_class=FileResponse,
        responses=problem_responses(404, 422, 499, 500, 503, 507)
        | {
            200: {
                "description": "while the job runs, its video as it grows, from the first frames until "
                "the job ends: a fragmented mp4 of unknown length, without ranges. A connection that closes "
                "early means that the job failed or was stopped. Afterwards the finished file, with ranges",
                "content": {"video/mp4": {}},
            },
            206: {"description": "a range of the finished file", "content": {"video/mp4": {}}},
        },
        summary="The video of a job, to be played while it is made",
    )
    async def watch_job(job_id: str, request: Request) -> Response:
        return await video_response(service.job(job_id), service.generator.output, request)

    @router.delete(
        "/api/jobs/{job_id}",
        status_code=202,
        responses=problem_responses(404, 422),
        summary="Stop a job: a waiting one immediately, a running one after its current step",
    )
    async def stop_job(job_id: str) -> JobView:
        job = service.job(job_id)
        await asyncio.to_thread(service.jobs.stop, job_id)
        return JobView.of(job, service.jobs)


def _add_health(app: FastAPI, service: Service) -> None:
    @app.get(
        "/api/health",
        response_model=Health,
        response_model_exclude_none=True,
        responses={503: {"model": Health, "description": "unhealthy: jobs are no longer served"}},
        summary="Health check; responds during generation, too",
    )
    async def health(response: Response) -> Health:
        reason = service.trouble()
        if reason:
            response.status_code = 503
        return Health(
            status="unhealthy" if reason else "healthy",
            model_loaded=service.generator.model_loaded,
            gpu_available=gpu_available(),
            version=__version__,
            reason=reason,
        )


def _add_files(router: APIRouter, service: Service) -> None:
    @router.get(
        "/api/videos/{job_id}/{name}",
        response_class=FileResponse,
        responses=problem_responses(404, 422)
        | {200: {"content": {"video/mp4": {}}}, 304: {"description": "the client has the file already"}},
        summary="The file of a finished video",
    )
    async def video(job_id: str, name: str, request: Request) -> Response:
        path = service.generator.output.video(job_id, name)
        if path is None:
            raise Problem(404, "No such video.")
        return finished_video(path, request)

    @router.get("/metrics", summary="Prometheus metrics", response_class=Response)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
