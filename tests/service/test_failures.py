"""The service recovers from a kill, a full disk, too little memory and a missing output folder."""

import resource

import psutil
import pytest
from PIL import Image

from talkinghead_lab.media import video
from tests.service.conftest import ENDLESS, Server


def files_of(server: Server) -> list[str]:
    return sorted(str(path.relative_to(server.output)) for path in server.output.rglob("*") if path.is_file())


def test_a_kill_leaves_no_partial_video_and_a_retry_succeeds(launch):
    server = launch()
    job = server.submit(**ENDLESS | {"diffusion_steps": 20}).json()["id"]
    server.wait_for(job, "running", step=22)  # the first chunk is finished
    server.kill()
    assert any("chunks/" in name for name in files_of(server)), "it was interrupted half way"
    assert [name for name in files_of(server) if "infinitetalk_" in name or name.endswith("run.json")] == []

    server.start()
    assert files_of(server) == [], "the interrupted run is removed"
    made = server.generate(diffusion_steps=20).json()
    assert video.probe(made["video_path"]).frame_count == made["frame_count"] == 12
    assert made["metadata"]["checks"]["passed"]


@pytest.fixture(scope="module")
def pressed(launch) -> Server:
    server = launch()
    assert server.generate().status_code == 200
    return server


def limit(server: Server, kind: int, most: int) -> None:
    resource.prlimit(server.process.pid, kind, (most, resource.RLIM_INFINITY))


def test_a_full_disk_is_507_until_there_is_space(pressed):
    """A limit on file sizes stands in for the full disk: the same system calls fail in the same way."""
    before = files_of(pressed)
    limit(pressed, resource.RLIMIT_FSIZE, 20_000)
    response = pressed.generate()
    assert (response.status_code, response.json()["status"]) == (507, 507)
    assert response.headers["Content-Type"] == "application/problem+json"
    assert "/" not in response.json()["detail"]
    assert files_of(pressed) == before, "the failed run leaves no files"
    assert pressed.health()["status"] == "healthy"
    limit(pressed, resource.RLIMIT_FSIZE, resource.RLIM_INFINITY)
    assert pressed.generate().status_code == 200


def test_too_little_memory_is_503_until_there_is_enough(pressed, shared):
    Image.new("RGB", (6000, 6000), "teal").save(shared / "teal.png")
    held = psutil.Process(pressed.process.pid).memory_info().vms
    limit(pressed, resource.RLIMIT_AS, held + 80 * 2**20)  # the image alone takes 108 MB
    response = pressed.generate(image_path="teal.png")
    limit(pressed, resource.RLIMIT_AS, resource.RLIM_INFINITY)
    assert response.status_code == 503, response.text
    assert int(response.headers["Retry-After"]) > 0
    assert "memory" in response.json()["detail"]
    health = pressed.health()
    assert (health["status"], health["model_loaded"]) == ("healthy", False), (
        "the model is unloaded to free memory"
    )
    assert pressed.generate(image_path="teal.png").status_code == 200


def test_a_missing_output_folder_is_500_without_its_path(pressed):
    away = pressed.output.rename(pressed.output.with_name("away"))
    pressed.output.write_text("not a folder")
    response = pressed.generate()
    pressed.output.unlink()
    away.rename(pressed.output)
    assert response.status_code == 500
    assert str(pressed.output.parent) not in response.text
    assert "Traceback" not in response.text
    assert pressed.generate().status_code == 200
