"""Lips only: a driving video is kept but for the lower face."""

import av
import numpy as np
import pytest
import torch
from PIL import Image

from talkinghead_lab.errors import InvalidRequest, Stopped
from talkinghead_lab.foundation.paths import SAMPLES_FOLDER
from talkinghead_lab.media.frame_size import CENTER
from talkinghead_lab.media.inputs import reference_frames
from talkinghead_lab.media.pixels import to_unit_range
from talkinghead_lab.media.reference import DrivingVideo
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.pipeline import lips_only
from talkinghead_lab.pipeline.lips_only import ellipses, find_lower_faces, keep, mask_weights
from talkinghead_lab.runs.generate import generate
from talkinghead_lab.runs.verify import verify
from talkinghead_lab.training.avatar import MOUTH_CHANNELS, POSE_CHANNELS, POSE_LIMITS, Motion, render
from talkinghead_lab.training.samples import presenter
from tests.pipeline.start import resolved_for, start

DRIVING = "sample:driving"


def driving_frames(start, count, size):
    return reference_frames(DrivingVideo(SAMPLES_FOLDER / "driving.mp4"), start, count, size, CENTER)


@pytest.mark.parametrize("sampler", ["euler", "unipc", "dpm++2m", "lcm"])
@pytest.mark.parametrize("sigmas", [None, [1.0, 0.7, 0.2]])
def test_outside_of_the_border_every_chunk_is_the_video(request_for, sampler, sigmas):
    changes = {"sampler": sampler, "diffusion_steps": 3} | ({"sigmas": sigmas} if sigmas else {})
    generator, previous = (
        start(request_for(image_path=DRIVING, lips_only=True, lips_border=2, **changes)),
        None,
    )
    assert len(generator.resolved.chunks) > 1
    for chunk in generator.resolved.chunks:
        made = generator.generate(chunk, previous)
        source = driving_frames(chunk.seconds, chunk.frames, (generator.width, generator.height))
        weights = keep(source, generator.resolved.request.lips_border).weights
        outside = (weights == 0).expand_as(made.frames)
        difference = (made.frames - to_unit_range(source).transpose(0, 1)).abs()
        assert 0.5 < outside.float().mean() < 0.95
        assert difference[outside].max() == 0
        assert difference[weights.expand_as(difference) == 1].mean() > 0.02
        previous = made.frames


def test_the_video_is_kept_in_the_latent_too(request_for):
    generator = start(request_for(image_path=DRIVING, lips_only=True, diffusion_steps=2))
    chunk, vae = generator.resolved.chunks[0], generator.pipeline.vae
    latent = generator.generate(chunk).latent
    frames = driving_frames(chunk.seconds, chunk.frames, (generator.width, generator.height))
    source = vae.encode(to_unit_range(frames).transpose(0, 1)[None])[0]
    sampled = keep(frames, 6).latent_mask(vae.config.pixels_per_latent)[0].bool().expand_as(latent)
    after_the_first = (slice(None), slice(1, None))
    assert torch.equal(
        latent[after_the_first][~sampled[after_the_first]], source[after_the_first][~sampled[after_the_first]]
    )
    assert not torch.equal(latent, source)


def test_a_run_that_keeps_the_video_resumes_and_is_made_again_to_the_byte(request_for, tmp_path):
    request = request_for(image_path=DRIVING, lips_only=True, diffusion_steps=2)
    made = generate(request, tmp_path / "run")
    assert verify(made.run_dir).identical
    with pytest.raises(Stopped):
        generate(request, tmp_path / "stopped", on_progress=lambda progress: progress.chunk < 2)
    resumed = generate(request, tmp_path / "stopped")
    assert resumed.video_path.read_bytes() == made.video_path.read_bytes()
    other = generate(request.replace(lips_border=12), tmp_path / "other")
    assert other.video_path.read_bytes() != made.video_path.read_bytes()


