"""The n8n workflow in a real n8n, with the real service and stand-ins for the services before it."""

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from talkinghead_lab.foundation.paths import SAMPLES_FOLDER
from talkinghead_lab.service.app import create_app
from talkinghead_lab.service.schemas import REQUEST_FIELDS
from talkinghead_lab.service.settings import PORT, ServiceSettings
from tests.service.conftest import ROOT, free_port
from tests.service.upstream import Upstream, serve

WORKFLOW = ROOT / "talkinghead_lab" / "deploy" / "n8n-workflow.json"
COMPOSE = yaml.safe_load(WORKFLOW.with_name("docker-compose.yml").read_text())
N8N = os.environ.get("N8N") or shutil.which("n8n")
needs_n8n = pytest.mark.skipif(N8N is None, reason="n8n is not installed (npm install --global n8n)")
SCRIPT = {"script": "Good evening. It's calm tonight.", "youtube_url": "https://example.com/watch?v=1"}


def test_every_step_leads_on_and_every_failure_to_the_answer_with_its_step():
    workflow = json.loads(WORKFLOW.read_text())
    nodes = {node["name"]: node for node in workflow["nodes"]}
    followed = {
        name: [[link["node"] for link in output] for output in outputs["main"]]
        for name, outputs in workflow["connections"].items()
    }
    ends = {"Respond", "Respond with problem"}
    assert followed.keys() | ends == nodes.keys()
    assert {target for outputs in followed.values() for output in outputs for target in output} == (
        nodes.keys() - {"Webhook"}
    )
    for name, node in nodes.items():
        # Waiting and choosing cannot fail; everything else that does says in which step.
        fails = name not in {"Webhook", "Answer", "Problem", *ends} and not node["type"].endswith(
            (".wait", ".if")
        )
        assert (node.get("onError") == "continueErrorOutput") == fails, name
        if fails:
            assert followed[name][1] == ["Problem"]
            assert name.partition(":")[0] in {
                "request",
                "reference",
                "yttools",
                "vibevoice",
                "comfyui",
                "infinitetalk",
            }
        for other in re.findall(r"\$(?:node\[|\()'([^']+)'", json.dumps(node["parameters"])):
            assert other in nodes


def test_the_workflow_calls_the_service_as_it_is():
    nodes = {node["name"]: node["parameters"] for node in json.loads(WORKFLOW.read_text())["nodes"]}
    code = nodes["request: check"]["jsCode"]
    assert f"http://{next(iter(COMPOSE['services']))}:{PORT}" in code
    passed_on = re.search(r"const fields = (\[.+?\]);", code)[1]
    assert set(re.findall(r"'(\w+)'", passed_on)) == set(REQUEST_FIELDS) - {
        "audio_path",
        "image_path",
        "prompt",
    }
    routes = create_app(ServiceSettings()).openapi()["paths"]
    for name, route in (
        ("infinitetalk: submit", "/api/generate-video"),
        ("infinitetalk: ask", "/api/jobs/{job_id}"),
    ):
        assert route in routes
        assert route.partition("{")[0] in nodes[name]["url"]
    answered = [item["name"] for item in nodes["Answer"]["assignments"]["assignments"]]
    assert answered == [
        *(
            "task_id",
            "final_video_path",
            "final_video_url",
            "duration",
            "resolution",
            "frame_count",
            "metadata",
        )
    ]


@pytest.fixture(scope="module")
def workflow_server(launch, recording, tmp_path_factory):
    """A service whose shared folder the workflow may write to."""
    folder = tmp_path_factory.mktemp("workflow_shared")
    return launch(SHARED_DIR=str(folder))


@pytest.fixture(scope="module")
def upstream(recording) -> Iterator[tuple[Upstream, str]]:
    stand_in = Upstream(Path(recording(0.5)), SAMPLES_FOLDER / "portrait.png")
    with serve(stand_in) as url:
        yield stand_in, url


@pytest.fixture(scope="module")
def n8n(workflow_server, upstream, tmp_path_factory) -> Iterator[str]:
    """The address of an n8n in which the workflow is imported and active."""
    home, port = tmp_path_factory.mktemp("n8n"), free_port()
    shared = workflow_server.environment["SHARED_DIR"]
    settings = {
        "N8N_USER_FOLDER": str(home), "N8N_PORT": str(port), "N8N_LISTEN_ADDRESS": "127.0.0.1",
        "N8N_DIAGNOSTICS_ENABLED": "false", "N8N_VERSION_NOTIFICATIONS_ENABLED": "false",
        "N8N_TEMPLATES_ENABLED": "false", "N8N_RESTRICT_FILE_ACCESS_TO": shared, "SHARED_DIR": shared,
        "N8N_BLOCK_ENV_ACCESS_IN_NODE": "false", "N8N_RUNNERS_BROKER_PORT": str(free_port()),
        "YTTOOLS_URL": upstream[1], "VIBEVOICE_URL": upstream[1], "COMFYUI_URL": upstream[1],
        "INFINITETALK_URL": workflow_server.url, "PUBLIC_URL": "https://video.example",
    }  # fmt: skip
    environment = os.environ | settings
    workflow = json.loads(WORKFLOW.read_text()) | {"id": "talkinghead00001"}
    imported = home / "workflow.json"
    imported.write_text(json.dumps(workflow))
    for command in (
        ("import:workflow", f"--input={imported}"),
        ("update:workflow", "--id=talkinghead00001", "--active=true"),
    ):
        subprocess.run([N8N, *command], env=environment, check=True, capture_output=True, timeout=120)
    with (home / "log").open("w") as log:
        process = subprocess.Popen([N8N, "start"], env=environment, stdout=log, stderr=log)
        address = f"http://127.0.0.1:{port}/webhook/talking-head"
        for _ in range(240):
            assert process.poll() is None, (home / "log").read_text()
            try:
                if httpx.post(address, json={}).status_code == 400:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.5)
        else:
            raise AssertionError((home / "log").read_text())
        yield address
        process.terminate()
        process.wait(30)


