"""The service behind the endpoints: accepts requests, waits for their jobs, reports progress."""

import asyncio
import logging
import multiprocessing
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context, copy_context
from functools import partial
from typing import Any, TypeVar

from fastapi import Request

from talkinghead_lab.errors import TalkingHeadError
from talkinghead_lab.service.callbacks import Callbacks
from talkinghead_lab.service.generation import Generator
from talkinghead_lab.service.inputs import in_allowed_folders
from talkinghead_lab.service.jobs import JobQueue, QueuedJob
from talkinghead_lab.service.metrics import Metrics
from talkinghead_lab.service.problems import RESTARTS, Problem, busy, problem_of
from talkinghead_lab.service.schemas import JobView
from talkinghead_lab.service.settings import ServiceSettings
from talkinghead_lab.service.submissions import RepeatedRequests, read_submission

T = TypeVar("T")
LOG = logging.getLogger(__name__)
POLL_SECONDS = 0.2  # between checks of the progress and of the client's connection
KEEPALIVE_SECONDS = 15.0  # silence after which an event stream sends a comment, so that proxies keep it open


class Service:
    """State shared by the endpoints: settings, queue, generator and metrics."""

    def __init__(self, settings: ServiceSettings) -> None:
        self.settings, self.metrics = settings, Metrics()
        self.generator = Generator(settings)
        self.jobs = JobQueue(
            self.generator,
            self._idle,
            self._job_ended,
            settings.queue_length,
            settings.idle_seconds,
            settings.stuck_seconds,
        )
        self.callbacks = Callbacks(settings)
        self._repeated = RepeatedRequests(self.jobs.get)
        # One request is checked at a time: with the running job, at most two processes decode.
        self._checks = ThreadPoolExecutor(1, "checks")
        self._resumed = 0.0
        self._checked_since: float | None = None  # monotonic clock; None: no request is being checked
        self.metrics.watch(self.jobs, lambda: self.generator.model_loaded, self.trouble)

    def start(self) -> None:
        """Start the thread of the queue, and the process from which those that decode are forked."""
        self.generator.output.forget_uploads()
        self.jobs.start()
        self._checks.submit(self.generator.prepare)

    def resumed(self) -> None:
        """Count time without progress anew, because the process was paused."""
        self._resumed = time.monotonic()
        self.jobs.resumed()

    def trouble(self) -> str | None:
        """Why requests are no longer served; None: they are."""
        since = self._checked_since
        if since is not None and time.monotonic() - max(since, self._resumed) > self.settings.stuck_seconds:
            return f"a request has been checked for more than {self.settings.stuck_seconds:g} seconds"
        return self.jobs.trouble()

    def close(self, timeout: float) -> None:
        """Stop all jobs, wait up to `timeout` seconds for the running one, and end processes that decode."""
        self.jobs.close(timeout)
        self._checks.shutdown(wait=False, cancel_futures=True)
        self.callbacks.close()
        for process in multiprocessing.active_children():
            process.kill()

    def _idle(self) -> None:
        self.generator.unload()
        self.generator.tidy()

    def _job_ended(self, job: QueuedJob, error: BaseException | None) -> None:
        self.metrics.job_ended(job)
        facts = {
            "job": job.id,
            "state": job.state,
            "seconds": (job.ended or 0) - (job.started or job.created),
        }
        failed = job.state == "failed" and job.problem is not None and job.problem.status >= 500
        LOG.log(
            logging.ERROR if failed else logging.INFO, "job ended", extra=facts, exc_info=failed and error
        )
        if job.callback is not None:
            view = JobView.of(job, self.jobs).model_copy(update={"state": job.state})
            self.callbacks.send(job.callback, job.id, view.model_dump_json().encode())
        self.generator.after(job, error)

    async def submit(
        self, fields: dict[str, Any], name: str | None = None, callback: str | None = None
    ) -> QueuedJob:
        """Check a request and queue a job for it.

        Args:
            fields: of `GenerationParams`, with paths as clients give them.
            name: of the job, if files were uploaded for it.
            callback: URL to tell of its end.

        Raises:
            Problem, InvalidRequest: the request is refused.
        """
        params = self.settings.params(**in_allowed_folders(self.settings, fields))
        name = name or self.generator.output.new_name()
        job = QueuedJob(id=name, params=params, callback=callback)
        with self.jobs.place():
            await self._in_checks(job.context, partial(self.generator.check, name, params))
        self.jobs.submit(job)
        LOG.info("job accepted", extra={"job": job.id})
        return job

    async def submit_once(self, request: Request, key: str | None) -> tuple[QueuedJob, bool]:
        """Queue a job for a request with any fields and uploads; errors as for `submit`.

        Args:
            request: with the body of a submission.
            key: the same key and content give the same job.

        Returns:
            The job, and whether it was queued for an earlier request.
        """
        output, job = self.generator.output, None
        name = output.new_name()
        try:
            sent = await read_submission(request, output.uploads(name))
            self.callbacks.check(sent.callback_url)
            async with self._repeated.lock(key):
                job = self._repeated.job(key, sent.digest)
                if job is None:
                    job = await self.submit(sent.fields, name, sent.callback_url)
                    self._repeated.remember(key, sent.digest, job)
            return job, job.id != name
        finally:
            if job is None or job.id != name:
                await asyncio.to_thread(output.remove_uploads, name)

    async def plan(self, request: Request, people: bool) -> dict[str, Any]:
        """Tell what a request would do, without generating; errors and arguments as for `Generator.plan`."""
        name = self.generator.output.new_name()
        try:
            sent = await read_submission(request, self.generator.output.uploads(name))
            params = self.settings.params(**in_allowed_folders(self.settings, sent.fields))
            with self.jobs.place():
                check = partial(self.generator.plan, name, params, people)
                return await self._in_checks(copy_context(), check)
        finally:
            await asyncio.to_thread(self.generator.output.remove_uploads, name)

    async def _in_checks(self, context: Context, check: Callable[[], T]) -> T:
        """Run a check in its thread; what is not expected becomes a problem."""

        def run() -> T:
            self._checked_since = time.monotonic()
            try:
                return check()
            except Exception as error:
                problem = problem_of(error)
                self.metrics.failed(problem)
                if not isinstance(error, Problem | TalkingHeadError):
                    LOG.exception("a request could not be checked")
                raise problem from None
            finally:
                self._checked_since = None

        return await asyncio.get_running_loop().run_in_executor(self._checks, context.run, run)

    async def finish(self, job: QueuedJob, request: Request) -> dict[str, Any]:
        """Wait for a job and return its result; stop the job if the client disconnects.

        Raises:
            Problem: the job failed or was stopped.
        """
        done = asyncio.wrap_future(job.done)
        try:
            while not done.done():
                await asyncio.wait({done}, timeout=POLL_SECONDS)
                if self.jobs.is_closed and not done.done():
                    raise busy(RESTARTS)
                if await request.is_disconnected():
                    # Many may leave at once, and the event loop answers others meanwhile.
                    await asyncio.to_thread(self.jobs.stop, job.id)
        finally:  # the server may cancel this task at shutdown
            if not job.ended:
                self.jobs.stop(job.id)
        if job.problem is not None:
            raise job.problem
        assert job.result is not None
        return job.result

    def job(self, job_id: str) -> QueuedJob:
        """Look up a job.

        Raises:
            Problem: 404 if it is not known.
        """
        job = self.jobs.get(job_id)
        if job is None:
            raise Problem(404, "No such job. A restart of the service forgets all jobs.")
        return job

    async def events(self, job: QueuedJob) -> AsyncIterator[str]:
        """Server-sent events, one per change of a job; the last one is named `end`."""
        sent, silent = "", 0.0
        while True:
            ended = job.is_done
            state = JobView.of(job, self.jobs)
            now = state.model_dump_json()
            if now != sent or ended:
                yield f"event: {'end' if ended else 'progress'}\ndata: {now}\n\n"
                sent, silent = now, 0.0
            if ended or self.jobs.is_closed:
                return
            if silent >= KEEPALIVE_SECONDS:
                yield ": still here\n\n"
                silent = 0.0
            await asyncio.sleep(POLL_SECONDS)
            silent += POLL_SECONDS