def test_the_lower_face_holds_the_mouth_in_every_pose():
    generator, poses = torch.Generator().manual_seed(5), 24
    for number in range(6):
        motion = Motion.still(poses)
        for channel, (low, high) in enumerate(POSE_LIMITS[name] for name in POSE_CHANNELS):
            motion.pose[:, channel] = low + (high - low) * torch.rand(poses, generator=generator)
        shut = render(presenter(number), motion)
        motion.mouth[:, MOUTH_CHANNELS.index("opening")] = 1.0
        wide = render(presenter(number), motion)
        moved = ((wide - shut).abs().amax(1, keepdim=True) > 0.1).float()
        frames = ((shut + 1) * 127.5).round().to(torch.uint8)
        weights = ellipses(find_lower_faces(frames), (160, 160), 6)
        assert (moved * (weights == 1)).sum() > 0.98 * moved.sum()
        assert weights.mean() < 0.35


def test_weights_fall_across_the_border():
    weights = ellipses(torch.tensor([[0.0, 0.0, 0.5, 0.5, 0.3]]), (64, 64), 8)[0, 0]
    row = weights[32, 32:]
    assert row[:15].eq(1).all() and row[25:].eq(0).all()
    assert (row.diff() <= 0).all() and ((row > 0) & (row < 1)).sum() in (7, 8)


def test_a_photographed_face_counts_from_half_its_height(monkeypatch):
    class Tracker:
        def __init__(self, most_frames):
            self.frames = 0

        def add(self, pixels):
            self.frames += 1

        def faces(self):
            boxes = np.tile([20.0, 10.0, 60.0, 50.0], (self.frames, 1))
            return type("Faces", (), {"boxes": boxes})

    monkeypatch.setattr(lips_only, "FaceTracker", Tracker)
    weights = keep(torch.zeros(3, 3, 64, 96, dtype=torch.uint8), 1).weights
    rows, columns = weights[0, 1].amax(1).nonzero().flatten(), weights[0, 1].amax(0).nonzero().flatten()
    assert abs(rows[0] - 30) <= 1 and abs(rows[-1] - 49) <= 1
    assert abs(columns[0] - 20) <= 1 and abs(columns[-1] - 59) <= 1


def test_a_picture_has_no_lips_only(request_for):
    with pytest.raises(
        InvalidRequest, match="lips_only keeps a driving video, and image_path is a single picture"
    ) as caught:
        resolved_for(request_for(lips_only=True))
    assert caught.value.field == "lips_only"


def test_a_video_without_a_face_is_refused_before_anything_is_loaded():
    with pytest.raises(InvalidRequest, match="lips_only found no face") as caught:
        find_lower_faces(torch.full((2, 3, 64, 64), 128, dtype=torch.uint8))
    assert caught.value.field == "lips_only"


@pytest.fixture
def mask(tmp_path):
    """White on the right half, as large as the driving video."""
    pixels = np.zeros((160, 160), np.uint8)
    pixels[:, 80:] = 255
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    return str(tmp_path / "mask.png")


def test_a_mask_is_sampled_anew_and_nothing_else(request_for, mask):
    generator = start(request_for(image_path=DRIVING, lips_only=True, lips_mask=mask, lips_border=4))
    made = generator.generate(generator.resolved.chunks[0])
    difference = (made.frames - to_unit_range(driving_frames(0, 9, (32, 32))).transpose(0, 1)).abs()
    assert difference[..., :12].max() == 0
    assert difference[..., 17:].mean() > 0.02


def test_a_mask_fades_out_of_its_edge():
    mask = torch.zeros(2, 3, 8, 32, dtype=torch.uint8)
    mask[0, ..., 20:] = 255
    weights = mask_weights(mask, 4)
    assert weights[0, 0, 3, 14:22].tolist() == [0, 0, 0, 0.25, 0.5, 0.75, 1, 1]
    assert weights[1].max() == 0


