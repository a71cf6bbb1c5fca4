"""The smoke test passes on a working service and fails on any other."""

import os
import re
import subprocess
import sys

from tests.service.conftest import ROOT


def smoke(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "talkinghead_lab.service.smoke", *arguments]
    variables = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run(command, capture_output=True, text=True, env=variables, timeout=120)


def test_a_working_service_passes_and_all_checks_are_printed(server):
    files = ("--audio", "recording.wav", "--image", "portrait.png", "--prompt", "it's calm", "--steps", "1")
    done = smoke("--url", server.url, *files)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()[1:]
    assert len(lines) == 6
    assert all(re.match(r"ok   .+ \d+\.\d\d s  .+", line) for line in lines)
    assert "0.48 s, 32x32, 12 frames" in done.stdout
    assert "bytes" in lines[4]


def test_bad_input_fails(server):
    done = smoke("--url", server.url, "--audio", "nothing.wav", "--image", "portrait.png", "--prompt", "x")
    assert done.returncode == 1
    assert "FAIL video is made" in done.stdout
    assert "404" in done.stdout
    assert "Traceback" not in done.stderr


def test_no_service_at_the_address_fails():
    done = smoke(
        "--url", "http://127.0.0.1:9", "--audio", "a", "--image", "b", "--prompt", "c", "--wait", "0"
    )
    assert done.returncode == 1
    assert "FAIL service is healthy" in done.stdout


def test_the_token_is_sent(narrow_server):
    files = ("--audio", "recording.wav", "--image", "portrait.png", "--prompt", "x", "--steps", "1")
    assert smoke("--url", narrow_server.url, *files).returncode == 1
    assert smoke("--url", narrow_server.url, *files, TOKEN="a secret").returncode == 0
