"""Observability: logs as JSON lines, metrics for Prometheus."""

import logging
import sys
import time
from contextvars import ContextVar
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

from talkinghead_lab.service.jobs import JobQueue, QueuedJob

REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)
SECONDS = (1, 5, 15, 30, 60, 120, 300, 600, 1200, 3600)


class JsonLines(JsonFormatter):
    """One JSON object per line: time in UTC, level, logger, message, the fields of `extra`, exception."""

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self) -> None:
        super().__init__(
            "%(asctime)s %(levelname)s %(name)s %(message)s",
            rename_fields={
                "asctime": "time",
                "levelname": "level",
                "name": "logger",
                "exc_info": "exception",
            },
            reserved_attrs=[*RESERVED_ATTRS, "color_message"],  # uvicorn's, with terminal codes
            json_default=str,
        )

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        """Level names are lower case."""
        return log_data | {"level": log_data["level"].lower()}


def log_as_json() -> None:
    """Log every record of this process to stderr as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)


class Metrics:
    """Prometheus metrics of one service."""

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
        if job.result:
            self.seconds.observe(job.seconds)
            self.frames.inc(job.result["frame_count"])
            for name, check in job.result["metadata"]["checks"].items():
                if isinstance(check, dict) and check["passed"] is False:
                    self.failed_checks.labels(name).inc()

    def watch(self, jobs: JobQueue, model_loaded: Any) -> None:
        """Add gauges of the queue, the model and GPU memory, which are read at every scrape."""
        gauges = {
            "talkinghead_jobs_waiting": ("Waiting jobs.", lambda: jobs.depth()[0]),
            "talkinghead_jobs_running": ("Running jobs.", lambda: jobs.depth()[1]),
            "talkinghead_model_loaded": ("1 if the model is in memory.", model_loaded),
            "talkinghead_gpu_bytes": ("GPU memory reserved by PyTorch.", _gpu_bytes),
        }
        for name, (meaning, read) in gauges.items():
            Gauge(name, meaning, registry=self.registry).set_function(read)

    def text(self) -> bytes:
        """All metrics in the Prometheus text format."""
        return generate_latest(self.registry)


def _gpu_bytes() -> float:
    torch = sys.modules.get("torch")  # a scrape must not import it
    return torch.cuda.memory_reserved() if torch and torch.cuda.is_initialized() else 0
