"""Restyling: sampling starts from the noised frames of a driving video."""

import pytest
import torch

from talkinghead_lab.errors import InvalidRequest
from talkinghead_lab.foundation.paths import SAMPLES_FOLDER
from talkinghead_lab.media.frame_size import CENTER
from talkinghead_lab.media.inputs import reference_frames
from talkinghead_lab.media.pixels import to_unit_range
from talkinghead_lab.media.reference import DrivingVideo
from talkinghead_lab.runs.generate import generate
from talkinghead_lab.runs.verify import verify
from tests.pipeline.start import resolved_for, start

DRIVING = "sample:driving"


def distances(request) -> list[float]:
    """Of each chunk's latent after its overlap to that of the driving video at the same time."""
    generator, previous, found = start(request), None, []
    video, vae = DrivingVideo(SAMPLES_FOLDER / "driving.mp4"), generator.pipeline.vae
    for chunk in generator.resolved.chunks:
        made = generator.generate(chunk, previous)
        size = generator.width, generator.height
        frames = reference_frames(video, chunk.seconds, chunk.frames, size, CENTER)
        source = vae.encode(to_unit_range(frames).transpose(0, 1)[None])[0]
        fixed = 1 + (chunk.repeated - 1) // 4 if chunk.repeated else 1
        found.append((made.latent - source)[:, fixed:].square().mean().sqrt().item())
        previous = made.frames
    return found


@pytest.mark.parametrize("sampler", ["euler", "dpm++2m"])
def test_the_less_noise_the_nearer_every_chunk_is_to_the_video(request_for, sampler):
    def of(strength):
        changes = {"denoise_strength": strength, "diffusion_steps": 3, "sampler": sampler}
        return distances(request_for(image_path=DRIVING, **changes))

    whole, half, little = of(1.0), of(0.5), of(0.01)
    assert len(whole) > 1
    assert all(a > b > c for a, b, c in zip(whole, half, little, strict=True))
    assert max(little) < 0.1 * min(whole)


def test_a_restyled_run_is_made_again_to_the_byte(request_for, tmp_path):
    request = request_for(image_path=DRIVING, denoise_strength=0.4)
    made = generate(request, tmp_path / "run")
    assert verify(made.run_dir).identical
    other = generate(request.replace(denoise_strength=0.5), tmp_path / "other")
    assert other.video_path.read_bytes() != made.video_path.read_bytes()


def test_a_picture_is_not_restyled(request_for):
    with pytest.raises(InvalidRequest, match="image_path is a single picture") as caught:
        resolved_for(request_for(denoise_strength=0.5))
    assert caught.value.field == "denoise_strength"


def test_after_the_end_of_the_video_its_last_frame_stays():
    video = DrivingVideo(SAMPLES_FOLDER / "driving.mp4")
    inside = list(video.frames(0.0, 10_000))
    end = len(inside) / 25
    frames = reference_frames(video, end - 0.08, 6, (32, 32), CENTER)
    assert not torch.equal(frames[1], frames[-1])
    assert all(torch.equal(frame, frames[2]) for frame in frames[3:])
    assert torch.equal(reference_frames(video, end + 5, 2, (32, 32), CENTER)[0], frames[-1])