@pytest.fixture
def run(n8n, upstream) -> Callable[..., httpx.Response]:
    def send(failing: str = "", **body: object) -> httpx.Response:
        stand_in = upstream[0]
        stand_in.calls.clear()
        stand_in.questions, stand_in.failing = dict.fromkeys(stand_in.questions, 0), failing
        return httpx.post(n8n, json=body, timeout=180)

    return send


@needs_n8n
def test_from_an_address_and_a_script_to_a_video(run, upstream, workflow_server):
    answer = run(**SCRIPT, task_id="abc-1", diffusion_steps=1)
    assert answer.status_code == 200, answer.text
    result = answer.json()
    assert result["task_id"] == "abc-1"
    assert (result["duration"], result["frame_count"], result["resolution"]) == (0.48, 12, "32x32")
    video = Path(result["final_video_path"])
    assert video.is_file()
    assert result["final_video_url"] == f"https://video.example/api/videos/{video.parent.name}/{video.name}"

    shared = Path(workflow_server.environment["SHARED_DIR"])
    assert (shared / "voice_cloned_abc-1.wav").read_bytes() == upstream[0].voice
    assert (shared / "portrait_abc-1.png").read_bytes() == upstream[0].portrait
    (_, download), (_, speech), (_, graph) = upstream[0].calls
    assert (download["url"], download["start_time"], download["end_time"]) == (SCRIPT["youtube_url"], 40, 70)
    assert speech["text"].decode() == SCRIPT["script"]
    assert speech["voice_audio"] == upstream[0].voice
    assert SCRIPT["script"] in graph["2"]["inputs"]["text"]
    made = json.loads((video.parent / "run.json").read_text())["request"]
    assert (made["prompt"], made["diffusion_steps"]) == (SCRIPT["script"], 1)


@needs_n8n
def test_results_of_earlier_steps_can_be_given(run, upstream, workflow_server, recording):
    shared = Path(workflow_server.environment["SHARED_DIR"])
    shutil.copy(SAMPLES_FOLDER / "portrait.png", shared / "mine.png")
    shutil.copy(recording(0.5), shared / "mine.wav")
    answer = run(audio_path="mine.wav", image_path="mine.png", prompt="calm", diffusion_steps=1, seed=7)
    assert answer.status_code == 200, answer.text
    assert answer.json()["metadata"]["seed"] == "7"
    assert upstream[0].calls == []

    graph = {"9": {"class_type": "Mine", "inputs": {"text": "a {prompt}", "seed": "{seed}"}}}
    more = {"portrait_workflow": graph, "portrait_prompt": "sailor", "diffusion_steps": 1, "seed": 7}
    answer = run(reference_audio_path=str(shared / "mine.wav"), script="Ahoy.", **more)
    assert answer.status_code == 200, answer.text
    assert [name for name, _ in upstream[0].calls] == ["vibevoice", "comfyui"]
    assert upstream[0].calls[1][1]["9"]["inputs"] == {"text": "a sailor", "seed": 7}


@needs_n8n
@pytest.mark.parametrize(
    ("failing", "reason"),
    [
        ("yttools", "Video unavailable"),
        ("vibevoice", "CUDA out of memory"),
        ("comfyui", "ckpt_name not found"),
    ],
)
def test_an_error_names_its_step(run, failing, reason):
    answer = run(failing, **SCRIPT, task_id="failed")
    assert answer.status_code == 502, answer.text
    assert answer.json()["step"] == failing
    assert reason in answer.json()["detail"]


@needs_n8n
def test_errors_of_the_service_and_of_the_request(run):
    answer = run(audio_path="nothing.wav", image_path="nothing.png", prompt="calm")
    assert (answer.status_code, answer.json()["step"]) == (404, "infinitetalk"), answer.text
    assert answer.json()["detail"] == "`image_path`: no such file."
    answer = run(audio_path="nothing.wav", image_path="nothing.png", prompt="calm", seed=-5)
    assert (answer.status_code, answer.json()["step"]) == (422, "infinitetalk"), answer.text
    assert "seed" in answer.json()["detail"]
    broken = run(audio_path="mine.wav", image_path="mine.wav", prompt="a recording as portrait")
    assert (broken.status_code, broken.json()["step"]) == (422, "infinitetalk"), broken.text
    assert "The image cannot be read" in broken.json()["detail"]
    for body, word in (({}, "script"), ({"script": 3}, "script"), (SCRIPT | {"task_id": "../x"}, "task_id")):
        answer = run(**body)
        assert (answer.status_code, answer.json()["step"]) == (400, "request"), answer.text
        assert word in answer.json()["detail"]
