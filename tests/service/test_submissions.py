"""`POST /api/jobs` and its neighbours: any field of the request, uploads, repeated requests, callbacks."""

import asyncio
import base64
import hashlib
import hmac
import io
import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest
from PIL import Image

from talkinghead_lab import GenerationParams
from talkinghead_lab.service.app import create_app
from talkinghead_lab.service.inputs import in_allowed_folders
from talkinghead_lab.service.jobs import QueuedJob
from talkinghead_lab.service.problems import Problem
from talkinghead_lab.service.settings import ServiceSettings
from talkinghead_lab.service.submissions import FIELDS, SERVICE_FIELDS, RepeatedRequests

SECRET = "a secret of both"
PARAMS = GenerationParams(image_path="/i", audio_path="/a")
SHORT = {"diffusion_steps": 1, "text_guide_scale": 1.0, "audio_guide_scale": 1.0}


@pytest.fixture(scope="module")
def server(launch):
    return launch(gated=True, CALLBACK_HOSTS="localhost", CALLBACK_SECRET=SECRET, LARGEST_MIB="1")


@pytest.fixture
def files(shared) -> dict:
    return {
        "image_path": ("me.png", (shared / "portrait.png").read_bytes()),
        "audio_path": ("me.wav", (shared / "recording.wav").read_bytes()),
    }


def post(server, path: str = "/api/jobs", headers: dict | None = None, **fields: object) -> httpx.Response:
    body = {"image_path": "portrait.png", "audio_path": "recording.wav"} | SHORT | fields
    return server.client.post(path, json=body, headers=headers)


def request_of(server, job: dict) -> GenerationParams:
    text = server.client.get(f"/api/jobs/{job['id']}/request").text
    path = server.output / "request-of-a-test.yaml"
    path.write_text(text)
    return GenerationParams.from_yaml(path)


def test_any_field_is_taken_and_text_becomes_its_type(server):
    sent = post(server, seed="7", crop="top", diffusion_steps="2", trim_last_chunk="true", max_frames="9")
    assert sent.status_code == 202, sent.text
    job = server.wait_for(sent.json()["id"], "finished")
    assert sent.headers["location"] == f"/api/jobs/{job['id']}"
    request = request_of(server, job)
    assert (request.seed, request.crop, request.diffusion_steps) == (7, "top", 2)
    assert (request.trim_last_chunk, request.max_frames) == (True, 9)
    assert job["result"]["frame_count"] == 9


@pytest.mark.parametrize("unset", [-1, "-1", None, ""])
def test_what_means_unset_is_left_out(server, unset):
    plain, given = (
        post(server, "/api/plan", max_frames=9),
        post(server, "/api/plan", seed=unset, max_frames=9),
    )
    assert given.status_code == 200, given.text
    assert given.json() == plain.json()
    job = post(server, seed=unset, max_frames=None if unset in (-1, "-1") else unset, prompt="").json()
    request = request_of(server, job)
    assert (request.seed, request.max_frames, request.prompt) == (42, None, "")
    server.client.delete(f"/api/jobs/{job['id']}")


def test_the_contract_takes_numbers_as_numbers_only(server):
    assert server.generate(seed="7").status_code == 422
    assert server.generate(seed=-1).status_code == 422
    assert server.generate(crop="top").status_code == 422


