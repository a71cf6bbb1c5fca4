"""The service behind the endpoints: takes requests in, waits for their jobs, tells of them."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Request

from talkinghead_lab.service.generation import Generator
from talkinghead_lab.service.inputs import allowed_inputs, in_shared
from talkinghead_lab.service.jobs import JobQueue, QueuedJob
from talkinghead_lab.service.problems import Problem
from talkinghead_lab.service.schemas import JobView
from talkinghead_lab.service.settings import Settings
from talkinghead_lab.service.telemetry import Figures

LOG = logging.getLogger(__name__)
LOOK_SECONDS = 0.2  # how often progress, and whether the client is still there, are looked at
SILENCE_SECONDS = 15.0  # after which an event stream says that it lives, for proxies between


class Service:
    """What the endpoints share."""

    def __init__(self, settings: Settings):
        self.settings, self.figures = settings, Figures()
        self.generator = Generator(settings)
        self.jobs = JobQueue(
            self.generator, self._idle, self._job_ended, settings.queue_length, settings.idle_seconds
        )
        self.figures.watch(self.jobs, lambda: self.generator.model_loaded)

    def _idle(self) -> None:
        self.generator.unload()
        self.generator.tidy()

    def _job_ended(self, job: QueuedJob, error: BaseException | None) -> None:
        self.figures.job_ended(job)
        facts = {
            "job": job.id,
            "state": job.state,
            "seconds": (job.ended or 0) - (job.started or job.created),
        }
        failed = error is not None and job.problem is not None and job.problem.status >= 500
        LOG.log(
            logging.ERROR if failed else logging.INFO, "job ended", extra=facts, exc_info=failed and error
        )
        self.generator.after(job, error)

    async def submit(self, fields: dict[str, Any]) -> QueuedJob:
        """Check a request and put it into the queue.

        Raises:
            Problem, InvalidRequest: it cannot be done.
        """
        self.jobs.check_room()
        paths = {name: in_shared(self.settings, fields[name]) for name in ("audio_path", "image_path")}
        params = self.settings.params(**(fields | paths))
        await asyncio.to_thread(allowed_inputs, self.settings, params)
        job = QueuedJob(id=self.generator.output.new_name(), params=params)
        self.jobs.submit(job)
        LOG.info("job accepted", extra={"job": job.id})
        return job

    async def finish(self, job: QueuedJob, request: Request) -> dict[str, Any]:
        """Wait for a job as long as its client does.

        Raises:
            Problem: the job failed or was stopped.
        """
        done = asyncio.wrap_future(job.done)
        try:
            while not done.done():
                await asyncio.wait({done}, timeout=LOOK_SECONDS)
                if await request.is_disconnected():
                    self.jobs.stop(job.id)
        finally:  # the server may cancel this while it shuts down
            if not job.ended:
                self.jobs.stop(job.id)
        if job.problem is not None:
            raise job.problem
        assert job.result is not None
        return job.result

    def job(self, job_id: str) -> QueuedJob:
        """A job that is known.

        Raises:
            Problem: 404.
        """
        job = self.jobs.get(job_id)
        if job is None:
            raise Problem(404, "There is no such job.")
        return job

    async def events(self, job: QueuedJob) -> AsyncIterator[str]:
        """A job's changes as server-sent events; the last one is called `end`."""
        told, silent = "", 0.0
        while True:
            ended = job.is_done
            state = JobView.of(job, self.jobs)
            now = state.model_dump_json(exclude={"seconds_left"})
            if now != told or ended:
                yield f"event: {'end' if ended else 'progress'}\ndata: {state.model_dump_json()}\n\n"
                told, silent = now, 0.0
            if ended:
                return
            if silent >= SILENCE_SECONDS:
                yield ": still here\n\n"
                silent = 0.0
            await asyncio.sleep(LOOK_SECONDS)
            silent += LOOK_SECONDS
