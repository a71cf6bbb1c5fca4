"""The video of a job is played while it is made, by clients of every kind."""

import itertools
import shutil
import socket
import time
from pathlib import Path

import av
import httpx
import psutil
import pytest

from tests.service.conftest import Server

STEPS = 15  # per chunk
HELD = f"hold at {4 * STEPS + 1}"  # in the last chunk


@pytest.fixture(scope="module")
def watched(launch, shared, recording) -> Server:
    """A service whose jobs have five chunks."""
    shutil.copy(recording(1.0), shared / "second.wav")
    return launch(gated=True)


def start(server: Server, **changes) -> str:
    accepted = server.submit(audio_path="second.wav", **({"diffusion_steps": STEPS} | changes))
    return accepted.json()["id"]


def video_of(job: str) -> str:
    return f"/api/jobs/{job}/video"


class Arriving:
    """A file for PyAV of what a response has received so far; waits for more."""

    def __init__(self, response: httpx.Response) -> None:
        self.blocks, self.received = response.iter_raw(), b""

    def read(self, size: int) -> bytes:
        while not self.received and (block := next(self.blocks, None)):
            self.received = block
        taken, self.received = self.received[:size], self.received[size:]
        return taken


def test_frames_are_decoded_before_the_job_is_done(watched):
    job = start(watched, prompt=HELD)
    with watched.client.stream("GET", video_of(job), headers={"Range": "bytes=0-"}) as response:
        assert response.status_code == 200, "its length is not known, so there are no ranges"
        assert response.headers["content-type"] == "video/mp4"
        assert response.headers["accept-ranges"] == "none"
        assert "content-length" not in response.headers
        with av.open(Arriving(response)) as container:
            frames = container.decode(video=0)
            first = [frame.time for frame in itertools.islice(frames, 5)]
            state = watched.job(job)
            watched.open_gate()
            rest = [frame.time for frame in frames]
    assert state["state"] == "running"
    assert state["step"] < state["steps"], "more is sampled"
    assert [*first, *rest] == pytest.approx([number / 25 for number in range(25)])
    finished = watched.wait_for(job, "finished")["result"]
    whole = watched.client.get(video_of(job))
    assert whole.content == Path(finished["video_path"]).read_bytes()
    part = watched.client.get(video_of(job), headers={"Range": "bytes=100-199"})
    assert (part.status_code, part.content) == (206, whole.content[100:200])
    assert part.headers["content-range"] == f"bytes 100-199/{len(whole.content)}"
    shutil.rmtree(Path(finished["video_path"]).parent)
    removed = watched.client.get(video_of(job))
    assert (removed.status_code, removed.json()["detail"]) == (404, "The video of this job was removed.")


def test_clients_that_leave_or_do_not_read_hold_up_nothing(watched):
    process = psutil.Process(watched.process.pid)
    job = start(watched)
    watched.wait_for(job, "running", step=STEPS)
    path, request = (
        watched.output / job / "chunks" / "growing.mp4",
        f"GET {video_of(job)} HTTP/1.1\r\nHost: localhost\r\n\r\n",
    )
    while not path.exists():
        time.sleep(0.05)
    clients = [socket.create_connection(("127.0.0.1", watched.port)) for _ in range(6)]
    for client in clients:
        client.sendall(request.encode())
        assert client.recv(12) == b"HTTP/1.1 200"

    def readers() -> int:
        return sum(file.path == str(path) for file in process.open_files() if file.mode.startswith("r"))

    assert readers() >= 6
    for client in clients[:3]:
        client.close()
    until = time.monotonic() + 20
    while readers() > 4 and time.monotonic() < until:
        time.sleep(0.05)
    assert readers() <= 4, "three clients, and the file that is written"
    watched.wait_for(job, "finished")
    for client in clients[3:]:
        client.close()


def test_a_job_that_does_not_finish_gives_its_problem(watched):
    running, waiting = start(watched), start(watched)
    with watched.client.stream("GET", video_of(running)) as response:
        received = response.iter_raw()
        next(received)
        assert watched.client.delete(f"/api/jobs/{running}").status_code == 202
        with pytest.raises(httpx.RemoteProtocolError):
            list(received)
    watched.client.delete(f"/api/jobs/{waiting}")
    for job in (running, waiting):
        watched.wait_for(job, "stopped")
        answer = watched.client.get(video_of(job))
        assert (answer.status_code, answer.headers["content-type"]) == (499, "application/problem+json")
        assert answer.json()["detail"] == "The run was stopped."
    assert watched.client.get(video_of("none")).status_code == 404