@pytest.mark.parametrize(
    ("fields", "status", "detail"),
    [
        ({"device": "cpu"}, 422, "`device` is set by the service"),
        ({"weights": "/etc"}, 422, "`weights` is set by the service"),
        ({"sed": 3}, 422, "seed"),
        ({"seed": "many"}, 422, "seed"),
        ({"image_path": None}, 422, "image_path"),
        ({"audio_path": "/etc/passwd"}, 403, "outside"),
        ({"second_audio_path": "/etc/passwd"}, 403, "outside"),
        ({"speaker_masks": ["/etc/passwd"]}, 403, "outside"),
        ({"speaker_masks": ["missing.png"]}, 404, "no such file"),
        ({"loras": [{"path": "/etc/passwd"}]}, 403, "outside the shared folder"),
        ({"loras": [{"path": "../portrait"}]}, 403, "outside the shared folder"),
        ({"image_path": [{"start": 0, "file": "/etc/passwd"}]}, 403, "outside"),
        ({"image_path": [{"start": 0, "file": "absent.png"}]}, 404, "no such file"),
        ({"image_path": [{"start": 1, "file": "portrait.png"}]}, 422, "must be 0 in the first entry"),
        ({"loras": 5}, 422, "`loras` is not valid"),
        ({"loras": True}, 422, "`loras` is not valid"),
        ({"loras": [{"path": "a\0.safetensors"}]}, 404, "no such file"),
        ({"callback_url": "http://example.com/"}, 422, "CALLBACK_HOSTS"),
        ({"callback_url": "ftp://localhost/"}, 422, "http or https"),
        ({"callback_url": 3}, 422, "text is needed"),
        ({"callback_url": []}, 422, "text is needed"),
    ],
)
def test_what_is_refused(server, fields, status, detail):
    for path in ("/api/jobs", "/api/plan") if "callback_url" not in fields else ("/api/jobs",):
        answer = post(server, path, **fields)
        assert answer.status_code == status, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        assert detail in answer.json()["detail"]


@pytest.mark.parametrize("path", ["loop", "loop/inside", "\ud800.safetensors"])
def test_a_path_of_a_lora_that_names_nothing_is_not_found(tmp_path, path):
    (tmp_path / "loop").symlink_to("loop")
    settings = ServiceSettings(shared_dir=tmp_path)
    with pytest.raises(Problem, match="no such file") as refused:
        in_allowed_folders(settings, {"loras": [{"path": path}]})
    assert refused.value.status == 404


def test_every_field_is_either_offered_or_set_by_the_service(server):
    schemas = server.client.get("/openapi.json").json()["components"]["schemas"]
    for name in ("JobRequest", "JobUpload"):
        assert set(schemas[name]["properties"]) == {*FIELDS, "callback_url"}
    assert set(FIELDS) | SERVICE_FIELDS == set(GenerationParams.model_fields)


def test_uploads_are_used_kept_with_the_run_and_removed_otherwise(server, files):
    sent = server.client.post(
        "/api/jobs", files=files, data={"diffusion_steps": "1", "seed": "3", "prompt": "a calm presenter"}
    )
    assert sent.status_code == 202, sent.text
    job = server.wait_for(sent.json()["id"], "finished")
    kept = server.output / ".uploads" / job["id"]
    assert {file.name for file in kept.iterdir()} == {"image_path.png", "audio_path.wav"}
    same = server.generate(seed=3).json()
    assert [job["result"][name] for name in ("frame_count", "resolution")] == [12, "32x32"]
    frames = [hashlib.sha256(_frames(result["video_path"])).hexdigest() for result in (job["result"], same)]
    assert frames[0] == frames[1], "a video of uploads is that of the same files in the shared folder"

    running = server.client.post("/api/jobs", files=files, data={"prompt": "hold at 1"}).json()["id"]
    server.wait_for(running, "running")
    waiting = server.client.post("/api/jobs", files=files).json()["id"]
    assert (server.output / ".uploads" / waiting).exists()
    for name in (waiting, running):
        server.client.delete(f"/api/jobs/{name}")
        server.wait_for(name, "stopped")
        assert not (server.output / ".uploads" / name).exists()

    bad = {**files, "image_path": ("me.png", b"no picture")}
    assert server.client.post("/api/jobs", files=bad).status_code == 422
    assert server.client.post("/api/plan", files=files).status_code == 200
    assert [folder.name for folder in (server.output / ".uploads").iterdir()] == [job["id"]]


def _frames(path: str) -> bytes:
    from talkinghead_lab.media.video import read_frames

    return b"".join(frames.tobytes() for frames in read_frames(path))


