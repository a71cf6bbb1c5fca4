"""Malicious and malformed requests get a problem response that reveals nothing about the machine."""

import gzip
import json
import os
import shutil
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
import soundfile
from PIL import Image

from tests.service import hostile_files

VALID = {"audio_path": "recording.wav", "image_path": "portrait.png", "prompt": "a calm presenter"}
TELLTALES = ("Traceback", "talkinghead_lab/", "/tmp", "/usr", "/etc", 'File "', "pydantic.dev", "root:")


@pytest.fixture(scope="module")
def traps(shared, recording) -> None:
    """Files that no request may use, inside and outside the shared folder."""
    outside = shared.parent / "outside"
    outside.mkdir()
    (outside / "secret.wav").write_bytes(Path(recording(0.2)).read_bytes())
    (shared / "link.wav").symlink_to(outside / "secret.wav")
    (shared / "folder-link").symlink_to(outside)
    (shared / "root").symlink_to("/")
    (shared / "loop.wav").symlink_to("loop.wav")
    (shared / "dangling.wav").symlink_to("nothing.wav")
    (shared / "folder.wav").mkdir()
    os.mkfifo(shared / "pipe.wav")
    with (shared / "sparse.wav").open("wb") as file:
        file.truncate(2 * 2**30)
    (shared / "empty.wav").touch()
    (shared / "text.wav").write_text("not sound\n" * 100)
    (shared / "playlist.wav").write_text(f"#EXTM3U\n#EXTINF:1,\n{outside}/secret.wav\n#EXT-X-ENDLIST\n")
    (shared / "list.wav").write_text(f"ffconcat version 1.0\nfile '{outside}/secret.wav'\n")
    soundfile.write(shared / "long.wav", np.zeros(8000 * 3), 8000)
    soundfile.write(shared / "nan.wav", np.full(8000, np.nan, np.float32), 8000, subtype="FLOAT")
    (shared / "picture.svg").write_text(
        '<svg xmlns="http://www.w3.org/2000/svg"><image href="/etc/passwd"/></svg>'
    )
    (shared / "bomb.png").write_bytes(hostile_files.png(60_000, 60_000))
    (shared / "wide.png").write_bytes(hostile_files.png(9000, 9000))
    hostile_files.many_frames(shared / "frames.mp4", 60_000_000)
    hostile_files.video(shared / "aspect.mp4", 2000, 2, Fraction(300, 1))
    (shared / "cut.png").write_bytes((shared / "portrait.png").read_bytes()[:2000])
    Image.new("RGB", (2000, 2)).save(shared / "sliver.png")


def with_fields(**fields) -> bytes:
    return json.dumps(VALID | fields).encode()


def with_raw(name: str, literal: str) -> bytes:
    return json.dumps(VALID | {name: 0}).replace(f'"{name}": 0', f'"{name}": {literal}').encode()


