"""The service lives through damaged files and many requests at once, in steady memory.

SOAK_FILES and SOAK_REQUESTS set other numbers for a long run, which `-s` prints:

    SOAK_FILES=200 SOAK_REQUESTS=300 python -m pytest -s tests/service/test_soak.py
"""

import asyncio
import os
import shutil
import statistics
import threading
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
import soundfile
from PIL import Image

from tests.service import hostile_files
from tests.service.conftest import GENERATE, Server

FILES = int(os.environ.get("SOAK_FILES", "24"))
REQUESTS = int(os.environ.get("SOAK_REQUESTS", "40"))
EXPECTED = {200, 202, 403, 404, 413, 422, 499, 503}
PICTURES = {".png", ".jpg", ".gif", ".webp", ".mp4"}


@pytest.fixture(scope="module")
def soaked(launch, recording, tmp_path_factory) -> Server:
    shared = tmp_path_factory.mktemp("soaked")
    shutil.copy(recording(0.5), shared / "recording.wav")
    Image.new("RGB", (64, 64), "teal").save(shared / "portrait.png")
    server = launch(SHARED_DIR=str(shared), QUEUE_LENGTH="4", LONGEST_SECONDS="5")
    assert server.generate().status_code == 200, "networks are loaded before memory is measured"
    return server


def hostile(folder: Path) -> list[Path]:
    """Files of every kind, most of them mutations of real ones."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    sources = [folder / f"source{suffix}" for suffix in (".png", ".jpg", ".gif", ".webp")]
    for source in sources:
        noise.save(source)
    tone = 0.3 * np.sin(np.arange(8000) / 8)
    for suffix in (".wav", ".flac", ".ogg", ".mp3"):
        soundfile.write(folder / f"source{suffix}", tone, 8000)
        sources.append(folder / f"source{suffix}")
    sources.append(hostile_files.video(folder / "source.mp4", size=64, frames=5))
    made = [
        hostile_files.many_frames(folder / "frames.mp4", 60_000_000),
        hostile_files.video(folder / "aspect.mp4", 2000, 2, Fraction(300, 1)),
        hostile_files.animation(folder / "animation.gif", 50),
        folder / "bomb.png",
        folder / "empty.png",
        folder / "pipe.wav",
        folder / "link.png",
    ]
    (folder / "bomb.png").write_bytes(hostile_files.png(50_000, 50_000))
    (folder / "empty.png").touch()
    os.mkfifo(folder / "pipe.wav")
    (folder / "link.png").symlink_to("/etc/passwd")
    return made + hostile_files.mutations(0, sources, folder, FILES - len(made))


def fields_of(server: Server, path: Path) -> dict:
    name = "image_path" if path.suffix in PICTURES else "audio_path"
    return server.request(**{name: path.name})


def resident_mib(server: Server) -> float:
    """Memory of the service and of all its processes."""
    service = psutil.Process(server.process.pid)
    total = 0
    for process in (service, *service.children(recursive=True)):
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total / 2**20


class HealthWatch(threading.Thread):
    """Asks for health every 50 ms."""

    def __init__(self, server: Server):
        super().__init__()
        self.server, self.ended, self.seconds, self.peak = server, threading.Event(), [], 0.0

    def run(self) -> None:
        with httpx.Client(base_url=self.server.url, timeout=60) as client:
            while not self.ended.wait(0.05):
                started = time.perf_counter()
                assert client.get("/api/health").status_code == 200
                self.seconds.append(time.perf_counter() - started)
                self.peak = max(self.peak, resident_mib(self.server))

    def __enter__(self) -> "HealthWatch":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.join()

    def __str__(self) -> str:
        typical, worst = statistics.median(self.seconds), max(self.seconds)
        return f"health {typical:.3f} s, at worst {worst:.3f} s; peak {self.peak:.0f} MiB"


def test_hostile_files_are_refused_and_memory_stays_flat(soaked):
    statuses, memory = Counter(), []
    started = time.monotonic()
    with HealthWatch(soaked) as watch:
        for path in hostile(Path(soaked.environment["SHARED_DIR"])):
            response = soaked.client.post(
                GENERATE, json=fields_of(soaked, path), headers={"Prefer": "respond-async"}
            )
            statuses[response.status_code] += 1
            assert response.status_code in EXPECTED - {503}, (path.name, response.text)
            if response.status_code == 202:
                soaked.client.delete(f"/api/jobs/{response.json()['id']}")
                soaked.wait_for(response.json()["id"], "finished", "stopped", "failed")
            memory.append(resident_mib(soaked))
    later = memory[len(memory) // 3 :]
    slope = float(np.polyfit(range(len(later)), later, 1)[0])
    seconds = time.monotonic() - started
    print(f"\n{len(memory)} files in {seconds:.0f} s: {dict(statuses)}; {slope:+.2f} MiB per file; {watch}")
    assert statuses[422] > len(memory) / 4
    assert slope < 1
    assert watch.peak < 3000
    assert soaked.generate().status_code == 200


def test_many_requests_at_once_are_answered(soaked):
    files = sorted(Path(soaked.environment["SHARED_DIR"]).glob("*.*"))
    before = resident_mib(soaked)
    started = time.monotonic()

    async def send_all() -> list[int]:
        limits = httpx.Limits(max_connections=REQUESTS)
        async with httpx.AsyncClient(base_url=soaked.url, timeout=300, limits=limits) as client:
            bodies = [
                fields_of(soaked, files[number % len(files)]) if number % 2 else soaked.request()
                for number in range(REQUESTS)
            ]
            answers = await asyncio.gather(*(client.post(GENERATE, json=body) for body in bodies))
            return [answer.status_code for answer in answers]

    with HealthWatch(soaked) as watch:
        statuses = Counter(asyncio.run(send_all()))
    growth = resident_mib(soaked) - before
    seconds = time.monotonic() - started
    print(f"\n{REQUESTS} requests in {seconds:.0f} s: {dict(statuses)}; {growth:+.0f} MiB; {watch}")
    assert set(statuses) <= EXPECTED
    assert statuses[503] > 0, "the queue is bounded"
    assert statuses[200] > 0
    assert growth < 150
    assert soaked.generate().status_code == 200
    left = [path for path in soaked.output.glob("2*") if not (path / "checks.json").exists()]
    assert left == []
