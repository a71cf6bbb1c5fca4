"""A service that dies is started again; one that ends in order, or cannot start, is not."""

import signal
import subprocess
import sys
import time

import psutil
import pytest

from talkinghead_lab.service.supervisor import is_death
from tests.service.conftest import Server, free_port
from tests.service.test_watchdog import health

RUN = "import sys; from talkinghead_lab.service.supervisor import Supervisor\n"


def supervise(script: str, **given) -> subprocess.Popen:
    """Supervise a shell script without pauses."""
    command = [sys.executable, "-c", f"{RUN}sys.exit(Supervisor(['sh', '-c', {script!r}], 0.01).run())"]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **given)


def test_it_is_started_again_until_it_ends_in_order(tmp_path):
    runs = tmp_path / "runs"
    script = f"echo x >> {runs}; case $(wc -l < {runs}) in 1) exit 70;; 2) kill -9 $$;; 3) exit 1;; esac"
    supervisor = supervise(script)
    said = supervisor.communicate(timeout=30)[1]
    assert supervisor.returncode == 0
    assert runs.read_text() == "x\n" * 4
    for status, line in zip((70, -9, 1), said.splitlines(), strict=True):
        assert line == f"the service died (status {status}) and starts again"


@pytest.mark.parametrize("status", [0, 2, 3, -signal.SIGTERM, -signal.SIGINT])
def test_what_is_no_death(status):
    assert not is_death(status)


@pytest.mark.parametrize("status", [1, 70, -signal.SIGKILL, -signal.SIGSEGV, -signal.SIGABRT])
def test_what_is_a_death(status):
    assert is_death(status)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_the_service_ends_with_its_supervisor(tmp_path, number):
    ended, ready = tmp_path / "ended", tmp_path / "ready"
    traps = f"trap 'touch {ended}; exit' TERM INT"
    supervisor = supervise(f"{traps}; touch {ready}; while :; do sleep 0.05; done")
    until = time.monotonic() + 20
    while not ready.exists():
        assert time.monotonic() < until
        time.sleep(0.02)
    supervisor.send_signal(number)
    assert supervisor.wait(10) == (-number if number == signal.SIGKILL else 0)
    while not ended.exists():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.slow
def test_a_service_that_was_killed_answers_again(launch):
    command = (sys.executable, "-m", "talkinghead_lab.service.supervisor")
    server: Server = launch(command, PORT=str(free_port()))
    (service,) = psutil.Process(server.process.pid).children()
    service.kill()
    assert health(server, 200)["status"] == "healthy"
    (again,) = psutil.Process(server.process.pid).children()
    assert again.pid != service.pid
    server.client.close()
    server.process.terminate()
    assert server.process.wait(40) == 0
    assert not psutil.pid_exists(again.pid)
