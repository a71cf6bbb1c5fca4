"""A service whose thread has ended or is stuck says so, answers its clients, ends and is started again."""

import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from talkinghead_lab.service.watchdog import EXIT_STATUS
from tests.service.conftest import ROOT, START_SECONDS, Server

ENDS, STUCK = "the thread ends", "the thread is stuck"
# Python imports a module of the name `sitecustomize` before it runs a program. Two prompts break the thread.
FAULTS = f"""
import time
from talkinghead_lab.service.generation import Generator
from talkinghead_lab.service.jobs import JobQueue

next_job, generate = JobQueue._next, Generator.__call__

def next_job_or_end(queue):
    job = next_job(queue)
    if job is not None and job.params.prompt == {ENDS!r}:
        raise SystemExit
    return job

def generate_or_wait(generator, job):
    if job.params.prompt == {STUCK!r}:
        time.sleep(1000)
    return generate(generator, job)

JobQueue._next, Generator.__call__ = next_job_or_end, generate_or_wait
"""
# As a container's restart policy does; a signal to end is passed on.
RUNNER = f"""
trap 'kill $service; wait $service; exit' TERM
status={EXIT_STATUS}
while [ $status = {EXIT_STATUS} ]; do
    {sys.executable} -m talkinghead_lab.service & service=$!
    wait $service; status=$?
    echo "ended with status $status" >&2
done
"""


@pytest.fixture
def launch_restarted(launch, tmp_path) -> Iterator[Callable[..., Server]]:
    """Start a service under a runner, at an address of its own."""
    (tmp_path / "sitecustomize.py").write_text(FAULTS)
    started = []

    def make(**environment: str) -> Server:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        started.append(
            launch(["sh", "-c", RUNNER], PORT=port, PYTHONPATH=f"{tmp_path}:{ROOT}", **environment)
        )
        return started[-1]

    yield make
    for server in started:
        server.stop()


def health(server: Server, status: int) -> dict:
    """Wait until the health check answers with this status."""
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        try:
            response = server.client.get("/api/health")
        except httpx.TransportError:  # between two processes
            continue
        if response.status_code == status:
            return response.json()
        time.sleep(0.02)
    raise AssertionError(f"no {status} within {START_SECONDS} s; {server.log[-3:]}")


def assert_told_to_retry(response: httpx.Response) -> None:
    assert (response.status_code, response.json()["status"]) == (503, 503)
    assert response.json()["detail"] == "The service restarts. Send the request again."
    assert int(response.headers["Retry-After"]) > 0


@pytest.mark.slow
def test_a_service_whose_thread_has_ended_is_restarted(launch_restarted):
    server = launch_restarted()
    with ThreadPoolExecutor() as clients:
        request = clients.submit(server.generate, prompt=ENDS)
        found = health(server, 503)
        assert (found["status"], found["reason"]) == ("unhealthy", "the thread that generates has ended")
        assert_told_to_retry(request.result())
    assert health(server, 200)["status"] == "healthy"
    assert f"ended with status {EXIT_STATUS}\n" in server.log
    assert server.generate().json()["frame_count"] == 12, "the request that is sent again"


@pytest.mark.slow
def test_a_service_with_a_stuck_job_is_restarted(launch_restarted):
    server = launch_restarted(STUCK_SECONDS="5")
    with ThreadPoolExecutor() as clients:
        requests = [clients.submit(server.generate, prompt=STUCK)]
        while not (jobs := server.client.get("/api/jobs").json()) or jobs[0]["state"] != "running":
            time.sleep(0.02)
        requests.append(clients.submit(server.generate))
        found = health(server, 503)
        assert (found["status"], found["reason"]) == ("unhealthy", "there has been no progress for 5 seconds")
        for request in requests:
            assert_told_to_retry(request.result())
    assert health(server, 200)["status"] == "healthy"
    assert f"ended with status {EXIT_STATUS}\n" in server.log
    forgotten = server.client.get(f"/api/jobs/{jobs[0]['id']}")
    assert (forgotten.status_code, forgotten.json()["detail"]) == (
        404,
        "No such job. A restart of the service forgets all jobs.",
    )