def test_masks_are_uploaded_in_their_order(server, files, shared):
    with Image.open(shared / "portrait.png") as portrait:
        size = portrait.size
    drawn = []
    for box in ((0, 0, size[0] // 2, size[1]), (size[0] // 2, 0, *size)):
        content, picture = io.BytesIO(), Image.new("L", size)
        picture.paste(255, box)
        picture.save(content, "png")
        drawn.append(("speaker_masks", ("mask.png", content.getvalue())))
    sent = server.client.post("/api/jobs", files=[*files.items(), *drawn], data={"diffusion_steps": "1"})
    assert sent.status_code == 202, sent.text
    job = server.wait_for(sent.json()["id"], "finished")
    kept = server.output / ".uploads" / job["id"]
    assert {"speaker_masks.0.png", "speaker_masks.1.png"} < {file.name for file in kept.iterdir()}
    paths = request_of(server, job).speaker_masks
    assert [path.rsplit("/")[-1] for path in paths] == ["speaker_masks.0.png", "speaker_masks.1.png"]
    for wrong, status, detail in (
        ([*drawn, drawn[0]], 422, "overlap"),
        ([drawn[0], ("speaker_masks", ("mask.png", b"no picture"))], 422, "cannot be read"),
    ):
        refused = server.client.post("/api/plan", files=[*files.items(), *wrong])
        assert refused.status_code == status, refused.text
        assert detail in refused.json()["detail"]
    text = server.client.post("/api/plan", files=files, data={"speaker_masks": "left.png"})
    assert (text.status_code, "JSON is needed" in text.json()["detail"]) == (422, True)


def test_a_dialogue_is_uploaded_with_a_file_per_segment(server, shared):
    image = {"image_path": ("me.png", (shared / "portrait.png").read_bytes())}
    sound = {f"segments.{number}": ("a.wav", (shared / "recording.wav").read_bytes()) for number in range(2)}
    segments = [{"speaker": 1, "start": 0, "end": 0.2}, {"speaker": 1, "start": 0.3}]
    data = {"audio_mix": "timeline", "segments": json.dumps(segments), "diffusion_steps": "1"}
    jobs = [
        server.client.post(
            "/api/jobs", files=image | sound, data=data, headers={"Idempotency-Key": "dialogue"}
        )
        for _ in range(2)
    ]
    assert [sent.status_code for sent in jobs] == [202, 202], jobs[0].text
    assert jobs[0].json()["id"] == jobs[1].json()["id"], "the same content"
    job = server.wait_for(jobs[0].json()["id"], "finished")
    kept = [part.file.rsplit("/")[-1] for part in request_of(server, job).segments]
    assert kept == ["segments.0.wav", "segments.1.wav"]
    for wrong, detail in (
        ({"segments": json.dumps(segments[:1])}, "`segments.1`: `segments` has no such segment"),
        (
            {"segments": json.dumps([segments[0] | {"file": "a.wav"}, segments[1]])},
            "`segments.0`: the segment has a",
        ),
        (
            {"segments": json.dumps([segments[0] | {"end": 60}, segments[1]])},
            "Segment 1 is longer than its recording",
        ),
    ):
        refused = server.client.post("/api/plan", files=image | sound, data=data | wrong)
        assert (refused.status_code, detail in refused.json()["detail"]) == (422, True), refused.text
    outside = [{"speaker": 1, "file": "/etc/passwd"}]
    refused = post(server, "/api/plan", audio_path=None, audio_mix="timeline", segments=outside)
    assert (refused.status_code, "outside" in refused.json()["detail"]) == (403, True)


def test_uploads_have_limits(server, files):
    large = {**files, "audio_path": ("me.wav", bytes(2**20 + 1))}
    assert server.client.post("/api/jobs", files=large).status_code == 413
    huge = {**files, "audio_path": ("me.wav", bytes(2**22))}
    answer = server.client.post("/api/jobs", files=huge)
    assert (answer.status_code, answer.headers["content-type"]) == (413, "application/problem+json")
    other = {**files, "prompt": ("prompt.txt", b"calm")}
    assert "cannot be a file" in server.client.post("/api/jobs", files=other).json()["detail"]
    assert server.client.post("/api/jobs", content=b"image_path=x").status_code == 415
    assert server.client.post("/api/jobs", content=b"[]", headers=JSON).status_code == 422
    for path in ("/api/jobs", "/api/plan", "/api/generate-video"):
        body = json.dumps(server.request(seed=1))[:-1] + ', "seed": 2}'
        twice = server.client.post(path, content=body, headers=JSON)
        assert (twice.status_code, "the key 'seed' is repeated" in twice.text) == (400, True)
    listed = server.generate(text_guide_scale=[1, 99])
    assert "`text_guide_scale.1`: Input should be less than or equal to 30" in listed.json()["detail"]
    assert server.client.post("/api/jobs", content=b"{", headers=JSON).status_code == 400
    uploads = server.client.post("/api/generate-video", files=large)
    assert uploads.status_code == 413, "only these paths take files"


JSON = {"Content-Type": "application/json"}


def test_slow_uploads_end(launch, files):
    server = launch(UPLOAD_SECONDS="1")

    def slowly() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="image_path"; filename="a.png"\r\n\r\n'
        time.sleep(3)
        yield b"late\r\n--x--\r\n"

    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    assert server.client.post("/api/jobs", content=slowly(), headers=headers).status_code == 408


def test_a_repeated_request_gives_the_same_job(server, files):
    key = {"Idempotency-Key": "one"}
    first, second = (post(server, headers=key) for _ in range(2))
    assert first.json()["id"] == second.json()["id"]
    assert second.headers["idempotency-replayed"] == "true"
    assert "idempotency-replayed" not in first.headers
    assert post(server, headers=key, seed=5).status_code == 422
    assert post(server).json()["id"] != first.json()["id"]

    key = {"Idempotency-Key": "two"}
    jobs = {server.client.post("/api/jobs", files=files, headers=key).json()["id"] for _ in range(2)}
    assert len(jobs) == 1
    changed = {**files, "audio_path": ("me.wav", files["audio_path"][1] + b"\0")}
    assert server.client.post("/api/jobs", files=changed, headers=key).status_code == 422
    assert post(server, headers={"Idempotency-Key": "x" * 201}).status_code == 422


def test_a_key_is_forgotten_with_its_job():
    """Otherwise the answer would lead to a job that is unknown."""
    jobs: dict[str, QueuedJob] = {}
    repeated = RepeatedRequests(jobs.get)
    for name in ("first", "second"):
        assert repeated.job("key", "content") is None
        jobs[name] = QueuedJob(id=name, params=PARAMS)
        repeated.remember("key", "content", jobs[name])
        assert repeated.job("key", "content") is jobs[name]
        del jobs[name]
    assert repeated.job("key", "other content") is None


@pytest.mark.parametrize("key", [None, "one", "each"])
def test_no_more_requests_wait_to_be_checked_than_have_a_place(tmp_path, monkeypatch, shared, key):
    """While the media of one are read, the others are refused at once."""
    settings = ServiceSettings(output_dir=tmp_path, shared_dir=shared, queue_length=1)
    app, gate = create_app(settings), threading.Event()
    monkeypatch.setattr(app.state.service.generator, "check", lambda *_: gate.wait(60))

    async def send_all() -> list[int]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            body = {"image_path": "portrait.png", "audio_path": "recording.wav"}
            keys = [key if key != "each" else f"key-{number}" for number in range(6)]
            headers = [{"Idempotency-Key": name} if name else None for name in keys]
            sent = [asyncio.create_task(client.post("/api/jobs", json=body, headers=h)) for h in headers]
            if key != "one":
                refused, _ = await asyncio.wait(sent, timeout=5)
                assert [task.result().status_code for task in refused] == [503] * 4
            gate.set()
            return sorted([answer.status_code for answer in await asyncio.gather(*sent)])

    statuses = asyncio.run(send_all())
    assert statuses == ([202] * 6 if key == "one" else [202] * 2 + [503] * 4)
    assert len(app.state.service.jobs.all()) == (1 if key == "one" else 2)


GUIDED = {"text_guide_scale": 2.0, "audio_guide_scale": 2.0}


def test_a_plan_says_what_would_be_generated(server):
    plan = post(server, "/api/plan", diffusion_steps=3, **GUIDED).json()
    assert plan["frame_size"] == [32, 32]
    assert plan["picture"] == [320, 320]
    assert plan["crop"] == [0, 0, 320, 320]
    assert (plan["frames"], plan["chunks"], plan["steps"]) == (12, 2, 6)
    assert (plan["forward_passes"], plan["skippable_passes"]) == (18, 0)
    cached = {"step_cache": "first_block", "step_cache_threshold": 0.1, "max_consecutive_skips": 1}
    plan_of_cached = post(server, "/api/plan", diffusion_steps=3, **GUIDED, **cached).json()
    assert (plan_of_cached["forward_passes"], plan_of_cached["skippable_passes"]) == (18, 6)
    for scales, status in (([1.0, 0.0], 200), ([1.0, 0.5, 0.2, 0.0], 422)):
        loras = [{"path": "sample:fast-lora", "scale": scales}]
        assert post(server, "/api/plan", diffusion_steps=3, loras=loras).status_code == status
    before = {folder.name for folder in server.output.iterdir()}
    assert post(server, "/api/plan").status_code == 200
    assert {folder.name for folder in server.output.iterdir()} == before


def test_finished_videos_are_listed_newest_first(server):
    first = server.wait_for(post(server, prompt="first").json()["id"], "finished")
    second = server.wait_for(post(server, prompt="second", seed=9).json()["id"], "finished")
    listed = server.client.get("/api/videos").json()
    assert [video["id"] for video in listed[:2]] == [second["id"], first["id"]]
    assert (listed[0]["prompt"], listed[0]["fields"]["seed"]) == ("second", 9)
    assert server.client.get(listed[0]["url"]).headers["content-type"] == "video/mp4"
    assert not SERVICE_FIELDS & set(listed[0]["fields"])
    assert server.client.get("/api/jobs/nothing/request").status_code == 404


@pytest.fixture
def receiver():
    """A server that refuses the first callback; yields its URL and what it received."""
    received: queue.Queue = queue.Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.put((dict(self.headers), body))
            self.send_response(503 if received.qsize() == 1 else 204)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://localhost:{server.server_port}/done", received
    server.shutdown()
    server.server_close()


def test_a_signed_callback_tells_of_the_end_and_is_sent_again(server, receiver):
    url, received = receiver
    job = post(server, callback_url=url).json()
    server.wait_for(job["id"], "finished")
    refused, (headers, body) = received.get(timeout=20), received.get(timeout=20)
    assert refused[1] == body
    told = json.loads(body)
    assert (told["id"], told["state"], told["result"]["frame_count"]) == (job["id"], "finished", 12)
    content = f"{job['id']}.{headers['Webhook-Timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(SECRET.encode(), content, hashlib.sha256).digest()).decode()
    assert headers["Webhook-Signature"] == f"v1,{expected}"
    assert headers["Webhook-Id"] == job["id"]
    assert abs(int(headers["Webhook-Timestamp"]) - time.time()) < 60


def test_left_over_uploads_go_at_the_start(launch, tmp_path):
    folder = tmp_path / ".uploads" / "20260101_120000_0123456789abcdef"
    folder.mkdir(parents=True)
    (folder / "audio_path.wav").write_bytes(b"left")
    launch(OUTPUT_DIR=str(tmp_path))
    assert not folder.exists()


def test_a_generated_client_submits_follows_and_uploads(server, tmp_path, files):
    (tmp_path / "openapi.json").write_text(server.client.get("/openapi.json").text)
    command = [sys.executable, "-m", "openapi_python_client", "generate", "--meta", "none"]
    command += ["--path", str(tmp_path / "openapi.json"), "--output-path", str(tmp_path / "head_client")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("image_path", "audio_path"):
        (tmp_path / files[name][0]).write_bytes(files[name][1])
    (tmp_path / "use.py").write_text(CLIENT)
    done = subprocess.run(
        [sys.executable, "use.py", server.url], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split() == ["finished", "12", "finished", "12"]


CLIENT = """
import sys, time
from head_client import Client
from head_client.api.default import show_job_api_jobs_job_id_get as show, submit_job_api_jobs_post as submit
from head_client.models import JobRequest, JobUpload
from head_client.types import File

client = Client(base_url=sys.argv[1])
by_name = JobRequest(image_path="portrait.png", audio_path="recording.wav", diffusion_steps=1)
upload = JobUpload(
    image_path=File(open("me.png", "rb"), "me.png", "image/png"),
    audio_path=File(open("me.wav", "rb"), "me.wav", "audio/wav"),
    diffusion_steps="1",
)
for body in (by_name, upload):
    job = submit.sync(client=client, body=body)
    while job.state in ("waiting", "running"):
        time.sleep(0.1)
        job = show.sync(job.id, client=client)
    print(job.state, job.result.frame_count)
"""
