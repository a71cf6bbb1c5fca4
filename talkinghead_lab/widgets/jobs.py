"""The panel's generation thread: one video at a time, with networks that stay loaded in between."""

import html
import queue
import threading
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from talkinghead_lab.errors import Stopped, TalkingHeadError
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.pipeline.encoder_cache import EncoderCache
from talkinghead_lab.pipeline.request import resolve
from talkinghead_lab.pipeline.request_media import read_inputs
from talkinghead_lab.runs.generate import generate
from talkinghead_lab.runs.jobs import GenerationJob
from talkinghead_lab.runs.time_left import in_words
from talkinghead_lab.workers.worker import Worker


@dataclass(eq=False, kw_only=True)
class PanelJob(GenerationJob):
    """A generation started in the panel.

    Args:
        folder: the run's folder.
        problem: the error message, if the job failed.
        details: the traceback, if the error is not a `TalkingHeadError`.
    """

    folder: Path
    problem: str = ""
    details: str = ""

    def fail(self, error: Exception) -> None:
        """End the job with an error and keep the message for the panel."""
        if not isinstance(error, TalkingHeadError):
            self.problem = f"{type(error).__name__}: {error}"
            self.details = traceback.format_exc()
        elif not isinstance(error, Stopped):
            self.problem = str(error)
        self.end(error)


class GenerationThread(threading.Thread):
    """Generates one video at a time.

    There is one such thread per process. A panel that is opened again finds it among the threads of the
    process, and with it the running job and the loaded networks.
    """

    def __init__(self) -> None:
        super().__init__(name="talkinghead_lab generation", daemon=True)
        self.job: PanelJob | None = None
        self._submitted: queue.SimpleQueue[PanelJob] = queue.SimpleQueue()
        self._networks = Worker()

    @classmethod
    def of_this_process(cls) -> Self:
        """The thread that is already running, or a new one."""
        for thread in threading.enumerate():
            if isinstance(thread, cls):
                return thread
        thread = cls()
        thread.start()
        return thread

    @property
    def busy(self) -> bool:
        """Whether a job is running."""
        return self.job is not None and not self.job.is_done

    def submit(self, params: GenerationParams, folder: Path) -> PanelJob:
        """Start a run or continue the unfinished one in `folder`; a running job is returned instead."""
        if self.job is None or not self.busy:
            self.job = PanelJob(params=params, folder=folder)
            self._submitted.put(self.job)
        return self.job

    def run(self) -> None:
        """Run submitted jobs until the process ends."""
        while True:
            job = self._submitted.get()
            job.begin()
            try:
                self._generate(job)
            except Exception as error:  # the thread survives any error of a job
                job.fail(error)
            else:
                job.end()
            job.done.set_result(None)

    def _generate(self, job: PanelJob) -> None:
        inputs = read_inputs(job.params)  # before weights are loaded
        _stop_if_asked(job)
        job.warnings = resolve(job.params, inputs).warnings
        pipeline = self._networks.load(job.params)
        assert pipeline.loaded_as
        _stop_if_asked(job)
        generate(
            job.params,
            job.folder,
            inputs=inputs,
            pipeline=pipeline,
            encoder_cache=EncoderCache.of(pipeline.loaded_as.weights, pipeline.device),
            on_progress=job.report,
            time_left=job.time_left,
            show_progress=False,
        )


def _stop_if_asked(job: PanelJob) -> None:
    if job.stop.is_set():
        raise Stopped("the run was stopped")


def status_html(job: PanelJob) -> str:
    """The state of a job as text for the panel."""
    if job.state == "failed":
        details = f"<details><summary>Details</summary><pre>{html.escape(job.details)}</pre></details>"
        return f'<span class="thl-error">{html.escape(job.problem)}</span>{details if job.details else ""}'
    if job.state == "finished":
        return f"Finished in {in_words(job.seconds)}"
    if job.state == "stopped" and not job.folder.exists():
        return "Stopped before anything was made."
    if job.state == "stopped":
        return "Stopped. Its finished chunks are kept: “Continue” below goes on."
    if job.stop.is_set():
        return "Stopping after this step …"
    status = job.time_left.status
    return f"{status[0].upper()}{status[1:]}"
