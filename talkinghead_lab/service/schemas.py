"""JSON schemas of requests and responses. Request fields are taken over from `GenerationParams`."""

import math
from copy import copy
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model
from pydantic.fields import FieldInfo

from talkinghead_lab.defaults import EMBEDDED
from talkinghead_lab.foundation.field_types import GuidanceScale
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.runs.jobs import State
from talkinghead_lab.service.jobs import JobQueue, QueuedJob
from talkinghead_lab.service.problems import MEDIA_TYPE

REQUEST_FIELDS = (
    *("audio_path", "image_path", "prompt", "resolution", "seed", "diffusion_steps"),
    *("text_guide_scale", "audio_guide_scale", "motion_frame", "use_color_correction"),
)
# A strict model takes a list of JSON for a list only.
SCALES = GuidanceScale | Annotated[list[GuidanceScale], Field(min_length=1, max_length=1000)]
MAX_PATH_LENGTH = 4096  # PATH_MAX on Linux
EXAMPLE: dict[str, Any] = {
    "audio_path": "/data/shared/recording.wav",
    "image_path": "/data/shared/portrait.png",
    "prompt": "A presenter speaks calmly to the camera.",
    "resolution": "infinitetalk-480",
    "seed": 42,
    "diffusion_steps": 40,
    "text_guide_scale": 5.0,
    "audio_guide_scale": 4.0,
    "motion_frame": 9,
    "use_color_correction": True,
}
RESULT_EXAMPLE: dict[str, Any] = {
    "video_path": "/output/20260101_120000_0123456789abcdef/infinitetalk_1024x576_calm_20260101_120001.mp4",
    "duration_seconds": 8.0,
    "resolution": "1024x576",
    "frame_count": 200,
    "metadata": {
        "seed": "42",
        "actual_resolution": "1024x576",
        "checks": {"passed": True, "frame_count": {"passed": True, "measured": 200}},
        "warnings": [],
    },
}


def _request_field(name: str) -> tuple[Any, FieldInfo]:
    known = GenerationParams.model_fields[name]
    if name.endswith("_path"):
        meaning = f"{known.description}; in the shared or output folder, or relative to the shared one"
        return str, Field(min_length=1, max_length=MAX_PATH_LENGTH, description=meaning)
    if name == "prompt":
        return str, Field(max_length=2000, description=known.description)
    field = copy(known)
    if name in EMBEDDED:
        field.description = f"{known.description}; default of the bundled model: {EMBEDDED[name]}"
    return SCALES if name.endswith("_guide_scale") else known.annotation, field


VideoRequest: type[BaseModel] = create_model(
    "VideoRequest",
    __config__=ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, json_schema_extra={"examples": [EXAMPLE]}
    ),
    **{name: _request_field(name) for name in REQUEST_FIELDS},  # type: ignore[call-overload]
)


class VideoAnswer(BaseModel):
    """A finished video, as `generate` returns it; `metadata.checks` holds the results of the checks.

    `metadata.warnings` lists what the user should know about the request.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [RESULT_EXAMPLE]})

    video_path: str
    duration_seconds: float
    resolution: str
    frame_count: int
    metadata: dict[str, Any]


class Health(BaseModel):
    """Current state of the service; `reason` says why it is unhealthy."""

    status: Literal["healthy", "unhealthy"]
    model_loaded: bool
    gpu_available: bool
    version: str
    reason: str | None = None


class JobView(BaseModel):
    """A job. Times are seconds since 1970; `position` is the number of jobs ahead of it."""

    id: str
    state: State
    position: int
    step: int = Field(description="finished sampling steps of all chunks")
    steps: int = Field(description="sampling steps of all chunks; 0: not known yet")
    place: str = Field(description="how far the run is, in words")
    fraction: float = Field(description="finished share of the work, 0 to 1")
    seconds_left: float | None = Field(
        description="whole seconds until the video is finished, decoding, writing and measures included; "
        "null: not known yet"
    )
    created: float
    started: float | None
    ended: float | None
    warnings: list[str] = Field(description="what to know about the request, once its media were read")
    result: VideoAnswer | None
    problem: dict[str, Any] | None

    @classmethod
    def of(cls, job: QueuedJob, jobs: JobQueue) -> "JobView":
        """The current state of a job, which runs until its files and memory are given back."""
        left = job.seconds_left
        return cls(
            id=job.id,
            state="running" if job.started and job.ended and not job.is_done else job.state,
            position=jobs.position(job),
            step=job.progress.steps_done if job.progress else 0,
            steps=job.progress.steps_total if job.progress else 0,
            place=job.time_left.place,
            fraction=round(job.fraction, 2),
            seconds_left=None if left is None else math.ceil(left),
            created=job.created,
            started=job.started,
            ended=job.ended,
            warnings=list(job.warnings),
            result=VideoAnswer(**job.result) if job.result and job.ended else None,
            problem=job.problem.to_json() if job.problem else None,
        )


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI descriptions of problem responses."""
    members: dict[str, Any] = {name: {"type": "string"} for name in ("type", "title", "detail")}
    schema = {
        "type": "object",
        "properties": members | {"status": {"type": "integer"}},
        "required": ["type", "title", "status", "detail"],
    }
    meanings = {
        400: "invalid JSON", 401: "no valid token", 403: "a path outside the allowed folders",
        404: "not found", 408: "the body arrived too slowly", 413: "too large",
        415: "a body of another type, or a compressed one",
        422: "a field or a file is invalid", 499: "the job was stopped", 500: "the generation failed",
        503: "the queue is full, or there is not enough memory", 507: "the disk is full",
    }  # fmt: skip
    return {
        status: {"description": meanings[status], "content": {MEDIA_TYPE: {"schema": schema}}}
        for status in statuses
    }
