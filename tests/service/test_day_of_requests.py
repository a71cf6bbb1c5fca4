"""A day's worth of requests: no job is lost, the service holds no more at the end than near the beginning.

The day has 2,000 requests, one in twenty of them hostile, within SOAK_SECONDS:

    SOAK_JOBS=2000 SOAK_SECONDS=4500 python -m pytest -s tests/service/test_day_of_requests.py
"""

import os
import re
import shutil
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from tests.service import hostile_files
from tests.service.conftest import Server
from tests.service.health_probe import HealthProbe, percentile
from tests.service.soak_clients import ENDED, Clients, Receiver
from tests.service.soak_watch import Watch

JOBS = int(os.environ.get("SOAK_JOBS", "28"))
SECONDS = float(os.environ.get("SOAK_SECONDS", "600"))
AT_ONCE = 6
FILES = 60  # hostile ones
KEPT_MIB = 8
# What a large allocation may leave, and what the first hundred jobs add; a leak of 0.1 MiB a job exceeds it.
# Over the whole day, only caches that are full by a quarter of it remain.
GROWTH_MIB = 120 if JOBS < 1000 else 20


@pytest.fixture(scope="module")
def busy(launch, recording, tmp_path_factory) -> Server:
    shared = tmp_path_factory.mktemp("day")
    shutil.copy(recording(0.2), shared / "recording.wav")
    Image.new("RGB", (64, 64), "teal").save(shared / "portrait.png")
    server = launch(
        SHARED_DIR=str(shared),
        TMPDIR=str(tmp_path_factory.mktemp("temporary")),
        QUEUE_LENGTH=str(AT_ONCE - 2),
        LONGEST_SECONDS="5",
        BODY_SECONDS="3",
        KEEP_GIB=str(KEPT_MIB / 1024),
        CALLBACK_HOSTS="localhost",
        CALLBACK_SECRET="a secret of both",
    )
    assert server.generate().status_code == 200, "networks are loaded before memory is measured"
    return server


def test_no_job_is_lost_and_nothing_grows(busy):
    files = hostile_files.of_every_kind(Path(busy.environment["SHARED_DIR"]), FILES)
    until = time.monotonic() + SECONDS
    started = time.monotonic()

    def come(number: int) -> bool:
        if time.monotonic() > until:
            return False
        clients.come(number)
        return True

    with (
        Receiver() as receiver,
        Watch(busy, pause=min(2.0, JOBS / 100)) as watch,
        HealthProbe(busy.url) as health,
        ThreadPoolExecutor(AT_ONCE) as people,
    ):
        clients = Clients(busy, receiver, files)
        came = sum(people.map(come, range(JOBS)))
        wait_until_quiet(busy, receiver, clients)
    print(f"\n{came} requests in {time.monotonic() - started:.0f} s: {dict(clients.kinds)}")
    print(f"hostile: {dict(clients.statuses)}; {watch}; {health}")
    assert came == JOBS, f"of {JOBS} requests, {came} were sent within {SECONDS:g} s"
    assert_no_job_is_lost(busy, watch, clients)
    assert_nothing_grows(watch)
    assert percentile(health.seconds, 99) < 0.5


def wait_until_quiet(server: Server, receiver: Receiver, clients: Clients) -> None:
    """Wait for the jobs whose clients have left, and for callbacks under way."""
    until = time.monotonic() + 60
    while any(job["state"] not in ENDED for job in server.client.get("/api/jobs").json()):
        assert time.monotonic() < until
        time.sleep(0.2)
    while len(receiver.told) < len(clients.calls) and time.monotonic() < until:
        time.sleep(0.2)


def assert_no_job_is_lost(server: Server, watch: Watch, clients: Clients) -> None:
    """Log, list, clients, callbacks and metrics tell the same of each job that was accepted."""
    events = [event for event in server.events() if event["message"] in ("job accepted", "job ended")]
    accepted = [event["job"] for event in events if event["message"] == "job accepted"]
    ended = [(event["job"], event["state"]) for event in events if event["message"] == "job ended"]
    assert len(set(accepted)) == len(accepted)
    assert sorted(accepted) == sorted(name for name, _ in ended), "each ends exactly once"
    states = dict(ended)
    assert {name: seen[-1] for name, seen in watch.listed.items()} == states, "each is listed until its end"
    assert [seen for seen in watch.listed.values() if len(set(ENDED) & set(seen)) != 1] == []
    assert clients.states.items() <= states.items()
    # More than once where the receiver was slow: that is what the id in the call is for.
    assert set(clients.receiver.told) == {(name, states[name]) for name in clients.calls}
    counted = re.findall(r'talkinghead_jobs_total\{state="(\w+)"\} (\d+)', server.client.get("/metrics").text)
    assert {state: int(number) for state, number in counted} == Counter(states.values())
    assert Counter(states.values())["failed"] <= sum(clients.statuses.values())


def assert_nothing_grows(watch: Watch) -> None:
    """The last tenth of the time is like the third."""
    for name, most in {
        "MiB": GROWTH_MIB,
        "open files": 6,
        "threads": 4,
        "processes": 2,
        "temporary files": 2,
    }.items():
        early, late = watch.growth(name)
        assert late - early <= most, f"{name}: {early:.0f} early, {late:.0f} late"
    assert max(watch.series["MiB of files"]) < KEPT_MIB + 8, "finished runs, and those under way"
    assert watch.series["temporary files"][-1] <= 2
    assert max(watch.series["MiB with processes"]) < 4096
