"""Dockerfile, compose file, nginx site, systemd unit and scripts agree with the code, and run."""

import os
import re
import shutil
import ssl
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import yaml

from talkinghead_lab.errors import InvalidRequest
from talkinghead_lab.service.app import create_app
from talkinghead_lab.service.settings import PORT, ServiceSettings
from tests.service.conftest import ENDLESS, ask_and_leave, free_port

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "talkinghead_lab" / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((DEPLOY / "docker-compose.yml").read_text())
SITE = (DEPLOY / "nginx-site.conf.template").read_text()
VARIABLES = {name.upper() for name in ServiceSettings.model_fields}
OTHER_VARIABLES = {"PATH", "PYTHONUNBUFFERED", "HOME", "TMPDIR", "HF_HOME", "TORCHINDUCTOR_CACHE_DIR"}
ROUTES = set(create_app(ServiceSettings()).openapi()["paths"])
NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


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
    assert set(service["environment"]) <= VARIABLES
    promised = ("CKPT_DIR", "WAV2VEC_DIR", "INFINITETALK_DIR", "NUM_PERSISTENT_PARAM_IN_DIT", "MOTION_FRAME")
    assert {*promised, "SHARED_DIR", "OUTPUT_DIR", "TOKEN", "QUEUE_LENGTH", "IDLE_SECONDS"} <= set(
        service["environment"]
    )
    mounted = {volume.removesuffix(":ro").rpartition(":")[2]: volume for volume in service["volumes"]}
    assert mounted["/data/shared"] == "./shared:/data/shared:ro"
    assert mounted["/output"] == "./output:/output"
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


