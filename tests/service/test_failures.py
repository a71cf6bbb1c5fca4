"""What a machine does to a service: kills it, fills its disk, takes its memory; it lives on."""

import resource

import psutil
import pytest
from PIL import Image

from talkinghead_lab.media import video
from tests.service.conftest import Server


def files_of(server: Server) -> list[str]:
    return sorted(str(path.relative_to(server.output)) for path in server.output.rglob("*") if path.is_file())


def test_a_kill_leaves_no_partial_video_and_the_same_request_succeeds(launch):
    server = launch()
    job = server.submit(diffusion_steps=20).json()["id"]
    server.wait_for(job, "running", step=22)  # the first chunk is finished
    server.kill()
    assert any("chunks/" in name for name in files_of(server)), "it was cut off half way"
    assert [name for name in files_of(server) if "infinitetalk_" in name or name.endswith("run.json")] == []

    server.start()
    assert files_of(server) == [], "what was cut off is removed"
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


def test_a_full_disk_is_507_and_passes(pressed):
    """A limit on file sizes stands for the full disk: the same calls fail, in the same way."""
    before = files_of(pressed)
    limit(pressed, resource.RLIMIT_FSIZE, 20_000)
    answer = pressed.generate()
    assert (answer.status_code, answer.json()["status"]) == (507, 507)
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert "/" not in answer.json()["detail"]
    assert files_of(pressed) == before, "the failed run left nothing"
    assert pressed.health()["status"] == "healthy"
    limit(pressed, resource.RLIMIT_FSIZE, resource.RLIM_INFINITY)
    assert pressed.generate().status_code == 200


def test_too_little_memory_is_503_and_passes(pressed, shared):
    Image.new("RGB", (6000, 6000), "teal").save(shared / "teal.png")
    held = psutil.Process(pressed.process.pid).memory_info().vms
    limit(pressed, resource.RLIMIT_AS, held + 80 * 2**20)  # the picture alone takes 108 MB
    answer = pressed.generate(image_path="teal.png")
    limit(pressed, resource.RLIMIT_AS, resource.RLIM_INFINITY)
    assert answer.status_code == 503, answer.text
    assert int(answer.headers["Retry-After"]) > 0 and "memory" in answer.json()["detail"]
    health = pressed.health()
    assert (health["status"], health["model_loaded"]) == ("healthy", False), (
        "the model's memory is given back"
    )
    assert pressed.generate(image_path="teal.png").status_code == 200


def test_an_output_folder_that_is_gone_is_500_without_its_name(pressed):
    away = pressed.output.rename(pressed.output.with_name("away"))
    pressed.output.write_text("not a folder")
    answer = pressed.generate()
    pressed.output.unlink()
    away.rename(pressed.output)
    assert answer.status_code == 500 and str(pressed.output.parent) not in answer.text
    assert "Traceback" not in answer.text
    assert pressed.generate().status_code == 200