def test_a_mask_video_is_read_in_time(request_for, tmp_path):
    with av.open(str(tmp_path / "mask.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "4"})
        stream.width = stream.height = 160
        stream.pix_fmt = "yuv420p"
        for number in range(25):
            pixels = np.zeros((160, 160, 3), np.uint8)
            pixels[:, : 160 * number // 25] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    mask = str(tmp_path / "mask.mp4")
    generator = start(request_for(image_path=DRIVING, lips_only=True, lips_mask=mask))
    chunk = generator.resolved.chunks[2]
    shown = (generator._lips_mask(chunk)[:, 0] >= 128).float().mean((1, 2))
    wanted = torch.arange(chunk.start, chunk.start + chunk.frames) / 25
    assert (shown - wanted).abs().max() < 0.05


def test_a_run_with_a_mask_is_made_again_to_the_byte(request_for, mask, tmp_path):
    request = request_for(image_path=DRIVING, lips_only=True, lips_mask=mask)
    made = generate(request, tmp_path / "run")
    assert verify(made.run_dir).identical
    with pytest.raises(Stopped):
        generate(request, tmp_path / "stopped", on_progress=lambda progress: progress.chunk < 3)
    assert generate(request, tmp_path / "stopped").video_path.read_bytes() == made.video_path.read_bytes()
    Image.new("L", (160, 160), 255).save(mask)
    again = verify(made.run_dir)
    assert not again.identical and "inputs.lips_mask" in again.changed


@pytest.mark.parametrize(
    ("picture", "problem"),
    [
        (Image.new("L", (80, 160), 255), "must have the size of the driving video: received 80x160"),
        (Image.new("L", (160, 160)), "no white part"),
        (Image.new("RGBA", (160, 160)), "no white part"),
    ],
)
def test_a_mask_that_cannot_be_used_is_refused(request_for, tmp_path, picture, problem):
    picture.save(tmp_path / "mask.png")
    mask = str(tmp_path / "mask.png")
    with pytest.raises(InvalidRequest, match=problem) as caught:
        resolved_for(request_for(image_path=DRIVING, lips_only=True, lips_mask=mask))
    assert caught.value.field == "lips_mask"


def test_a_mask_needs_lips_only_and_one_video():
    media = {"audio_path": "a.wav", "image_path": "b.mp4", "lips_mask": "m.png"}
    with pytest.raises(InvalidRequest, match="lips_mask requires lips_only"):
        GenerationParams(**media)
    shots = [{"start": 0, "file": "b.mp4"}, {"start": 1, "file": "c.mp4"}]
    with pytest.raises(InvalidRequest, match="image_path lists several"):
        GenerationParams(**media | {"image_path": shots}, lips_only=True)
    assert GenerationParams(**media, lips_only=True, second_audio_path="c.wav").speakers == 2


def test_two_speakers_are_refused():
    media = {"audio_path": "a.wav", "image_path": "b.mp4", "second_audio_path": "c.wav"}
    with pytest.raises(InvalidRequest, match="lips_only follows one face") as caught:
        GenerationParams(**media, lips_only=True)
    assert caught.value.field == "lips_only"


@pytest.mark.parametrize(("width", "height", "left", "top"), [(320, 160, 100, 0), (160, 288, 0, 40)])
def test_a_drawn_face_is_followed_in_frames_that_are_not_square(width, height, left, top):
    motion = Motion.still(12)
    low, high = POSE_LIMITS["turn"]
    motion.pose[:, POSE_CHANNELS.index("turn")] = torch.linspace(low, high, 12)
    shut = render(presenter(3), motion)
    motion.mouth[:, MOUTH_CHANNELS.index("opening")] = 1.0
    wide = render(presenter(3), motion)
    frames = torch.full((12, 3, height, width), 90, dtype=torch.uint8)
    place = (slice(None), slice(None), slice(top, top + 160), slice(left, left + 160))
    frames[place] = ((shut + 1) * 127.5).round().to(torch.uint8)
    weights = ellipses(find_lower_faces(frames), (height, width), 6)
    moved = ((wide - shut).abs().amax(1, keepdim=True) > 0.1).float()
    assert (moved * (weights[place[0], :, place[2], place[3]] == 1)).sum() > 0.95 * moved.sum()
    assert weights.sum() < 0.35 * 160**2 * 12
