"""`python -m talkinghead_lab.service.smoke`: one request against a running service, each check printed."""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from talkinghead_lab.service.settings import PORT

ANSWER_FIELDS = ["video_path", "duration_seconds", "resolution", "frame_count", "metadata"]


class Failed(Exception):
    """A check did not hold; the message says what was found."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every check in order; the exit status is 1 at the first that fails."""
    options = parse(arguments)
    print(f"{options.url}")
    state: dict[str, Any] = {}
    checks: list[tuple[str, Callable[[argparse.Namespace, dict[str, Any]], str]]] = [
        ("service is healthy", wait_for_health),
        ("video is made", generate),
        ("answer has its fields", look_at_answer),
        ("video passed its checks", look_at_checks),
        ("video can be fetched", fetch_video),
        ("service is still healthy", wait_for_health),
    ]
    for name, check in checks:
        started = time.perf_counter()
        try:
            found, passed = check(options, state), True
        except (Failed, URLError, HTTPException, OSError, ValueError, KeyError, TypeError) as error:
            found, passed = str(error) or type(error).__name__, False
        print(f"{'ok  ' if passed else 'FAIL'} {name:26} {time.perf_counter() - started:8.2f} s  {found}")
        if not passed:
            return 1
    return 0


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line as options."""
    parser = argparse.ArgumentParser(prog="python -m talkinghead_lab.service.smoke", description=__doc__)
    parser.add_argument("--url", default=f"http://127.0.0.1:{os.environ.get('PORT') or PORT}")
    parser.add_argument("--audio", required=True, help="recording, as the service sees it")
    parser.add_argument("--image", required=True, help="portrait, as the service sees it")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--steps", type=int, help="diffusion_steps; unset: the service's default")
    parser.add_argument("--wait", type=float, default=60, help="seconds to wait for health")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds to wait for the video")
    return parser.parse_args(arguments)


def call(options: argparse.Namespace, path: str, body: dict[str, Any] | None = None) -> bytes:
    """The body of an answer; the token comes from the variable TOKEN.

    Raises:
        Failed: the answer is a problem.
    """
    request = Request(options.url.rstrip("/") + path, json.dumps(body).encode() if body else None)
    request.add_header("Content-Type", "application/json")
    if token := os.environ.get("TOKEN"):
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urlopen(request, timeout=options.timeout if body else 60) as answer:
            return answer.read()
    except HTTPError as error:
        raise Failed(f"{error.code} {error.read().decode(errors='replace')[:300]}") from None


def wait_for_health(options: argparse.Namespace, state: dict[str, Any]) -> str:
    """Ask until the service answers, `wait` seconds at most."""
    until = time.monotonic() + options.wait
    while True:
        try:
            health = json.loads(call(options, "/api/health"))
        except (Failed, OSError) as error:
            if time.monotonic() > until:
                raise Failed(f"no answer: {error}") from None
            time.sleep(0.5)
            continue
        if health["status"] != "healthy":
            raise Failed(str(health))
        loaded = "loaded" if health["model_loaded"] else "not loaded yet"
        return f"version {health['version']}, GPU {health['gpu_available']}, model {loaded}"


def generate(options: argparse.Namespace, state: dict[str, Any]) -> str:
    """Send the request and wait for the video."""
    body = {"audio_path": options.audio, "image_path": options.image, "prompt": options.prompt}
    if options.steps:
        body["diffusion_steps"] = options.steps
    state["answer"] = json.loads(call(options, "/api/generate-video", body))
    return str(state["answer"].get("video_path"))


def look_at_answer(options: argparse.Namespace, state: dict[str, Any]) -> str:
    """The answer has the promised fields and its figures agree with each other."""
    answer = state["answer"]
    if list(answer) != ANSWER_FIELDS:
        raise Failed(f"fields {list(answer)}")
    if abs(answer["frame_count"] / 25 - answer["duration_seconds"]) > 1e-6:
        raise Failed(f"{answer['frame_count']} frames, {answer['duration_seconds']} s")
    return f"{answer['duration_seconds']:.2f} s, {answer['resolution']}, {answer['frame_count']} frames"


def look_at_checks(options: argparse.Namespace, state: dict[str, Any]) -> str:
    """No check of the service failed."""
    checks = dict(state["answer"]["metadata"]["checks"])
    passed = checks.pop("passed")
    found = ", ".join(f"{name}: {check['measured'] or 'not measured'}" for name, check in checks.items())
    if not passed:
        raise Failed(found)
    return found


def fetch_video(options: argparse.Namespace, state: dict[str, Any]) -> str:
    """The video comes over HTTP and is an mp4."""
    video = call(options, "/api/videos/" + "/".join(state["answer"]["video_path"].split("/")[-2:]))
    if video[4:8] != b"ftyp":
        raise Failed(f"{len(video)} bytes, not an mp4")
    return f"{len(video)} bytes"


if __name__ == "__main__":
    sys.exit(main())
