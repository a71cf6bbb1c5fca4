"""Prometheus metrics of one service."""

import sys
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from talkinghead_lab.service.jobs import JobQueue, QueuedJob
from talkinghead_lab.service.problems import Problem

SECONDS = (1, 5, 15, 30, 60, 120, 300, 600, 1200, 3600)
FIRST_FRAME_SECONDS = (0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300)


class Metrics:
    """Counts what happens, and reads gauges at every scrape."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "talkinghead_http_requests",
            "HTTP responses.",
            ["method", "path", "status"],
            registry=self.registry,
        )
        self.jobs = Counter("talkinghead_jobs", "Ended jobs.", ["state"], registry=self.registry)
        self.seconds = Histogram(
            "talkinghead_generation_seconds",
            "Duration of finished jobs.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.failures = Counter(
            "talkinghead_failures",
            "Requests whose files were refused, and failed jobs.",
            ["kind"],
            registry=self.registry,
        )
        self.first_frame = Histogram(
            "talkinghead_first_frame_seconds",
            "Time from the start of a job until its first frames could be played.",
            buckets=FIRST_FRAME_SECONDS,
            registry=self.registry,
        )
        self.frames = Counter("talkinghead_frames", "Generated video frames.", registry=self.registry)
        self.failed_checks = Counter(
            "talkinghead_failed_checks",
            "Failed checks of finished videos.",
            ["check"],
            registry=self.registry,
        )

    def job_ended(self, job: QueuedJob) -> None:
        """Count an ended job."""
        self.jobs.labels(job.state).inc()
        if job.state == "failed" and job.problem is not None:
            self.failed(job.problem)
        if job.first_frame is not None:
            self.first_frame.observe(job.first_frame)
        if job.result:
            self.seconds.observe(job.seconds)
            self.frames.inc(job.result["frame_count"])
            for name, check in job.result["metadata"]["checks"].items():
                if isinstance(check, dict) and check["passed"] is False:
                    self.failed_checks.labels(name).inc()

    def failed(self, problem: Problem) -> None:
        """Count a failure by its kind."""
        self.failures.labels(problem.kind).inc()

    def watch(
        self, jobs: JobQueue, model_loaded: Callable[[], bool], trouble: Callable[[], str | None]
    ) -> None:
        """Add gauges of the service, the queue, the model and GPU memory, which are read at every scrape."""
        gauges = {
            "talkinghead_healthy": ("1 if jobs are served.", lambda: trouble() is None),
            "talkinghead_jobs_waiting": ("Waiting jobs.", lambda: jobs.depth()[0]),
            "talkinghead_jobs_running": ("Running jobs.", lambda: jobs.depth()[1]),
            "talkinghead_model_loaded": ("1 if the model is in memory.", model_loaded),
            "talkinghead_gpu_bytes": ("GPU memory reserved by PyTorch.", _gpu_bytes),
            "talkinghead_gpu_free_bytes": ("Free memory of the GPU.", _gpu_free_bytes),
        }
        for name, (meaning, read) in gauges.items():
            Gauge(name, meaning, registry=self.registry).set_function(read)

    def text(self) -> bytes:
        """All metrics in the Prometheus text format."""
        return generate_latest(self.registry)


def _gpu_bytes() -> float:
    torch = sys.modules.get("torch")  # a scrape must not import it
    return torch.cuda.memory_reserved() if torch and torch.cuda.is_initialized() else 0


def _gpu_free_bytes() -> float:
    torch = sys.modules.get("torch")
    return torch.cuda.mem_get_info()[0] if torch and torch.cuda.is_initialized() else 0
