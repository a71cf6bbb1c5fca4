"""Dockerfile, compose file, nginx site and n8n workflow agree with the code, and run where possible."""

import json
import os
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path

import httpx
import pytest
import yaml

from talkinghead_lab.service.app import create_app
from talkinghead_lab.service.schemas import REQUEST_FIELDS, VideoAnswer
from talkinghead_lab.service.settings import PORT, ServiceSettings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "talkinghead_lab" / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((DEPLOY / "docker-compose.yml").read_text())
SITE = (DEPLOY / "nginx-site.conf").read_text()
WORKFLOW = json.loads((DEPLOY / "n8n-workflow.json").read_text())
VARIABLES = {name.upper() for name in ServiceSettings.model_fields}
OTHER_VARIABLES = {"PATH", "PYTHONUNBUFFERED", "HOME", "HF_HOME", "TORCHINDUCTOR_CACHE_DIR"}
ROUTES = set(create_app(ServiceSettings()).openapi()["paths"])
NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")


def test_dockerfile():
    environment = dict(
        re.findall(r"(\w+)=(\S+)", " ".join(re.findall(r"^ENV ((?:.*\\\n)*.*)", DOCKERFILE, re.M)))
    )
    assert set(environment) - OTHER_VARIABLES <= VARIABLES
    assert environment["PORT"] == re.search(r"^EXPOSE (\d+)", DOCKERFILE, re.M)[1] == str(PORT)
    assert (environment["SHARED_DIR"], environment["OUTPUT_DIR"]) == ("/data/shared", "/output")
    arguments = re.search(r"^ARG CUDA_IMAGE=(\S+)\nFROM \$\{CUDA_IMAGE\}", DOCKERFILE, re.M)
    assert re.fullmatch(r"nvidia/cuda:12\.8\.\d+-runtime-\w+\.04@sha256:[0-9a-f]{64}", arguments[1])
    assert (
        DOCKERFILE.count("--mount=type=cache,target=/root/.cache/pip") == DOCKERFILE.count("pip install") == 3
    )
    assert re.search(r"^USER (?!0|root)", DOCKERFILE, re.M)
    health = re.search(rf"http://127\.0\.0\.1:{PORT}(/[\w/-]+)", DOCKERFILE)
    assert "HEALTHCHECK" in DOCKERFILE
    assert health[1] in ROUTES
    assert "urlopen" in DOCKERFILE, "which fails for the 503 of an unhealthy service"
    copied = re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.M)
    for name in " ".join(copied).split():
        assert (ROOT / name).exists(), name
        assert f"!{name}" in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()


def test_compose():
    (service,) = [COMPOSE["services"]["infinitetalk-api"]]
    assert service["restart"] == "unless-stopped", "the service ends itself when it no longer serves jobs"
    assert service["ports"] == [f"{PORT}:{PORT}"]
    assert set(service["environment"]) <= VARIABLES
    promised = ("CKPT_DIR", "WAV2VEC_DIR", "INFINITETALK_DIR", "NUM_PERSISTENT_PARAM_IN_DIT", "MOTION_FRAME")
    assert {*promised, "SHARED_DIR", "OUTPUT_DIR", "TOKEN", "QUEUE_LENGTH", "IDLE_SECONDS"} <= set(
        service["environment"]
    )
    mounted = {
        volume.split(":")[-2 if volume.endswith(":ro") else -1]: volume for volume in service["volumes"]
    }
    assert mounted["/data/shared"] == "./shared:/data/shared"
    assert "/output" in mounted
    assert mounted["/weights"].endswith(":ro")
    for variable in ("CKPT_DIR", "WAV2VEC_DIR", "INFINITETALK_DIR"):
        assert service["environment"][variable].startswith("/weights/")
    named = {
        source for source in (volume.split(":")[0] for volume in service["volumes"]) if source[0].isalpha()
    }
    assert named == set(COMPOSE["volumes"])
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert (
        DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]
    ).resolve() == DEPLOY / "Dockerfile"
    assert set(service["build"]["args"]) <= set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.M))


