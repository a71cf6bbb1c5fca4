"""Scene cuts of a driving video: a chunk begins at each, without overlap frames."""

import builtins
import json

import av
import numpy as np
import pytest
import torch

from talkinghead_lab.errors import InvalidRequest, MissingExtra, Stopped
from talkinghead_lab.media.pixels import to_unit_range
from talkinghead_lab.pipeline.lips_only import mask_weights
from talkinghead_lab.pipeline.plan import plan
from talkinghead_lab.runs.generate import generate
from talkinghead_lab.runs.verify import verify
from tests.pipeline.start import resolved_for, start


def write_scenes(path, lengths, rate=25):
    """Scenes of so many frames, each of another colour, in which a bar moves."""
    colors = [(200, 40, 40), (40, 60, 210), (60, 200, 70), (220, 220, 60)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "8", "g": "12"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for color, length in zip(colors, lengths, strict=False):
            for number in range(length):
                pixels = np.full((64, 96, 3), color, np.uint8)
                pixels[:, 30 + number % 30 : 34 + number % 30] = 255
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return str(path)


@pytest.mark.parametrize(
    ("rate", "lengths", "cuts"), [(25, (17, 23, 30), (17, 40)), (50, (41, 59, 30), (21, 50))]
)
def test_cuts_are_found_by_time(request_for, recording, tmp_path, rate, lengths, cuts):
    film = write_scenes(tmp_path / "film.mp4", lengths, rate)
    request = request_for(image_path=film, scene_cuts=True, audio_path=recording(2.4))
    resolved = resolved_for(request)
    assert resolved.cuts == cuts
    starts = {chunk.first_new: chunk.repeated for chunk in resolved.chunks}
    assert all(starts[cut] == 0 for cut in cuts)
    assert resolved_for(request.replace(scene_cuts=False)).cuts == ()
    assert resolved_for(request.replace(max_frames=30)).cuts == cuts[:1]


def test_a_video_of_one_scene_has_no_cut(request_for):
    assert resolved_for(request_for(image_path="sample:driving", scene_cuts=True)).cuts == ()


def test_after_a_cut_the_video_goes_on_in_time_and_colours_are_the_new_scenes(request_for, tmp_path):
    film = write_scenes(tmp_path / "film.mp4", (17, 30))
    generator = start(request_for(image_path=film, scene_cuts=True))
    chunk = next(chunk for chunk in generator.resolved.chunks if chunk.start == 17)
    previous = generator.generate(generator.resolved.chunks[0]).frames
    generator.generate(chunk, previous)
    wanted = generator.conditions.reference.fitted_frames(17 / 25, 1, (32, 32), generator.shot.framing)
    assert torch.equal(generator.colors, to_unit_range(wanted[0]))
    assert generator.shot.time(chunk.seconds) == pytest.approx(17 / 25)


def test_a_run_with_cuts_resumes_and_is_made_again_to_the_byte(request_for, tmp_path):
    film = write_scenes(tmp_path / "film.mp4", (17, 30))
    request = request_for(image_path=film, scene_cuts=True)
    made = generate(request, tmp_path / "run")
    assert json.loads((made.run_dir / "run.json").read_text())["resolved"]["shots"] == [0.0, 17 / 25]
    assert verify(made.run_dir).identical
    for chunk in (2, 4):
        folder = tmp_path / f"stopped-{chunk}"
        with pytest.raises(Stopped):
            generate(request, folder, on_progress=lambda progress, last=chunk: progress.chunk < last)
        assert generate(request, folder).video_path.read_bytes() == made.video_path.read_bytes()
    assert "shots [0.0, 0.68]" in str(plan(request))


def test_a_cut_goes_together_with_a_mask(request_for, tmp_path):
    film = write_scenes(tmp_path / "film.mp4", (17, 30))
    mask = write_scenes(tmp_path / "mask.mp4", (47,))  # red is dark, its bar white
    generator = start(request_for(image_path=film, scene_cuts=True, lips_only=True, lips_mask=mask))
    chunk = next(chunk for chunk in generator.resolved.chunks if chunk.start == 17)
    made = generator.generate(chunk, generator.generate(generator.resolved.chunks[0]).frames)
    source = generator.conditions.reference.fitted_frames(17 / 25, 9, (32, 32), generator.shot.framing)
    shown = generator.conditions.lips_mask.fitted_frames(17 / 25, 9, (32, 32), generator.shot.framing)
    outside = (mask_weights(shown, 6)[:, 0] == 0).expand(3, -1, -1, -1)
    difference = (made.frames - to_unit_range(source).transpose(0, 1)).abs()
    assert outside.any() and difference[outside].max() == 0


def test_a_picture_has_no_scenes(request_for):
    with pytest.raises(InvalidRequest, match="scene_cuts follows the scenes of a driving video") as caught:
        resolved_for(request_for(scene_cuts=True))
    assert caught.value.field == "scene_cuts"


def test_without_the_extra_the_error_names_it(request_for, monkeypatch):
    imported = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("scenedetect"):
            raise ImportError(name)
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtra, match=r"talkinghead_lab\[scenes\]"):
        resolved_for(request_for(image_path="sample:driving", scene_cuts=True))