def test_the_container_has_no_more_rights_than_it_needs():
    service = COMPOSE["services"]["infinitetalk-api"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"]
    assert {"mem_limit", "pids_limit"} <= set(service)
    assert all("size=" in folder for folder in service["tmpfs"]), "uploads must not fill the memory"
    # What the image lets the service write to on a read-only file system is a volume.
    written = [folder for folder in re.findall(r"[A-Z_]+=(/\S+)", DOCKERFILE) if folder.startswith("/cache")]
    assert written
    assert any(volume.endswith(":/cache") for volume in service["volumes"])


@pytest.mark.parametrize(
    ("published", "token", "starts"),
    [("127.0.0.1", "", True), ("0.0.0.0", "", False), ("0.0.0.0", "a secret", True), ("", "", False)],
)
def test_the_port_is_open_to_other_machines_only_with_a_token(monkeypatch, published, token, starts):
    service = COMPOSE["services"]["infinitetalk-api"]
    default = "${PUBLISHED_ADDRESS:-127.0.0.1}"
    assert service["ports"] == [f"{default}:{PORT}:{PORT}"]
    assert service["environment"]["PUBLISHED_ADDRESS"] == default
    # As `docker run --publish` starts the image, without PUBLISHED_ADDRESS.
    monkeypatch.setenv("HOST", re.search(r"HOST=(\S+)", DOCKERFILE)[1])
    monkeypatch.setenv("PUBLISHED_ADDRESS", published)
    monkeypatch.setenv("TOKEN", token)
    if starts:
        ServiceSettings.read()
        return
    with pytest.raises(InvalidRequest, match=r"other machines reach 0\.0\.0\.0: set TOKEN"):
        ServiceSettings.read()


def test_hadolint_accepts_the_dockerfile():
    # Old versions of Debian packages leave the mirrors; layers are kept apart for caching.
    command = ["hadolint", "--ignore", "DL3008", "--ignore", "DL3059", str(DEPLOY / "Dockerfile")]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(command, env=os.environ | {"PATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_systemd_accepts_the_unit(tmp_path):
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd is not installed")
    unit = (DEPLOY / "talkinghead-lab.service").read_text()
    command = re.search(r"^ExecStart=(\S+) -m (\S+)$", unit, re.M)
    assert command[2] == "talkinghead_lab.service"
    set_in_unit = {
        item.split("=")[0] for line in re.findall(r"^Environment=(.+)", unit, re.M) for item in line.split()
    }
    assert set_in_unit <= VARIABLES | OTHER_VARIABLES
    # The clone of the example is not here: this interpreter stands in for it.
    installed = tmp_path / "talkinghead-lab.service"
    installed.write_text(
        unit.replace(command[1], sys.executable).replace("=/opt/talkinghead_lab", f"={ROOT}")
    )
    checked = subprocess.run(["systemd-analyze", "verify", installed], capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")
    limited = ["systemd-analyze", "security", "--offline=true", "--threshold=40", installed]
    assert subprocess.run(limited, capture_output=True).returncode == 0, "exposure of at most 4.0 of 10"


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
    timeouts = dict(re.findall(r"\b(\w+)_timeout (\w+);", SITE))
    assert timeouts == dict.fromkeys(("proxy_connect", "proxy_send", "proxy_read", "send"), "600s")
    assert f"UPSTREAM=127.0.0.1:{PORT}" in SITE
    assert "proxy_buffering off;" in SITE
    assert "proxy_request_buffering off;" in SITE
    named = set(re.findall(r"\$\{(\w+)\}", SITE))
    assert (
        named
        == set(re.findall(r"([A-Z_]+)=", SITE))
        == {"SERVER_NAME", "TLS_CERTIFICATE", "TLS_KEY", "UPSTREAM"}
    )


@pytest.fixture
def proxied(server, tmp_path):
    """The address of an nginx that runs the bundled site in front of the service."""
    if not (NGINX and shutil.which("openssl")):
        pytest.skip("nginx or openssl is not installed")
    port, plain = free_port(), free_port()
    certificate, key = tmp_path / "site.crt", tmp_path / "site.key"
    subprocess.run([DEPLOY / "self-signed-certificate.sh", "localhost", certificate, key], check=True)
    # Only the known names: nginx's own variables start with a dollar sign as well.
    site = re.sub(
        r"\$\{(\w+)\}",
        lambda found: {
            "SERVER_NAME": "localhost", "TLS_CERTIFICATE": str(certificate), "TLS_KEY": str(key),
            "UPSTREAM": f"127.0.0.1:{server.port}",
        }[found[1]],
        SITE,
    )  # fmt: skip
    site = site.replace("listen 80;", f"listen 127.0.0.1:{plain};")
    site = site.replace("listen 443 ", f"listen 127.0.0.1:{port} ")
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
    client = httpx.Client(
        base_url=f"https://localhost:{port}",
        verify=ssl.create_default_context(cafile=certificate),
        timeout=60,
    )
    for _ in range(100):
        try:
            assert client.get("/api/health").status_code == 200
            break
        except httpx.TransportError:
            assert process.poll() is None, (tmp_path / "error.log").read_text()
            time.sleep(0.05)
    moved = httpx.get(f"http://127.0.0.1:{plain}/api/health")
    assert (moved.status_code, moved.headers["location"]) == (301, "https://127.0.0.1/api/health")
    yield client
    client.close()
    process.terminate()
    process.wait(10)


def test_nginx_proxies_a_generation_and_its_events(proxied, server):
    made = proxied.post("/api/generate-video", json=server.request())
    assert made.status_code == 200
    assert made.json()["metadata"]["checks"]["passed"]
    url = "/api/videos/" + "/".join(made.json()["video_path"].split("/")[-2:])
    assert proxied.get(url).content == Path(made.json()["video_path"]).read_bytes()

    name = server.submit(**ENDLESS).json()["id"]
    with proxied.stream("GET", f"/api/jobs/{name}/events", timeout=30) as events:
        arrived = [time.monotonic() for line, _ in zip(events.iter_lines(), range(7), strict=False) if line]
    assert arrived[-1] - arrived[0] > 0.1, "events arrive as they are sent, not all at the end"
    server.client.delete(f"/api/jobs/{name}")


@needs_curl
def test_nginx_speaks_http_2(proxied):
    command = ["curl", "--silent", "--insecure", "--http2", "--write-out", "%{http_version}"]
    done = subprocess.run(
        [*command, str(proxied.base_url.join("/api/health"))], capture_output=True, text=True
    )
    assert done.stdout.endswith("}2"), done


def test_a_client_that_disconnects_from_nginx_stops_its_run(proxied, server, tmp_path):
    trusted = ssl.create_default_context(cafile=tmp_path / "site.crt")
    name = ask_and_leave(server, base_url=proxied.base_url, verify=trusted)
    assert server.wait_for(name, "stopped")["problem"]["status"] == 499


def step_script(server, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {
        "API_URL": server.url,
        "SHARED": server.environment["SHARED_DIR"],
        "OUTPUT": str(server.output),
    }
    command = ["bash", DEPLOY / "test-step4-video-generation.sh", *map(str, arguments)]
    return subprocess.run(
        command, env=os.environ | variables | environment, capture_output=True, text=True, timeout=120
    )


@needs_curl
def test_the_script_of_step_four(server, tmp_path):
    shared = Path(server.environment["SHARED_DIR"])
    done = step_script(server, shared / "recording.wav", shared / "portrait.png", 'it\'s "calm"')
    assert done.returncode == 0, done.stdout + done.stderr
    lines = re.sub(r"\d+s$", "287s", done.stdout, count=1, flags=re.M).splitlines()
    place = lines.pop(5)
    assert lines == [
        "ℹ Step 4: InfiniteTalk Video Generation Test", "✓ Service is healthy", "✓ Request payload prepared",
        "⚠ This may take 3-5 minutes...", "✓ Video generation completed in 287s", "  Size: 0MB",
        "  Duration: 0.48s",
        "  Resolution: 32x32", "  Frames: 12", "✓ Step 4 (InfiniteTalk Video Generation): PASSED",
    ]  # fmt: skip
    video = Path(place.removeprefix("✓ Video file created: "))
    assert video.is_file()
    assert video.is_relative_to(server.output)

    files = (shared / "recording.wav", shared / "portrait.png", "calm")
    for arguments, environment, message in (
        (files[:2], {}, "usage"),
        (("/nothing.wav", *files[1:]), {}, "Audio file not found: /nothing.wav"),
        ((files[0], __file__, "calm"), {}, "Image file is not in the shared folder"),
        (files, {"API_URL": f"http://127.0.0.1:{free_port()}"}, "health check failed"),
        ((*files[:2], "x" * 2001), {}, "Video generation failed"),
    ):
        done = step_script(server, *arguments, **environment)
        assert done.returncode == 1
        assert done.stdout.splitlines()[-1].startswith(("✗", "  ")) and message in done.stdout, done.stdout
