"""What is counted for Prometheus."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from talkinghead_lab.errors import MediaError, MediaTooLarge, NoSpaceLeft, OutputError, Stopped
from talkinghead_lab.service.jobs import JobQueue, QueuedJob
from talkinghead_lab.service.metrics import Metrics
from talkinghead_lab.service.problems import problem_of


def samples(metrics: Metrics) -> dict[tuple[str, ...], float]:
    families = text_string_to_metric_families(metrics.text().decode())
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
    }


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MediaError("x"), "media"), (MediaTooLarge("x"), "media_too_large"), (MemoryError(), "out_of_memory"),
        (NoSpaceLeft("x"), "no_space"), (OutputError("x"), "output"), (ValueError(), "internal"),
    ],
)  # fmt: skip
def test_failures_are_counted_by_kind(error, kind):
    metrics, job = Metrics(), QueuedJob(id="a", params=None)
    job.problem = problem_of(error)
    job.begin()
    job.end(error)
    metrics.job_ended(job)
    found = samples(metrics)
    assert found["talkinghead_failures_total", kind] == 1
    assert found["talkinghead_jobs_total", "failed"] == 1


def test_a_stopped_job_is_no_failure():
    metrics, job = Metrics(), QueuedJob(id="a", params=None)
    job.problem = problem_of(Stopped("x"))
    job.end(Stopped("x"))
    metrics.job_ended(job)
    assert not any(name == "talkinghead_failures_total" for name, *_ in samples(metrics))


def test_the_time_to_the_first_frame_and_gauges():
    metrics, job = Metrics(), QueuedJob(id="a", params=None, first_frame=3.0)
    job.end()
    metrics.job_ended(job)
    queue = JobQueue(lambda job: {}, lambda: None, lambda job, error: None, 3, 60)
    metrics.watch(queue, lambda: True, lambda: "stuck")
    queue.submit(QueuedJob(id="b", params=None))
    found = samples(metrics)
    assert found["talkinghead_first_frame_seconds_bucket", "2.0"] == 0
    assert found["talkinghead_first_frame_seconds_bucket", "5.0"] == 1
    assert found["talkinghead_jobs_waiting",] == 1
    assert found["talkinghead_healthy",] == 0
    assert found["talkinghead_gpu_bytes",] == found["talkinghead_gpu_free_bytes",] == 0
