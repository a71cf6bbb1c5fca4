"""Real services on the loopback interface, with tiny random networks."""

import asyncio
import json
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from talkinghead_lab.foundation.paths import SAMPLES_FOLDER

ROOT = Path(__file__).parents[2]
GENERATE = "/api/generate-video"
START_SECONDS = 60
# Hundreds of chunks: it outlasts any test, however fast the machine. Whoever asks for it stops it.
ENDLESS = {"audio_path": "minute.wav", "diffusion_steps": 1000}
# Python imports a module of the name `sitecustomize` before it runs a program. With this one, a job of the
# prompt "hold at 7" waits after its seventh step until the gate opens or the job is stopped.
GATE = """
import os
import time

from talkinghead_lab.service.jobs import QueuedJob

report = QueuedJob.report


def report_at_gate(job, progress):
    report(job, progress)
    while job.params.prompt == f"hold at {progress.steps_done}" and not os.path.exists(os.environ["GATE"]):
        if job.stop.is_set():
            break
        time.sleep(0.01)
    return report(job, progress)


QueuedJob.report = report_at_gate
"""


def free_port() -> int:
    """A port of the loopback interface that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class Server:
    """A service in its own process; `log` collects the lines of its log."""

    environment: dict[str, str]
    log: list[str] = field(default_factory=list)
    command: Sequence[str] = (sys.executable, "-m", "talkinghead_lab.service")

    def start(self) -> "Server":
        environment = {name: value for name, value in os.environ.items() if name != "TOKEN"}
        self.process = subprocess.Popen(
            self.command,
            env=environment
            | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PORT": "0"}
            | self.environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        address: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read_log, args=(address,), daemon=True).start()
        self.url = address.get(timeout=START_SECONDS)
        token = self.environment.get("TOKEN")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.client = httpx.Client(base_url=self.url, headers=headers, timeout=120)
        return self

    def _read_log(self, address: "queue.Queue[str]") -> None:
        for line in self.process.stderr:
            self.log.append(line)
            if found := re.search(r"running on (http://[\d.]+:\d+)", line):
                address.put(found[1])

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def output(self) -> Path:
        return Path(self.environment["OUTPUT_DIR"])

    def request(self, **changes) -> dict:
        fields = {"audio_path": "recording.wav", "image_path": "portrait.png", "prompt": "a calm presenter"}
        return fields | {"diffusion_steps": 1} | changes

    def generate(self, **changes) -> httpx.Response:
        return self.client.post(GENERATE, json=self.request(**changes))

    def submit(self, **changes) -> httpx.Response:
        """Request a video without waiting for it."""
        headers = {"Prefer": "respond-async"}
        return self.client.post(GENERATE, json=self.request(**changes), headers=headers)

    def open_gate(self) -> None:
        """Let a job go on that is held; the gate stays open."""
        Path(self.environment["GATE"]).touch()

    def health(self) -> dict:
        response = self.client.get("/api/health")
        assert response.status_code == 200
        return response.json()

    def job(self, name: str) -> dict:
        return self.client.get(f"/api/jobs/{name}").json()

    def wait_for(self, name: str, *states: str, step: int = 0, seconds: float = 60) -> dict:
        """Poll a job until it is in one of `states` and has reached `step`."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            job = self.job(name)
            if job["state"] in states and job["step"] >= step:
                return job
            time.sleep(0.05)
        raise AssertionError(f"{job} after {seconds} s; {self.log[-3:]}")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.client.close()

    def stop(self) -> int:
        self.client.close()
        self.process.terminate()
        return self.process.wait(timeout=30)

    def events(self) -> list[dict]:
        return [json.loads(line) for line in self.log]


def ask_and_leave(server: Server, **connection: Any) -> str:
    """Ask for a video that never ends, leave once it is being made, and give its job.

    Args:
        server: the service.
        connection: arguments of `httpx.AsyncClient`, if not straight to the service.
    """
    known = {job["id"] for job in server.client.get("/api/jobs").json()}

    async def ask() -> str:
        async with httpx.AsyncClient(**{"base_url": server.url, "timeout": 60} | connection) as client:
            answer = asyncio.create_task(client.post(GENERATE, json=server.request(**ENDLESS)))
            while True:
                jobs = (await client.get("/api/jobs")).json()
                for job in jobs:
                    if job["id"] not in known and job["step"]:
                        answer.cancel()
                        return job["id"]
                await asyncio.sleep(0.05)

    return asyncio.run(asyncio.wait_for(ask(), 60))


@pytest.fixture(scope="session")
def shared(tmp_path_factory, recording) -> Path:
    """A shared folder with a portrait, a recording of half a second, and one of a minute."""
    folder = tmp_path_factory.mktemp("shared")
    shutil.copy(recording(60.0), folder / "minute.wav")
    shutil.copy(SAMPLES_FOLDER / "portrait.png", folder)
    shutil.copy(recording(0.5), folder / "recording.wav")
    return folder


@pytest.fixture(scope="session")
def launch(checkpoint, shared, tmp_path_factory, process_coverage) -> Iterator[Callable[..., Server]]:
    """Start services, each with its own output folder, 32x32 frames, chunks of 9 and the given variables.

    Those with `gated=True` hold jobs; see `GATE`.
    """
    started: list[Server] = []

    def gate() -> dict[str, str]:
        folder = tmp_path_factory.mktemp("gate")
        (folder / "sitecustomize.py").write_text(GATE)
        return {"GATE": str(folder / "open"), "PYTHONPATH": f"{folder}:{ROOT}"}

    def make(command: Sequence[str] = Server.command, gated: bool = False, **environment: str) -> Server:
        folders = {
            name: str(checkpoint / name.lower()) for name in ("CKPT_DIR", "WAV2VEC_DIR", "INFINITETALK_DIR")
        }
        small = {"FRAME_SIZE": "32x32", "CHUNK_FRAMES": "9", "MOTION_FRAME": "5", "SHARED_DIR": str(shared)}
        output = {"OUTPUT_DIR": str(tmp_path_factory.mktemp("output"))}
        variables = folders | small | output | process_coverage | (gate() if gated else {}) | environment
        server = Server(variables, command=command).start()
        started.append(server)
        return server

    yield make
    for server in started:
        if server.process.poll() is None:
            try:
                server.stop()  # not killed: what it covered is written at its end
            except subprocess.TimeoutExpired:
                server.kill()


@pytest.fixture(scope="session")
def server(launch) -> Server:
    """A service with default limits."""
    return launch()


@pytest.fixture(scope="session")
def narrow_server(launch) -> Server:
    """A service with a token, room for one waiting request, and short time limits."""
    limits = {"QUEUE_LENGTH": "1", "IDLE_SECONDS": "1", "BODY_SECONDS": "1", "LONGEST_SECONDS": "2"}
    return launch(gated=True, TOKEN="a secret", **limits)
