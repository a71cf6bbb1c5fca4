"""What a service under load holds, and what becomes of its jobs, seen from outside."""

import os
import statistics
import threading
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Self

import httpx
import psutil

from tests.service.conftest import Server

MIB = 2**20


def resident_mib(server: Server) -> float:
    """Memory of the service and of all its processes."""
    service = psutil.Process(server.process.pid)
    total = 0
    for process in (service, *service.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total / MIB


def size_of(folder: Path) -> tuple[int, int]:
    """Number and bytes of all files below a folder, some of which may be removed meanwhile."""
    number = size = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                size += os.lstat(f"{parent}/{name}").st_size
                number += 1
    return number, size


class Watch(threading.Thread):
    """Looks at a service every so often, until the block ends.

    Args:
        server: the service, with a TMPDIR of its own.
        pause: seconds between two looks.
    """

    def __init__(self, server: Server, pause: float) -> None:
        super().__init__(daemon=True)
        self.server, self.pause = server, pause
        self.temporary = Path(server.environment["TMPDIR"])
        self.series: dict[str, list[float]] = defaultdict(list)
        self.listed: dict[str, list[str]] = defaultdict(list)  # the states of each job, in order
        self._ended = threading.Event()
        self._client = httpx.Client(base_url=server.url, timeout=60)

    def run(self) -> None:
        """Look until the block ends, and once more then."""
        while not self._ended.wait(self.pause):
            self.look()
        self.look()

    def look(self) -> None:
        """Take one sample of what the service holds, and read its list of jobs."""
        service = psutil.Process(self.server.process.pid)
        children = service.children(recursive=True)
        temporary, output = size_of(self.temporary), size_of(self.server.output)
        sample = {
            "MiB": service.memory_info().rss / MIB,
            "MiB with processes": resident_mib(self.server),
            "open files": service.num_fds(),
            "threads": service.num_threads(),
            "processes": len(children),
            "temporary files": temporary[0],
            "files": output[0],
            "MiB of files": output[1] / MIB,
        }
        for name, value in sample.items():
            self.series[name].append(value)
        for job in self._client.get("/api/jobs").json():
            states = self.listed[job["id"]]
            if not states or states[-1] != job["state"]:
                states.append(job["state"])

    def growth(self, name: str) -> tuple[float, float]:
        """Medians early, after 20 to 30 % of the time, and in the last 10 %."""
        values = self.series[name]
        parts = values[len(values) // 5 : len(values) * 3 // 10 + 1], values[-len(values) // 10 :]
        return statistics.median(parts[0]), statistics.median(parts[1])

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()
        self._client.close()

    def __str__(self) -> str:
        facts = []
        for name, values in self.series.items():
            early, late = self.growth(name)
            facts.append(f"{name}: {early:.0f} early, {late:.0f} late, at most {max(values):.0f}")
        return "; ".join(facts)
