"""The contract of the endpoints, on a real service."""

import json
import shutil
import signal
import time
from pathlib import Path

import httpx
import psutil
import pytest
import soundfile
import torch
from matplotlib import get_data_path
from prometheus_client.parser import text_string_to_metric_families

from talkinghead_lab import GenerationParams, __version__, generate
from talkinghead_lab.foundation.paths import local_file
from talkinghead_lab.media import video
from talkinghead_lab.runs.result import GenerationResult
from talkinghead_lab.weights.locating import EMBEDDED_WEIGHTS
from tests.service.conftest import ENDLESS, ask_and_leave

RESULT_FIELDS = ["video_path", "duration_seconds", "resolution", "frame_count", "metadata"]
CHECKS = [
    *("streams", "frame_count", "length", "not_black", "not_frozen", "mouth_moves_with_speech"),
    "no_warnings",
]


def test_it_starts_quickly_and_without_the_model(launch):
    # Not with coverage, which doubles the time of imports.
    server = launch(COVERAGE_PROCESS_CONFIG="", COVERAGE_PROCESS_START="")
    times = psutil.Process(server.process.pid).cpu_times()
    assert times.user + times.system < 5, "CPU seconds, so that a busy machine does not fail the test"
    assert server.health() == {
        "status": "healthy", "model_loaded": False, "gpu_available": False, "version": __version__
    }  # fmt: skip
    assert server.stop() == -signal.SIGTERM
    assert "shutdown complete" in "".join(server.log)


def test_the_video_is_the_same_as_from_generate(server, tmp_path):
    response = server.generate(seed=7)
    assert response.status_code == 200
    made = response.json()
    assert list(made) == RESULT_FIELDS
    checks = made["metadata"].pop("checks")
    assert made["metadata"].pop("warnings") == []
    path = server.output / response.headers["X-Job-Id"]
    assert GenerationResult.from_run(path).to_json() == made
    facts = video.probe(made["video_path"])
    assert (facts.width, facts.height, facts.frame_count) == (32, 32, 12)
    assert made["frame_count"] == 12
    assert made["resolution"] == "32x32"
    assert made["duration_seconds"] == facts.duration_seconds == 0.48
    assert [name for name in checks if name != "passed"] == CHECKS
    assert checks["passed"]
    assert checks["streams"]["measured"] == "h264+aac"
    assert checks["mouth_moves_with_speech"]["passed"] is None
    assert "photographs" in checks["mouth_moves_with_speech"]["reason"]

    request = GenerationParams.from_video(made["video_path"])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the server: the number of threads may change how sums are rounded
    try:
        again = generate(request, tmp_path / "run", show_progress=False)
    finally:
        torch.set_num_threads(threads)
    assert again.video_path.read_bytes() == Path(made["video_path"]).read_bytes()


@pytest.mark.skipif(
    not EMBEDDED_WEIGHTS.exists(), reason="the weights of the bundled model are not in this checkout"
)
def test_the_bundled_model_serves_if_no_released_weights_are_set(launch, shared):
    speech, rate = soundfile.read(local_file("sample:recording-2"), stop=int(1.2 * 16_000))
    soundfile.write(shared / "longer.wav", speech, rate)
    unset = ("CKPT_DIR", "WAV2VEC_DIR", "INFINITETALK_DIR", "FRAME_SIZE", "MOTION_FRAME")
    server = launch(**dict.fromkeys(unset, ""), CHUNK_FRAMES="33")
    response = server.generate(audio_path="longer.wav", image_path="sample:portrait", diffusion_steps=2)
    assert response.status_code == 200, response.text
    made = response.json()
    assert (made["resolution"], made["frame_count"]) == ("160x160", 30)
    assert made["metadata"]["motion_frame"] == "9"
    mouth = made["metadata"]["checks"]["mouth_moves_with_speech"]
    assert mouth["passed"] in (True, False)
    assert mouth["measured"].startswith("correlation")
    assert made["metadata"]["warnings"] == []
    shutil.copy(f"{get_data_path()}/sample_data/grace_hopper.jpg", shared / "photograph.jpg")
    response = server.generate(image_path="photograph.jpg", diffusion_steps=1)
    name, metadata = response.headers["X-Job-Id"], response.json()["metadata"]
    (warning,) = metadata["warnings"]
    assert "only drawn cartoon presenters" in warning
    assert metadata["checks"]["no_warnings"]["reason"] == warning
    assert server.job(name)["warnings"] == [warning]


