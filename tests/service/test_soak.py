"""The service lives through damaged files and many requests at once, in steady memory.

SOAK_FILES and SOAK_REQUESTS set other numbers for a long run, which `-s` prints:

    SOAK_FILES=200 SOAK_REQUESTS=300 python -m pytest -s tests/service/test_soak.py
"""

import asyncio
import os
import shutil
import time
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.service import hostile_files
from tests.service.conftest import GENERATE, Server
from tests.service.health_probe import HealthProbe
from tests.service.soak_watch import Watch, resident_mib

FILES = int(os.environ.get("SOAK_FILES", "24"))
REQUESTS = int(os.environ.get("SOAK_REQUESTS", "40"))
EXPECTED = {200, 202, 403, 404, 413, 422, 499, 503}
PICTURES = {".png", ".jpg", ".gif", ".webp", ".mp4"}


@pytest.fixture(scope="module")
def soaked(launch, recording, tmp_path_factory) -> Server:
    shared = tmp_path_factory.mktemp("soaked")
    shutil.copy(recording(0.5), shared / "recording.wav")
    Image.new("RGB", (64, 64), "teal").save(shared / "portrait.png")
    temporary = str(tmp_path_factory.mktemp("temporary"))
    server = launch(SHARED_DIR=str(shared), TMPDIR=temporary, QUEUE_LENGTH="4", LONGEST_SECONDS="5")
    assert server.generate().status_code == 200, "networks are loaded before memory is measured"
    return server


def fields_of(server: Server, path: Path) -> dict:
    name = "image_path" if path.suffix in PICTURES else "audio_path"
    return server.request(**{name: path.name})


def test_hostile_files_are_refused_and_memory_stays_flat(soaked):
    statuses, memory = Counter(), []
    started = time.monotonic()
    with HealthProbe(soaked.url) as health, Watch(soaked, pause=0.1) as watch:
        for path in hostile_files.of_every_kind(Path(soaked.environment["SHARED_DIR"]), FILES):
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
    print(f"\n{len(memory)} files in {seconds:.0f} s: {dict(statuses)}; {slope:+.2f} MiB per file; {health}")
    assert statuses[422] > len(memory) / 4
    assert slope < 1
    assert max(watch.series["MiB with processes"]) < 3000
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

    with HealthProbe(soaked.url) as health:
        statuses = Counter(asyncio.run(send_all()))
    growth = resident_mib(soaked) - before
    seconds = time.monotonic() - started
    print(f"\n{REQUESTS} requests in {seconds:.0f} s: {dict(statuses)}; {growth:+.0f} MiB; {health}")
    assert set(statuses) <= EXPECTED
    assert statuses[503] > 0, "the queue is bounded"
    assert statuses[200] > 0
    assert growth < 150
    assert soaked.generate().status_code == 200
    left = [path for path in soaked.output.glob("2*") if not (path / "checks.json").exists()]
    assert left == []
