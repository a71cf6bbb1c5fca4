"""Measures how long a service takes to answer `/api/health`, from a process that does nothing else.

A test's own process also plays the clients: threads of it would wait for each other and measure that.
"""

import http.client
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

PAUSE = 0.05  # seconds between two questions
TIMEOUT = 60.0


@dataclass
class HealthProbe:
    """Asks for health until the block ends; `seconds` then holds the time of every answer.

    Args:
        url: of the service.
        late: by how much each pause took longer than asked for: what the machine itself adds.
    """

    url: str
    seconds: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)

    def __enter__(self) -> "HealthProbe":
        command = [sys.executable, __file__, self.url]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_: object) -> None:
        output, _ = self.process.communicate()  # closes its input, which ends it
        assert self.process.returncode == 0, "health was not answered with 200"
        for line in output.splitlines():
            took, late = map(float, line.split())
            self.seconds.append(took)
            self.late.append(late)

    def __str__(self) -> str:
        return (
            f"health p50 {percentile(self.seconds, 50):.3f} s, p99 {percentile(self.seconds, 99):.3f} s, "
            f"max {max(self.seconds):.3f} s of {len(self.seconds)}; the machine adds p99 "
            f"{percentile(self.late, 99):.3f} s, max {max(self.late):.3f} s"
        )


def percentile(values: list[float], share: int) -> float:
    """The value below which `share` percent of the values lie."""
    return statistics.quantiles(values, n=100, method="inclusive")[share - 1]


def main() -> None:
    """Print the seconds of each answer, and by how much the pause before it was late."""
    import threading

    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    lines = []  # printed in the end: until then, nobody reads them
    connection = http.client.HTTPConnection(urlsplit(sys.argv[1]).netloc, timeout=TIMEOUT)
    while not ended.is_set():
        paused = time.perf_counter()
        time.sleep(PAUSE)
        started = time.perf_counter()
        connection.request("GET", "/api/health")
        response = connection.getresponse()
        response.read()
        assert response.status == 200, response.status
        lines.append(f"{time.perf_counter() - started} {started - paused - PAUSE}")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
