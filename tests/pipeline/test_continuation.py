"""A run that goes on from the last frames of an earlier video."""

from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from talkinghead_lab.errors import InvalidRequest, Stopped
from talkinghead_lab.media import video
from talkinghead_lab.media.pixels import to_unit_range
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.pipeline.request import resolve
from talkinghead_lab.pipeline.request_media import read_inputs
from talkinghead_lab.runs.generate import generate
from talkinghead_lab.runs.verify import verify
from tests.pipeline.start import start

DRIVING = "sample:driving"


def write_numbered(path, count, rate, size=(32, 32)):
    """Frame n is grey, 8 levels lighter than the one before."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "4", "g": "7"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for number in range(count):
            pixels = np.full((size[1], size[0], 3), 8 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return str(path)


def repeated_numbers(request):
    return [round(frame.float().mean().item() / 8) for frame in read_inputs(request).continued]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_the_last_frames_of_the_video_are_repeated(request_for, tmp_path, name):
    earlier = write_numbered(tmp_path / name, 20, 25)
    assert repeated_numbers(request_for(continue_video=earlier)) == [15, 16, 17, 18, 19]


def test_frames_of_another_rate_are_found_by_time(request_for, tmp_path):
    twice = write_numbered(tmp_path / "twice.mp4", 20, 50)
    assert repeated_numbers(request_for(continue_video=twice)) == [11, 13, 15, 17, 19]
    half = write_numbered(tmp_path / "half.mp4", 20, Fraction(25, 2))
    assert repeated_numbers(request_for(continue_video=half)) == [17, 17, 18, 18, 19]


def test_a_video_of_another_size_is_cropped_as_a_driving_video_is(request_for, tmp_path):
    earlier = write_numbered(tmp_path / "wide.mp4", 8, 25, (96, 64))
    inputs = read_inputs(request_for(continue_video=earlier))
    assert inputs.continued.shape == (5, 3, 32, 32)
    with pytest.raises(InvalidRequest, match="does not fill the frame"):
        read_inputs(request_for(continue_video=earlier, crop="none"))


def test_the_first_chunk_goes_on_as_a_run_does_from_chunk_to_chunk(request_for):
    """From the same overlap frames, with the same noise and recording, the frames are the same."""
    generator = start(request_for(continue_video=DRIVING, seam_frames=4))
    first, second = generator.resolved.chunks[:2]
    assert (first.start, first.repeated, first.new) == (-5, 5, 4)
    assert (second.start, second.repeated, second.new) == (-1, 5, 4)
    overlap = to_unit_range(read_inputs(generator.resolved.request).continued).transpose(0, 1)
    assert torch.equal(generator.conditions.continued, overlap)
    channels = generator.pipeline.vae.config.z_dim
    noise = torch.randn(channels, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    (voice,) = generator.conditions.audio
    generator.conditions = replace(generator.conditions, audio=(torch.full_like(voice, 0.5),))
    made = generator.generate(first, noise=noise)
    next_of_a_run = generator.generate(second, overlap, noise=noise)
    assert torch.equal(made.frames, next_of_a_run.frames)
    plain = start(request_for(seam_frames=4))
    assert not torch.equal(plain.generate(plain.resolved.chunks[0]).frames, made.frames)


def test_a_run_that_continues_resumes_and_is_made_again_to_the_byte(request_for, tmp_path):
    request = request_for(continue_video=DRIVING)
    made = generate(request, tmp_path / "run")
    assert made.frame_count == video.probe(made.video_path).frame_count == 25
    assert verify(made.run_dir).identical
    for chunk in (1, 2, 4):
        folder = tmp_path / f"stopped-{chunk}"
        with pytest.raises(Stopped):
            generate(request, folder, on_progress=lambda progress, last=chunk: progress.chunk < last)
        assert generate(request, folder).video_path.read_bytes() == made.video_path.read_bytes()
    assert GenerationParams.from_video(made.video_path) == request


def test_another_end_of_the_video_makes_another_run(request_for, tmp_path):
    earlier = write_numbered(tmp_path / "a.mp4", 20, 25)
    request = request_for(continue_video=earlier)
    made = generate(request, tmp_path / "run")
    write_numbered(tmp_path / "a.mp4", 12, 25)
    again = verify(made.run_dir)
    assert not again.identical and again.first_chunk == 0 and "inputs.continue_video" in again.changed


def test_a_video_shorter_than_the_overlap_is_refused(request_for, tmp_path):
    short = write_numbered(tmp_path / "short.mp4", 4, 25)
    with pytest.raises(InvalidRequest, match=r"too short.*received 4 frames.*at least 5") as caught:
        read_inputs(request_for(continue_video=short))
    assert caught.value.field == "continue_video"
    assert repeated_numbers(request_for(continue_video=short, motion_frame=1)) == [3]


def test_a_picture_is_refused(request_for):
    with pytest.raises(InvalidRequest, match="and this is a single picture") as caught:
        read_inputs(request_for(continue_video="sample:portrait"))
    assert caught.value.field == "continue_video"


@pytest.mark.parametrize("kept", [{"lips_only": True}, {"denoise_strength": 0.5}])
def test_what_keeps_another_video_is_refused(kept):
    media = {"audio_path": "a.wav", "image_path": "b.mp4", "continue_video": "c.mp4"}
    with pytest.raises(InvalidRequest, match="continue_video goes on from another") as caught:
        GenerationParams(**media, **kept)
    assert caught.value.field in kept


def test_the_plan_counts_the_shorter_first_chunk(request_for):
    request = request_for(continue_video=DRIVING)
    resolved = resolve(request, read_inputs(request))
    assert sum(chunk.new for chunk in resolved.chunks) == resolved.frames == 25
    assert resolved.to_json()["chunks"] == 7
    assert resolve(request_for(), read_inputs(request_for())).to_json()["chunks"] == 5


@pytest.mark.parametrize("name", ["end_image", "last_image", "last_frame", "end_frame_path", "tail_image"])
def test_a_last_frame_is_refused_with_the_reason(request_for, name):
    with pytest.raises(InvalidRequest, match="trained with a first frame only") as caught:
        request_for(**{name: "a.png"})
    assert caught.value.field == name