def test_a_guidance_scale_may_be_a_schedule(server):
    answer = server.generate(diffusion_steps=2, text_guide_scale=[3, 1], audio_guide_scale=[2.5])
    assert answer.status_code == 200, answer.text
    request = GenerationParams.from_yaml(Path(answer.json()["video_path"]).with_name("request.yaml"))
    assert (request.text_guide_scale, request.audio_guide_scale) == ((3.0, 1.0), (2.5,))


def test_the_model_stays_loaded_for_the_next_request(server):
    server.generate()
    assert server.health()["model_loaded"] is True


def test_the_video_can_be_downloaded(server):
    path = server.generate().json()["video_path"]
    url = "/api/videos/" + "/".join(path.split("/")[-2:])
    assert server.client.get(url).content == Path(path).read_bytes()
    part = server.client.get(url, headers={"Range": "bytes=4-7"})
    assert (part.status_code, part.content) == (206, b"ftyp")


def test_inputs_may_be_absolute_paths_links_bundled_samples_or_earlier_videos(server, shared):
    made = server.generate(audio_path=str(shared / "recording.wav")).json()["video_path"]
    if not (shared / "linked.png").exists():
        (shared / "linked.png").symlink_to("portrait.png")
    response = server.generate(image_path="linked.png", audio_path=made)
    assert response.status_code == 200, response.text
    assert server.submit(image_path="sample:portrait").status_code == 202


def test_health_and_progress_respond_during_a_generation(server):
    job = server.submit(**ENDLESS)
    assert job.status_code == 202
    name = job.json()["id"]
    assert job.headers["Location"] == f"/api/jobs/{name}"
    seen = server.wait_for(name, "running", step=5)
    assert 0 < seen["step"] < seen["steps"]
    assert seen["steps"] % 1000 == 0
    assert seen["seconds_left"] > 0
    slowest = 0.0
    for _ in range(10):
        started = time.perf_counter()
        assert server.health()["status"] == "healthy"
        slowest = max(slowest, time.perf_counter() - started)
    assert slowest < 1
    assert server.client.delete(f"/api/jobs/{name}").status_code == 202
    assert server.wait_for(name, "stopped")["problem"]["status"] == 499
    assert not (server.output / name).exists()


def test_a_client_that_disconnects_stops_its_run(server):
    assert server.wait_for(ask_and_leave(server), "stopped")["problem"]["status"] == 499