PATHS = {
    "traversal": ("audio_path", "../outside/secret.wav", 403),
    "long traversal": ("audio_path", "../" * 40 + "etc/passwd", 403),
    "absolute": ("audio_path", "/etc/passwd", 403),
    "process": ("image_path", "/proc/self/environ", 403),
    "device": ("audio_path", "/dev/zero", 403),
    "terminal": ("image_path", "/dev/stdin", 403),
    "link": ("audio_path", "link.wav", 403),
    "link to a folder": ("audio_path", "folder-link/secret.wav", 403),
    "link to the root": ("image_path", "root/etc/passwd", 403),
    "home": ("audio_path", "~/x.wav", 404),
    "home of root": ("audio_path", "~root/x.wav", 404),
    "encoded": ("audio_path", "%2e%2e%2foutside%2fsecret.wav", 404),
    "backslashes": ("audio_path", "..\\outside\\secret.wav", 404),
    "url": ("audio_path", "http://127.0.0.1/secret.wav", 404),
    "file url": ("audio_path", "file:///etc/passwd", 404),
    "protocol": ("audio_path", "concat:recording.wav|/etc/passwd", 404),
    "sample traversal": ("image_path", "sample:../../../etc/passwd", 404),
    "loop of links": ("audio_path", "loop.wav", 404),
    "dangling link": ("audio_path", "dangling.wav", 404),
    "folder": ("audio_path", "folder.wav", 404),
    "pipe": ("audio_path", "pipe.wav", 404),
    "null byte": ("audio_path", "recording.wav\0.png", 404),
    "surrogate": ("audio_path", "\ud800.wav", 422),
    "long name": ("audio_path", "x" * 4000, 404),
    "too long name": ("audio_path", "x" * 5000, 422),
    "sparse file": ("audio_path", "sparse.wav", 413),
    "empty file": ("audio_path", "empty.wav", 422),
    "text": ("audio_path", "text.wav", 422),
    "playlist": ("audio_path", "playlist.wav", 422),
    "list of files": ("audio_path", "list.wav", 422),
    "long recording": ("audio_path", "long.wav", 413),
    "NaN samples": ("audio_path", "nan.wav", 422),
    "svg": ("image_path", "picture.svg", 422),
    "bomb": ("image_path", "bomb.png", 413),
    "many pixels": ("image_path", "wide.png", 413),
    "truncated image": ("image_path", "cut.png", 422),
    "60 million frames": ("image_path", "frames.mp4", 422),
    "pixels of 300 to 1": ("image_path", "aspect.mp4", 422),
    "sliver": ("image_path", "sliver.png", 422),
    "recording as image": ("image_path", "recording.wav", 422),
    "image as recording": ("audio_path", "portrait.png", 422),
}
BODIES = {
    "nothing": (b"", 422),
    "not json": (b"{", 400),
    "not utf-8": (b'{"prompt": "\xff\xfe"}', 400),
    "null": (b"null", 422),
    "list": (b"[]", 422),
    "string": (b'"x"', 422),
    "nested": (b"[" * 30_000 + b"]" * 30_000, (400, 422)),
    "large": (b" " * 1_000_000, 413),
    "no fields": (b"{}", 422),
    "unknown field": (with_fields(device="cuda"), 422),
    "checkpoint": (with_fields(ckpt_dir="/etc"), 422),
    "prompt too long": (with_fields(prompt="x" * 2001), 422),
    "prompt is a number": (with_fields(prompt=1), 422),
    "path is a list": (with_fields(audio_path=["recording.wav"]), 422),
    "path is empty": (with_fields(audio_path=""), 422),
    "unknown resolution": (with_fields(resolution="8k"), 422),
    "NaN": (with_raw("text_guide_scale", "NaN"), (400, 422)),
    "infinity": (with_raw("audio_guide_scale", "-Infinity"), (400, 422)),
    "beyond float": (with_raw("text_guide_scale", "1e999"), 422),
    "beyond int": (with_raw("seed", "9" * 100), 422),
    "digits": (with_raw("seed", "9" * 60_000), (400, 422)),
    "negative seed": (with_fields(seed=-1), 422),
    "fractional steps": (with_fields(diffusion_steps=1.5), 422),
    "no steps": (with_fields(diffusion_steps=0), 422),
    "a billion steps": (with_fields(diffusion_steps=10**9), 422),
    "text for a number": (with_fields(diffusion_steps="40"), 422),
    "boolean for a number": (with_fields(seed=True), 422),
    "text for a boolean": (with_fields(use_color_correction="yes"), 422),
    "overlap frames that are not 4n + 1": (with_fields(motion_frame=6), 422),
    "overlap longer than the chunk": (with_fields(motion_frame=85), 422),
}
CALLS = {
    "put": ("PUT", "/api/generate-video", 405),
    "get": ("GET", "/api/generate-video", 405),
    "no such page": ("GET", "/admin", 404),
    "no such job": ("DELETE", "/api/jobs/x", 404),
    "job traversal": ("GET", "/api/jobs/..%2f..%2fetc%2fpasswd", 404),
    "video traversal": ("GET", "/api/videos/..%2f..%2fetc/passwd", 404),
    "video of the folder": ("GET", "/api/videos/.runs/x.mp4", 404),
    "header with a long token": ("GET", "/api/jobs/" + "x" * 30_000, 404),
}


def assert_rejected(server, response: httpx.Response, status: int | tuple[int, ...]) -> None:
    assert response.status_code in (status if isinstance(status, tuple) else (status,)), response.text
    assert response.headers["Content-Type"] == "application/problem+json"
    problem = response.json()
    assert list(problem) == ["type", "title", "status", "detail"]
    assert problem["status"] == response.status_code
    assert len(problem["detail"]) > 5
    for telltale in (*TELLTALES, str(server.output.parent)):
        assert telltale not in response.text
    assert server.health()["status"] == "healthy"
    assert server.process.poll() is None


@pytest.fixture(scope="module")
def target(narrow_server, traps):
    return narrow_server


@pytest.mark.parametrize("name", PATHS)
def test_paths(target, name):
    field, value, status = PATHS[name]
    body = json.dumps(VALID | {field: value})
    response = target.client.post("/api/generate-video", content=body, headers=JSON)
    assert_rejected(target, response, status)
    assert value not in response.text


JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize("name", BODIES)
def test_bodies(target, name):
    body, status = BODIES[name]
    assert_rejected(target, target.client.post("/api/generate-video", content=body, headers=JSON), status)


@pytest.mark.parametrize("name", CALLS)
def test_calls(target, name):
    method, path, status = CALLS[name]
    assert_rejected(target, target.client.request(method, path), status)


def test_an_unknown_field_is_told_from_the_nearest_known_one(target):
    body = with_fields(difusion_steps=4)
    response = target.client.post("/api/generate-video", content=body, headers=JSON)
    assert_rejected(target, response, 422)
    assert "Did you mean `diffusion_steps`?" in response.json()["detail"]


def test_a_body_of_another_content_type_is_rejected(target):
    response = target.client.post(
        "/api/generate-video", content=with_fields(), headers={"Content-Type": "text/xml"}
    )
    assert_rejected(target, response, (415, 422))


@pytest.mark.parametrize("path", ["/api/generate-video", "/api/jobs", "/api/plan"])
@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "br", "deflate, gzip", "identity, gzip"])
def test_a_compressed_body_is_refused_and_not_misread(target, path, encoding):
    for kind in ("application/json", "multipart/form-data; boundary=x"):
        headers = {"Content-Type": kind, "Content-Encoding": encoding}
        response = target.client.post(path, content=gzip.compress(with_fields()), headers=headers)
        assert_rejected(target, response, 415)
        assert "compressed" in response.json()["detail"]
        assert response.headers["Accept-Encoding"] == "identity"
    plain = {"Content-Type": "application/json", "Content-Encoding": "identity"}
    assert target.client.post("/api/plan", content=with_fields(), headers=plain).status_code == 200


def test_a_clock_that_lies_does_not_shorten_a_recording(target, shared):
    if not shutil.which("ffmpeg"):
        pytest.skip("ffmpeg is not installed")
    soundfile.write(shared / "tone.wav", np.sin(np.arange(8000 * 6) / 10), 8000)
    hostile_files.with_timescale(shared / "tone.wav", shared / "clock.m4a")
    assert_rejected(target, target.generate(audio_path="clock.m4a"), 413)


def test_claims_of_an_index_take_little_memory(target, shared):
    """Of 6 at once, each would take 2.1 GB."""
    service, peak, ended = psutil.Process(target.process.pid), [0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            for process in service.children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    peak[0] = max(peak[0], process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with ThreadPoolExecutor(6) as clients:
        answers = list(clients.map(lambda _: target.generate(image_path="frames.mp4"), range(6)))
    ended.set()
    watcher.join()
    assert {answer.status_code for answer in answers} <= {422, 503}
    assert peak[0] < 2**30


def head_of(target, length: int) -> bytes:
    return (
        f"POST /api/generate-video HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer a secret\r\n"
        f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


def test_a_slow_body_times_out(target):
    with socket.create_connection(("127.0.0.1", target.port)) as connection:
        connection.sendall(head_of(target, 1000))
        connection.settimeout(10)
        for _ in range(3):
            connection.sendall(b" ")
            time.sleep(0.1)
        assert connection.recv(1000).startswith(b"HTTP/1.1 408 ")
    assert target.health()["status"] == "healthy"


def test_many_unfinished_bodies_do_not_block_others(target):
    connections = [socket.create_connection(("127.0.0.1", target.port)) for _ in range(60)]
    for connection in connections:
        connection.sendall(head_of(target, 10_000))
    assert target.health()["status"] == "healthy"
    for connection in connections:
        connection.close()


@pytest.mark.parametrize("sent", [b"\x00" * 2000, b"GET / HTTP/9.9\r\n\r\n", b"A" * 200_000])
def test_invalid_http_closes_the_connection(target, sent):
    with socket.create_connection(("127.0.0.1", target.port)) as connection:
        connection.settimeout(10)
        connection.sendall(sent)
        assert b" 200 " not in connection.recv(1000)
    assert target.health()["status"] == "healthy"


def test_afterwards_a_video_can_be_made_and_no_unfinished_runs_remain(target):
    assert target.generate().status_code == 200
    unfinished = [path for path in target.output.glob("2*") if not (path / "run.json").exists()]
    assert unfinished == []


def test_the_processes_that_decode_are_started_again(target):
    """All of them are killed, as the machine does when its memory is full."""
    for process in psutil.Process(target.process.pid).children(recursive=True):
        process.kill()
    assert target.generate(audio_path="text.wav").status_code == 422
    assert target.generate().status_code == 200
