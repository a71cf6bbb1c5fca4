"""`python -m talkinghead_lab.service.smoke`: generate one video on a running service and check it."""

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

from talkinghead_lab.foundation.command_line import CommandParser
from talkinghead_lab.service.settings import PORT

RESULT_FIELDS = ["video_path", "duration_seconds", "resolution", "frame_count", "metadata"]


class CheckFailed(Exception):
    """A check failed; the message is what it found."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks in order; stops at the first failure and returns exit status 1."""
    options = parse(arguments)
    print(options.url)
    state: dict[str, Any] = {}
    checks: list[tuple[str, Callable[[argparse.Namespace, dict[str, Any]], str]]] = [
        ("service is healthy", wait_for_health),
        ("video is made", generate),
        ("response has all fields", check_fields),
        ("video passed its checks", check_verdict),
        ("video can be fetched", fetch_video),
        ("service is still healthy", wait_for_health),
    ]
    for name, check in checks:
        started = time.perf_counter()
        try:
            found, passed = check(options, state), True
        except (CheckFailed, URLError, HTTPException, OSError, ValueError, KeyError, TypeError) as error:
            found, passed = str(error) or type(error).__name__, False
        print(f"{'ok  ' if passed else 'FAIL'} {name:26} {time.perf_counter() - started:8.2f} s  {found}")
        if not passed:
            return 1
    return 0


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = CommandParser(prog="python -m talkinghead_lab.service.smoke", description=__doc__)
    parser.add_argument(
        "--url", default=f"http://127.0.0.1:{os.environ.get('PORT') or PORT}", help="address of the service"
    )
    parser.add_argument("--audio", required=True, help="path of the recording on the service's machine")
    parser.add_argument("--image", required=True, help="path of the portrait on the service's machine")
    parser.add_argument("--prompt", required=True, help="description of the scene")
    parser.add_argument("--steps", type=int, help="diffusion_steps; unset: the service's default")
    parser.add_argument("--wait", type=float, default=60, help="seconds to wait until the service is healthy")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds to wait for the video")
    return parser.parse_args(arguments)


def call(options: argparse.Namespace, path: str, body: dict[str, Any] | None = None) -> bytes:
    """Send a request and return the body of the response; the token comes from the variable TOKEN.

    Raises:
        CheckFailed: the response is a problem.
    """
    request = Request(options.url.rstrip("/") + path, json.dumps(body).encode() if body else None)
    request.add_header("Content-Type", "application/json")
    if token := os.environ.get("TOKEN"):
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urlopen(request, timeout=options.timeout if body else 60) as response:
            content: bytes = response.read()
            return content
    except HTTPError as error:
        raise CheckFailed(f"{error.code} {error.read().decode(errors='replace')[:300]}") from None


def wait_for_health(options: argparse.Namespace, state: dict[str, Any]) -> str:
    """Poll the health endpoint for up to `wait` seconds."""
    until = time.monotonic() + options.wait
    while True:
        try:
            health = json.loads(call(options, "/api/health"))
        except (CheckFailed, OSError) as error:
            if time.monotonic() > until:
                raise CheckFailed(f"no response: {error}") from None
            time.sleep(0.5)
            continue
        if health["status"] != "healthy":
            raise CheckFailed(str(health))
        loaded = "loaded" if health["model_loaded"] else "not loaded yet"
        return f"version {health['version']}, GPU {health['gpu_available']}, model {loaded}"


def generate(options: argparse.Namespace, state: dict[str, Any]) -> str:
    """Send the request and wait for the video."""
    body = {"audio_path": options.audio, "image_path": options.image, "prompt": options.prompt}
    if options.steps:
        body["diffusion_steps"] = options.steps
    state["result"] = json.loads(call(options, "/api/generate-video", body))
    return str(state["result"].get("video_path"))


def check_fields(options: argparse.Namespace, state: dict[str, Any]) -> str:
    """Check that the response has all fields and that frame count and duration agree."""
    result = state["result"]
    if list(result) != RESULT_FIELDS:
        raise CheckFailed(f"fields {list(result)}")
    if abs(result["frame_count"] / 25 - result["duration_seconds"]) > 1e-6:
        raise CheckFailed(f"{result['frame_count']} frames, {result['duration_seconds']} s")
    return f"{result['duration_seconds']:.2f} s, {result['resolution']}, {result['frame_count']} frames"


def check_verdict(options: argparse.Namespace, state: dict[str, Any]) -> str:
    """Check that none of the service's own checks failed."""
    checks = dict(state["result"]["metadata"]["checks"])
    passed = checks.pop("passed")
    found = ", ".join(f"{name}: {check['measured'] or 'not measured'}" for name, check in checks.items())
    if not passed:
        raise CheckFailed(found)
    return found


def fetch_video(options: argparse.Namespace, state: dict[str, Any]) -> str:
    """Download the video and check that it is an mp4."""
    video = call(options, "/api/videos/" + "/".join(state["result"]["video_path"].split("/")[-2:]))
    if video[4:8] != b"ftyp":
        raise CheckFailed(f"{len(video)} bytes, not an mp4")
    return f"{len(video)} bytes"


if __name__ == "__main__":
    sys.exit(main())