def test_events_report_progress_until_the_end(server):
    name = server.submit(diffusion_steps=20).json()["id"]
    events = []
    with server.client.stream("GET", f"/api/jobs/{name}/events") as stream:
        assert stream.headers["Content-Type"].startswith("text/event-stream")
        for block in "".join(stream.iter_text()).strip().split("\n\n"):
            kind, data = block.splitlines()
            events.append((kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    assert [kind for kind, _ in events[:-1]] == ["progress"] * (len(events) - 1)
    assert len(events) >= 2
    steps = [job["step"] for _, job in events]
    assert steps == sorted(steps)
    kind, job = events[-1]
    assert kind == "end"
    assert job["state"] == "finished"
    assert job["step"] == job["steps"] == 40
    assert list(job["result"]) == RESULT_FIELDS


def test_requests_wait_in_order_in_a_bounded_queue(narrow_server):
    server = narrow_server
    first = server.submit(prompt="hold at 1").json()["id"]
    server.wait_for(first, "running", step=1)
    second = server.submit()
    assert (second.json()["state"], second.json()["position"]) == ("waiting", 1)
    third = server.generate()
    assert third.status_code == 503
    assert int(third.headers["Retry-After"]) > 0
    assert third.headers["Content-Type"] == "application/problem+json"
    stopped = server.client.delete(f"/api/jobs/{second.json()['id']}").json()
    assert stopped["state"] == "stopped", "immediately, because it was not running"
    fourth = server.submit().json()["id"]
    server.client.delete(f"/api/jobs/{first}")
    assert server.wait_for(first, "stopped")["ended"] <= server.wait_for(fourth, "finished")["started"]


def test_an_idle_service_unloads_the_model(narrow_server):
    assert narrow_server.generate().status_code == 200
    until = time.monotonic() + 20
    while narrow_server.health()["model_loaded"]:
        assert time.monotonic() < until
        time.sleep(0.1)
    assert narrow_server.generate().status_code == 200


@pytest.mark.parametrize("given", [None, "Bearer wrong", "Basic a secret", "Bearer", "Bearer a secret2"])
def test_requests_without_the_token_are_rejected(narrow_server, given):
    headers = {"Authorization": given} if given else {}
    for method, path in (("POST", "/api/generate-video"), ("GET", "/api/jobs"), ("GET", "/metrics")):
        response = httpx.request(method, narrow_server.url + path, headers=headers)
        assert response.status_code == 401
        assert response.headers["WWW-Authenticate"] == "Bearer"
        assert response.json()["status"] == 401
    assert httpx.get(narrow_server.url + "/api/health").status_code == 200


def test_prometheus_metrics(server):
    server.generate()
    families = {
        family.name: family for family in text_string_to_metric_families(server.client.get("/metrics").text)
    }
    (finished,) = [s.value for s in families["talkinghead_jobs"].samples if s.labels == {"state": "finished"}]
    frames = families["talkinghead_frames"].samples[0].value
    assert finished >= 1
    assert frames >= 12
    first = families["talkinghead_first_frame_seconds"].samples
    assert [sample.value for sample in first if sample.name.endswith("_count")] == [finished]
    assert families["talkinghead_healthy"].samples[0].value == 1
    assert families["talkinghead_model_loaded"].samples[0].value == 1
    assert families["talkinghead_jobs_running"].samples[0].value == 0
    posts = {"method": "POST", "path": "/api/generate-video", "status": "200"}
    assert [s for s in families["talkinghead_http_requests"].samples if s.labels == posts and s.value >= 1]


def test_openapi_describes_the_request_with_an_example(server):
    schema = server.client.get("/openapi.json").json()
    request = schema["components"]["schemas"]["VideoRequest"]
    defaults = {name: field["default"] for name, field in request["properties"].items() if "default" in field}
    assert request["required"] == ["audio_path", "image_path", "prompt"]
    assert defaults == {
        "resolution": "infinitetalk-480", "seed": 42, "diffusion_steps": 40, "text_guide_scale": 5.0,
        "audio_guide_scale": 4.0, "motion_frame": 9, "use_color_correction": True,
    }  # fmt: skip
    assert set(request["examples"][0]) == set(request["properties"])
    assert request["additionalProperties"] is False
    response = schema["components"]["schemas"]["VideoAnswer"]
    assert list(response["properties"]) == response["required"] == RESULT_FIELDS
    assert set(response["examples"][0]) == set(RESULT_FIELDS)


def test_every_line_of_the_log_is_json_with_time_and_level(server):
    server.generate()
    events = server.events()
    assert {"time", "level", "logger", "message"} <= set.intersection(*(set(event) for event in events))
    ended = [event for event in events if event["message"] == "job ended"][-1]
    assert ended["state"] == "finished"
    assert ended["seconds"] > 0
