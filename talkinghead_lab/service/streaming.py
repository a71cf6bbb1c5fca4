"""Sends a job's video: while it is made, as far as it goes; afterwards the finished file."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import BinaryIO

from fastapi import Request, Response
from fastapi.responses import FileResponse, StreamingResponse
from starlette.staticfiles import NotModifiedResponse, StaticFiles
from starlette.types import Send

from talkinghead_lab.service.jobs import QueuedJob
from talkinghead_lab.service.problems import CLIENT_CLOSED_REQUEST, Problem
from talkinghead_lab.service.retention import OutputFolder

MEDIA_TYPE = "video/mp4"
POLL_SECONDS = 0.2  # between looks at a growing file
BLOCK_BYTES = 256 * 1024  # sent at once; a slow client holds no more in memory
# The length is not known yet, so there are no ranges, and a proxy must not wait for the end.
HEADERS = {"Accept-Ranges": "none", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}


async def video_response(job: QueuedJob, output: OutputFolder, request: Request) -> Response:
    """Answer with a job's video; wait for its first frames, or for the end of the job.

    Raises:
        Problem: the job failed or was stopped, or its video was removed.
    """
    while not job.is_done:
        file = await asyncio.to_thread(_open_if_begun, output.growing_video(job.id))
        if file is not None:
            return _GrowingVideo(_follow(file, job), lambda: job.state == "finished")
        if await request.is_disconnected():
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        await asyncio.sleep(POLL_SECONDS)
    if job.result is None:
        raise job.problem or Problem(500, "The job has no video.")
    path = output.video(job.id, Path(job.result["video_path"]).name)
    if path is None:
        raise Problem(404, "The video of this job was removed.")
    return finished_video(path, request)


def finished_video(path: Path, request: Request) -> Response:
    """The file of a video, with ranges; 304 for a client that has it already.

    Raises:
        Problem: it was removed meanwhile.
    """
    try:
        response = FileResponse(path, media_type=MEDIA_TYPE, stat_result=path.stat())
    except OSError:
        raise Problem(404, "The video of this job was removed.") from None
    if StaticFiles().is_not_modified(response.headers, request.headers):
        return NotModifiedResponse(response.headers)
    return response


def _open_if_begun(path: Path) -> BinaryIO | None:
    try:
        file = path.open("rb")
    except OSError:
        return None
    if file.seek(0, 2):
        file.seek(0)
        return file
    file.close()
    return None


async def _follow(file: BinaryIO, job: QueuedJob) -> AsyncIterator[bytes]:
    """The content of a growing file, also after it has lost its name, until the job has ended."""
    with file:
        while True:
            ended = job.is_done  # before the file is read: then nothing is missed
            while block := await asyncio.to_thread(file.read, BLOCK_BYTES):
                yield block
            if ended:
                return
            await asyncio.sleep(POLL_SECONDS)


class _GrowingVideo(StreamingResponse):
    """A stream that is ended properly only if it is complete; otherwise the connection is closed.

    Args:
        blocks: of the video.
        complete: asked at the end.
    """

    def __init__(self, blocks: AsyncIterator[bytes], complete: Callable[[], bool]) -> None:
        super().__init__(blocks, headers=HEADERS, media_type=MEDIA_TYPE)
        self.complete = complete

    async def stream_response(self, send: Send) -> None:
        """Send the headers and the blocks."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for block in self.body_iterator:
            await send({"type": "http.response.body", "body": block, "more_body": True})
        if self.complete():
            await send({"type": "http.response.body", "body": b"", "more_body": False})