def compose_client() -> list[str] | None:
    """`docker compose`, or the older standalone `docker-compose`."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if (
            shutil.which(command[0])
            and not subprocess.run([*command, "version"], capture_output=True).returncode
        ):
            return command
    return None


def test_docker_accepts_the_compose_file():
    command = compose_client()
    if command is None:
        pytest.skip("docker compose is not installed")
    done = subprocess.run(
        [*command, "--file", str(DEPLOY / "docker-compose.yml"), "config"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (service,) = yaml.safe_load(done.stdout)["services"].values()
    assert service["environment"]["SHARED_DIR"] == "/data/shared"


def test_nginx_site():
    assert f"server 127.0.0.1:{PORT};" in SITE
    timeouts = dict(re.findall(r"proxy_(connect|send|read)_timeout (\w+);", SITE))
    assert timeouts == {"connect": "600s", "send": "600s", "read": "600s"}
    assert "proxy_buffering off;" in SITE
    assert "proxy_request_buffering off;" in SITE


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def proxied(server, tmp_path):
    """The address of an nginx that runs the bundled site in front of the service."""
    if not NGINX:
        pytest.skip("nginx is not installed")
    port = free_port()
    site = SITE.replace("listen 80;", f"listen 127.0.0.1:{port};")
    site = site.replace(f"127.0.0.1:{PORT}", f"127.0.0.1:{server.port}")
    folders = "\n".join(
        f"{kind}_temp_path {tmp_path / kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    configuration = tmp_path / "nginx.conf"
    configuration.write_text(
        f"pid {tmp_path}/nginx.pid;\ndaemon off;\nerror_log {tmp_path}/error.log;\nevents {{}}\n"
        f"http {{\naccess_log {tmp_path}/access.log;\n{folders}\n{site}\n}}\n"
    )
    process = subprocess.Popen([NGINX, "-c", str(configuration), "-e", str(tmp_path / "error.log")])
    url = f"http://127.0.0.1:{port}"
    for _ in range(100):
        try:
            assert httpx.get(f"{url}/api/health").status_code == 200
            break
        except httpx.TransportError:
            assert process.poll() is None, (tmp_path / "error.log").read_text()
            time.sleep(0.05)
    yield url
    process.terminate()
    process.wait(10)


def test_nginx_proxies_a_generation_and_its_events(proxied, server):
    made = httpx.post(f"{proxied}/api/generate-video", json=server.request(), timeout=60)
    assert made.status_code == 200
    assert made.json()["metadata"]["checks"]["passed"]
    url = f"{proxied}/api/videos/" + "/".join(made.json()["video_path"].split("/")[-2:])
    assert httpx.get(url).content == Path(made.json()["video_path"]).read_bytes()

    name = server.submit(diffusion_steps=300).json()["id"]
    with httpx.stream("GET", f"{proxied}/api/jobs/{name}/events", timeout=30) as events:
        arrived = [time.monotonic() for line, _ in zip(events.iter_lines(), range(7), strict=False) if line]
    assert arrived[-1] - arrived[0] > 0.1, "events arrive as they are sent, not all at the end"
    server.client.delete(f"/api/jobs/{name}")


def test_a_client_that_disconnects_from_nginx_stops_its_run(proxied, server):
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{proxied}/api/generate-video", json=server.request(diffusion_steps=900), timeout=1.5)
    name = server.client.get("/api/jobs").json()[-1]["id"]
    assert server.wait_for(name, "stopped")["problem"]["status"] == 499


def node(kind: str) -> dict:
    (found,) = [node for node in WORKFLOW["nodes"] if node["type"] == f"n8n-nodes-base.{kind}"]
    return found


def test_n8n_workflow():
    call = node("httpRequest")["parameters"]
    host, path = re.fullmatch(r"http://([\w.-]+:\d+)(/.+)", call["url"]).groups()
    assert host == f"{next(iter(COMPOSE['services']))}:{PORT}"
    assert path in ROUTES
    assert call["method"] == "POST"
    assert call["options"]["timeout"] == 600_000
    sent = re.findall(r"(\w+): \$json\.body\.(\w+)", call["jsonBody"])
    assert [name for name, _ in sent] == [source for _, source in sent] == list(REQUEST_FIELDS)

    mapped = {item["name"]: item["value"] for item in node("set")["parameters"]["assignments"]["assignments"]}
    assert set(mapped) == {"final_video_url", *VideoAnswer.model_fields}
    assert all(f"$json.{name}" in value for name, value in mapped.items() if name != "final_video_url")
    assert "/api/videos/' + $json.video_path" in mapped["final_video_url"]


def test_n8n_workflow_responds_to_the_webhook_on_success_and_on_failure():
    def following(name: str) -> list[str]:
        outputs = WORKFLOW["connections"].get(name, {}).get("main", [])
        assert all(len(output) == 1 for output in outputs)
        return [output[0]["node"] for output in outputs]

    call = node("httpRequest")
    assert node("webhook")["parameters"]["responseMode"] == "responseNode"
    assert following(node("webhook")["name"]) == [call["name"]]
    assert call["onError"] == "continueErrorOutput"
    mapped, problem = following(call["name"])
    assert mapped == node("set")["name"]
    (response,) = following(mapped)
    kinds = {entry["name"]: entry["type"] for entry in WORKFLOW["nodes"]}
    assert kinds[response] == kinds[problem] == "n8n-nodes-base.respondToWebhook"
    assert response != problem
    assert following(response) == following(problem) == []
    assert len(kinds) == 5
