"""Clients of a soak: people and programs that want videos, and a few that mean harm, all on the loopback."""

import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx

from tests.service.conftest import GENERATE, Server

ENDED = ("finished", "failed", "stopped")
JOB_SECONDS = 120.0  # in which a job ends, however busy the machine
PATIENCE_SECONDS = 120.0  # for a place in the queue
PAUSE = 0.1
HOSTILE_EVERY = 20
LENGTHY = {"diffusion_steps": 60}  # time to leave, or to stop it
SHORT = {"diffusion_steps": 1, "text_guide_scale": 1.0, "audio_guide_scale": 1.0}
MEDIA = {"image_path": "portrait.png", "audio_path": "recording.wav"}
HOST = b"Host: localhost\r\n"
# Sent as they are; each is answered with a 4xx or not at all.
HOSTILE_BYTES = {
    "half a header": b"GET /api/jobs HTTP/1.1\r\n" + HOST + b"X-Slow: ",
    "a huge header": b"GET /api/jobs HTTP/1.1\r\n" + HOST + b"X-Large: " + b"x" * 200_000 + b"\r\n\r\n",
    "many headers": b"GET /api/jobs HTTP/1.1\r\n" + HOST + b"X-Many: x\r\n" * 20_000 + b"\r\n",
    "half a body": b"POST /api/jobs HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n"
    b'Content-Length: 900\r\n\r\n{"image_path": "',
    "half an upload": b"POST /api/jobs HTTP/1.1\r\n"
    + HOST
    + b"Content-Type: multipart/form-data; boundary=x\r\n"
    b"Content-Length: 90000\r\n\r\n--x\r\n"
    b'Content-Disposition: form-data; name="image_path"; filename="a.png"\r\n\r\n' + b"y" * 30_000,
    "no HTTP": b"\x16\x03\x01\x02\x00\x01" * 400,
    "another host": b"GET /api/jobs HTTP/1.1\r\nHost: evil.example.com\r\n\r\n",
    "a negative length": b"POST /api/jobs HTTP/1.1\r\n" + HOST + b"Content-Length: -1\r\n\r\n",
}
HOSTILE_BODIES = {
    "no JSON": b'{"image_path": ',
    "deeply nested": b"[" * 20_000 + b"]" * 20_000,
    "a list": b"[]",
    "another type": json.dumps(MEDIA | {"diffusion_steps": [1]}).encode(),
    "a number beyond all": (json.dumps(MEDIA)[:-1] + ', "seed": ' + "9" * 5000 + "}").encode(),
    "infinity": (json.dumps(MEDIA)[:-1] + ', "text_guide_scale": Infinity}').encode(),
    "outside": json.dumps(MEDIA | {"audio_path": "../../../../etc/passwd"}).encode(),
    "a device": json.dumps(MEDIA | {"image_path": "/dev/zero"}).encode(),
    "a null byte": json.dumps(MEDIA | {"image_path": "portrait.png\0.wav"}).encode(),
    "a surrogate": b'{"image_path": "portrait.png", "audio_path": "\\ud800.wav"}',
    "a field of the service": json.dumps(MEDIA | {"device": "cuda"}).encode(),
    "a callback elsewhere": json.dumps(MEDIA | {"callback_url": "http://192.0.2.1/"}).encode(),
    "too large": b" " * 500_000,
}


class Receiver:
    """A server that counts callbacks by the job they tell of."""

    def __init__(self) -> None:
        self.told: Counter[tuple[str, str]] = Counter()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                job = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.told[job["id"], job["state"]] += 1
                self.send_response(204)
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://localhost:{self.server.server_port}/"

    def __enter__(self) -> "Receiver":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


