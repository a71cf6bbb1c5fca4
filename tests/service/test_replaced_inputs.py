"""A file that is replaced while it is in use changes no run, and no file outside gets into a video."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from talkinghead_lab.errors import MediaError
from talkinghead_lab.foundation.digests import sha256_of_file
from talkinghead_lab.media.video import write_video
from talkinghead_lab.service.generation import Generator
from talkinghead_lab.service.inputs import copy_allowed
from talkinghead_lab.service.problems import Problem
from talkinghead_lab.service.settings import ServiceSettings
from tests.service.conftest import Server

FRAMES = 25


def film(path: Path, level: int) -> Path:
    """A driving video whose brightness rises from `level`."""
    frames = np.arange(FRAMES, dtype=np.uint8)[:, None, None, None] + np.full((1, 64, 64, 3), level, np.uint8)
    write_video(path, [frames], None, FRAMES, {})
    return path


@pytest.fixture(scope="module")
def server(launch, recording, tmp_path_factory) -> Server:
    shared = tmp_path_factory.mktemp("shared")
    shutil.copy(recording(1.0), shared / "recording.wav")
    return launch(gated=True, SHARED_DIR=str(shared))


def record_of(job: dict) -> dict:
    return json.loads((Path(job["result"]["video_path"]).parent / "run.json").read_text())


def test_a_driving_video_replaced_by_a_link_to_a_file_outside(server, tmp_path):
    shared = Path(server.environment["SHARED_DIR"])
    inside, outside = film(shared / "film.mp4", 30), film(tmp_path / "outside.mp4", 200)
    digest = sha256_of_file(inside)
    undisturbed = server.submit(image_path="film.mp4", diffusion_steps=6).json()["id"]
    expected = record_of(server.wait_for(undisturbed, "finished"))

    name = server.submit(image_path="film.mp4", diffusion_steps=6).json()["id"]
    server.wait_for(name, "running", step=1)
    assert [path.name for path in (server.output / name / "inputs").iterdir()] == ["image_path.mp4"]
    (shared / "link.mp4").symlink_to(outside)
    (shared / "link.mp4").replace(inside)
    record = record_of(server.wait_for(name, "finished"))
    assert record["inputs"]["image_path"] == digest
    frames = [[chunk["frames_sha256"] for chunk in found["chunks"]] for found in (record, expected)]
    assert frames[0] == frames[1]
    assert len(frames[0]) > 2
    assert not (server.output / name / "inputs").exists()
    assert server.generate(image_path="film.mp4").status_code == 403


def test_a_file_replaced_while_its_job_waits_is_checked_again(server):
    shared = Path(server.environment["SHARED_DIR"])
    Image.new("RGB", (64, 64), "teal").save(shared / "first.png")
    running = server.submit(image_path="first.png", prompt="hold at 1").json()["id"]
    waiting = server.submit(image_path="first.png").json()["id"]
    server.wait_for(running, "running", step=1)
    (shared / "first.png").unlink()
    (shared / "first.png").symlink_to("/etc/hostname")
    server.client.delete(f"/api/jobs/{running}")
    assert server.wait_for(waiting, "failed")["problem"]["status"] == 403
    assert not (server.output / waiting).exists()


def test_a_link_made_after_links_were_resolved_is_not_followed(tmp_path, monkeypatch):
    shared = tmp_path / "shared"
    shared.mkdir()
    (tmp_path / "secret.png").write_bytes(b"secret")
    (shared / "a.png").symlink_to(tmp_path / "secret.png")
    settings = ServiceSettings.read(shared_dir=shared, output_dir=tmp_path / "output")
    with pytest.raises(Problem) as refused:
        copy_allowed(settings, tmp_path / "inputs", "image_path", str(shared / "a.png"))
    assert refused.value.status == 403
    plain = Path.resolve
    monkeypatch.setattr(  # as if the link was made just after
        Path, "resolve", lambda path, *given: path if path.name == "a.png" else plain(path, *given)
    )
    with pytest.raises(Problem) as refused:
        copy_allowed(settings, tmp_path / "inputs", "image_path", str(shared / "a.png"))
    assert refused.value.status == 404
    assert not (tmp_path / "inputs").exists()


def test_limits_of_time_hold_for_every_file(shared, tmp_path):
    settings = ServiceSettings.read(shared_dir=shared, output_dir=tmp_path, media_seconds=0.001)
    params = settings.params(
        audio_path=str(shared / "recording.wav"), image_path=str(shared / "portrait.png"), prompt=""
    )
    with pytest.raises(MediaError, match=r"takes too long"):
        Generator(settings).check("x", params)
    assert [path.name for path in tmp_path.rglob("*")] == [".runs"]