@dataclass
class Clients:
    """What clients do, one request each, and what they saw.

    Args:
        server: the service.
        receiver: of callbacks.
        files: hostile files in the shared folder.
        states: the state in which each job ended, as its client was told.
        calls: jobs whose end is told to the receiver.
        statuses: of the answers to hostile requests.
        kinds: how often each kind of client came.
    """

    server: Server
    receiver: Receiver
    files: list[Path]
    states: dict[str, str] = field(default_factory=dict)
    calls: set[str] = field(default_factory=set)
    statuses: Counter[int] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    _half_open: list[socket.socket] = field(default_factory=list)

    def __post_init__(self) -> None:
        shared = Path(self.server.environment["SHARED_DIR"])
        self.uploads = {
            name: (f"mine{Path(path).suffix}", (shared / path).read_bytes()) for name, path in MEDIA.items()
        }
        self.url, self._local = self.server.url, threading.local()

    @property
    def client(self) -> httpx.Client:
        """The connections of this thread."""
        if not hasattr(self._local, "client"):
            self._local.client = httpx.Client(base_url=self.url, timeout=JOB_SECONDS)
        return self._local.client

    def come(self, number: int) -> None:
        """Be the client of this number."""
        chance = random.Random(number)
        is_hostile = number % HOSTILE_EVERY == HOSTILE_EVERY // 2
        if is_hostile:
            kinds = (self.damaged_file, self.damaged_upload, self.hostile_bytes, self.hostile_body)
        else:
            kinds = (
                *(self.wait, self.upload, self.be_called, self.leave, self.follow, self.submit, self.watch),
                *(self.stop, self.wait, self.repeat, self.upload, self.events, self.plan_first, self.submit),
            )
        kind = kinds[number // HOSTILE_EVERY % len(kinds)] if is_hostile else kinds[number % len(kinds)]
        self.kinds[kind.__name__] += 1
        kind(chance)

    def _sent(self, send: Callable[[], httpx.Response]) -> httpx.Response:
        """Send a request again while the queue is full."""
        until = time.monotonic() + PATIENCE_SECONDS
        while (response := send()).status_code == 503 and time.monotonic() < until:
            assert response.headers["Retry-After"]
            time.sleep(random.uniform(0.2, 0.8))
        return response

    def _ended(self, name: str) -> dict:
        until = time.monotonic() + JOB_SECONDS
        while (job := self.client.get(f"/api/jobs/{name}").json())["state"] not in ENDED:
            assert time.monotonic() < until, job
            time.sleep(PAUSE)
        self.states[name] = job["state"]
        return job

    def _finished(self, response: httpx.Response) -> None:
        assert response.status_code == 202, response.text
        job = self._ended(response.json()["id"])
        assert job["state"] == "finished", job
        assert job["result"]["frame_count"] > 0

    def _post(self, **fields: object) -> httpx.Response:
        return self._sent(lambda: self.client.post("/api/jobs", json=MEDIA | SHORT | fields))

    # ---- people and programs

    def wait(self, chance: random.Random) -> None:
        """Wait for the video, then load it."""
        body = self.server.request(seed=chance.randrange(1000))
        response = self._sent(lambda: self.client.post(GENERATE, json=body))
        assert response.status_code == 200, response.text
        self.states[response.headers["X-Job-Id"]] = "finished"
        url = "/api/videos/" + "/".join(response.json()["video_path"].split("/")[-2:])
        video = self.client.get(url)
        assert video.content[4:8] == b"ftyp", (video.status_code, video.text)

    def follow(self, chance: random.Random) -> None:
        """Ask for a job and poll it."""
        body, prefer = self.server.request(prompt="calm"), {"Prefer": "respond-async"}
        self._finished(self._sent(lambda: self.client.post(GENERATE, json=body, headers=prefer)))

    def submit(self, chance: random.Random) -> None:
        """Send fields as a workflow tool does."""
        self._finished(self._post(seed=str(chance.randrange(100)), crop="top", prompt=""))

    def upload(self, chance: random.Random) -> None:
        """Upload portrait and recording."""
        data = {name: str(value) for name, value in SHORT.items()}
        self._finished(self._sent(lambda: self.client.post("/api/jobs", files=self.uploads, data=data)))

    def be_called(self, chance: random.Random) -> None:
        """Let the service call back."""
        response = self._post(callback_url=self.receiver.url)
        self.calls.add(response.json()["id"])
        self._finished(response)

    def repeat(self, chance: random.Random) -> None:
        """Send a request twice, as after a lost answer."""
        key = {"Idempotency-Key": f"soak-{chance.random()}"}
        answers = [
            self._sent(lambda: self.client.post("/api/jobs", json=MEDIA | SHORT, headers=key))
            for _ in range(2)
        ]
        assert len({answer.json()["id"] for answer in answers}) == 1
        self._finished(answers[0])

    def watch(self, chance: random.Random) -> None:
        """Play the video while it is made; some close the player."""
        response, seen = self._post(), 0
        with self.client.stream("GET", f"/api/jobs/{response.json()['id']}/video") as video:
            assert video.status_code == 200
            for block in video.iter_raw(4096):
                seen += len(block)
                if chance.random() < 0.2:
                    break
        assert seen > 0
        self._finished(response)

    def events(self, chance: random.Random) -> None:
        """Follow the progress as events."""
        response = self._post()
        with self.client.stream("GET", f"/api/jobs/{response.json()['id']}/events") as events:
            lines = list(events.iter_lines())
        assert [line for line in lines if line.startswith("event: end")] == ["event: end"]
        self._finished(response)

    def plan_first(self, chance: random.Random) -> None:
        """Look around as the page does, then submit."""
        plan = self._sent(lambda: self.client.post("/api/plan", json=MEDIA | SHORT))
        assert plan.json()["frames"] == 5, plan.text
        for path in ("/", "/api/presets", "/api/videos", "/metrics", "/openapi.json"):
            assert self.client.get(path).status_code == 200, path
        self._finished(self._post())

    def leave(self, chance: random.Random) -> None:
        """Close the connection while the video is made."""
        body = json.dumps(self.server.request(**LENGTHY)).encode()
        head = f"POST {GENERATE} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        with socket.create_connection(("127.0.0.1", self.server.port)) as connection:
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            time.sleep(chance.uniform(0, 1.5))

    def stop(self, chance: random.Random) -> None:
        """Stop the job."""
        response = self._post(**LENGTHY)
        name = response.json()["id"]
        time.sleep(chance.uniform(0, 1))
        assert self.client.delete(f"/api/jobs/{name}").status_code == 202
        assert self._ended(name)["state"] in ("stopped", "finished")

    # ---- those that mean harm

    def _refused(self, response: httpx.Response) -> None:
        """Count a refusal; a damaged file may still be readable, and give a job."""
        self.statuses[response.status_code] += 1
        if response.status_code == 202:
            self._ended(response.json()["id"])
        else:
            assert 400 <= response.status_code < 500, response.text
            assert response.headers["Content-Type"] == "application/problem+json"

    def _file(self, chance: random.Random) -> tuple[str, Path]:
        path = chance.choice(self.files)
        return ("audio_path" if path.suffix in (".wav", ".flac", ".ogg", ".mp3") else "image_path"), path

    def damaged_file(self, chance: random.Random) -> None:
        """Name a damaged file of the shared folder."""
        name, path = self._file(chance)
        self._refused(self._post(**{name: path.name}))

    def damaged_upload(self, chance: random.Random) -> None:
        """Upload a damaged file."""
        name, path = self._file(chance)
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        files = self.uploads | {name: (path.name, content)}
        data = {name: str(value) for name, value in SHORT.items()}
        self._refused(self._sent(lambda: self.client.post("/api/jobs", files=files, data=data)))

    def hostile_body(self, chance: random.Random) -> None:
        """Send a body that is no request."""
        body, kind = chance.choice(list(HOSTILE_BODIES.values())), {"Content-Type": "application/json"}
        self._refused(self._sent(lambda: self.client.post("/api/jobs", content=body, headers=kind)))

    def hostile_bytes(self, chance: random.Random) -> None:
        """Send what is no request and keep the connection, until eight others have come."""
        connection = socket.create_connection(("127.0.0.1", self.server.port))
        connection.settimeout(5)
        try:
            connection.sendall(chance.choice(list(HOSTILE_BYTES.values())))
        except OSError:  # refused while it is sent
            self.statuses[0] += 1
        self._half_open.append(connection)
        if len(self._half_open) > 8:
            self._half_open.pop(0).close()
