"""A list of pictures and of prompts with times: new shots, and new prompts at the borders of chunks."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from talkinghead_lab.errors import InvalidRequest, MediaError, Stopped
from talkinghead_lab.media.pixels import to_unit_range
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.pipeline.plan import plan
from talkinghead_lab.runs.generate import generate
from talkinghead_lab.runs.verify import verify
from tests.pipeline.start import resolved_for, start

DRIVING, PORTRAIT = "sample:driving", "sample:portrait"


@pytest.fixture
def gradient(tmp_path):
    """Another picture, of another shape."""
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[..., 0], pixels[..., 2] = np.arange(64) * 4, 200
    Image.fromarray(pixels).save(tmp_path / "gradient.png")
    return str(tmp_path / "gradient.png")


def two_shots(second, at=0.4):
    return [{"start": 0, "file": PORTRAIT}, {"start": at, "file": second}]


def made_of(generator):
    """Every chunk, each from the frames of the one before."""
    chunks, previous = [], None
    for chunk in generator.resolved.chunks:
        chunks.append(generator.generate(chunk, previous))
        previous = chunks[-1].frames
    return chunks


def test_a_shot_begins_its_own_chunk_without_overlap(request_for, gradient):
    chunks = resolved_for(request_for(image_path=two_shots(gradient))).chunks
    assert [(c.start, c.repeated, c.new) for c in chunks] == [
        (0, 0, 9), (4, 5, 1), (10, 0, 9), (14, 5, 4), (18, 5, 2)
    ]  # fmt: skip
    trimmed = resolved_for(request_for(image_path=two_shots(gradient), trim_last_chunk=True)).chunks
    assert [c.frames for c in trimmed] == [9, 9, 9, 9, 9]


def test_the_second_shot_is_the_video_that_its_picture_alone_gives(request_for, gradient):
    """But for the noise, which follows the number of the chunk, and the recording, which goes on."""
    both = start(request_for(image_path=two_shots(gradient), seam_frames=4))
    alone = start(request_for(image_path=gradient, seam_frames=4))
    chunk, first = both.resolved.chunks[2], alone.resolved.chunks[0]
    noise = torch.randn(24, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    earlier = both.generate(both.resolved.chunks[0])
    (voice,) = alone.conditions.audio
    for generator in (both, alone):
        object.__setattr__(generator.conditions, "audio", (torch.full_like(voice, 0.5),))
    shown, wanted = both.generate(chunk, earlier.frames, noise), alone.generate(first, noise=noise)
    assert torch.equal(shown.frames, wanted.frames)
    assert torch.equal(both.colors, alone.colors)


def test_a_video_as_a_shot_plays_from_its_start(request_for):
    request = request_for(image_path=two_shots(DRIVING), crop="center")
    generator = start(request)
    video = generator.shots[1].reference
    chunks = generator.resolved.chunks
    made_of(generator)
    assert generator.shot.time(chunks[3].seconds) == pytest.approx((14 - 10) / 25)
    shown = generator._fit(chunks[3].seconds)
    assert torch.equal(shown, video.fitted_frames(4 / 25, 1, (32, 32), request_framing(generator))[0])


def request_framing(generator):
    return generator.resolved.framing


def test_a_chunk_has_the_prompt_of_its_first_new_frame(request_for):
    prompts = [{"start": 0, "text": "calm"}, {"start": 0.5, "text": "lively"}, {"start": 2, "text": "late"}]
    resolved = resolved_for(request_for(prompt=prompts))
    assert [resolved.prompt_of(chunk) for chunk in resolved.chunks] == [0, 0, 1, 1, 1]
    assert resolved.to_json()["prompts"] == [0.0, 13 / 25, None]
    assert len(resolved.warnings) == 1 and "The prompt from 2 s on is not used" in resolved.warnings[0]


def test_a_new_prompt_changes_its_chunks_alone(request_for):
    def frames(prompt):
        return [made.frames for made in made_of(start(request_for(prompt=prompt, text_guide_scale=3.0)))]

    calm, lively = frames("a calm presenter"), frames("lively")
    both = frames([{"start": 0, "text": "a calm presenter"}, {"start": 0.5, "text": "lively"}])
    back = frames([{"start": 0, "text": "a calm presenter"}, {"start": 0.5, "text": "a calm presenter"}])
    assert all(torch.equal(a, b) for a, b in zip(both[:2], calm[:2], strict=True))
    assert not torch.equal(both[2], calm[2]) and not torch.equal(both[2], lively[2])
    # Texts that are encoded in other company differ in the last digits.
    assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(back, calm, strict=True))


def test_a_run_with_shots_and_prompts_resumes_and_is_made_again_to_the_byte(request_for, gradient, tmp_path):
    prompts = [{"start": 0, "text": "calm"}, {"start": 0.5, "text": "lively"}]
    request = request_for(image_path=two_shots(gradient), prompt=prompts)
    made = generate(request, tmp_path / "run")
    assert made.frame_count == 25
    assert verify(made.run_dir).identical
    for chunk in range(1, 6):
        folder = tmp_path / f"stopped-{chunk}"
        with pytest.raises(Stopped):
            generate(request, folder, on_progress=lambda progress, last=chunk: progress.chunk < last)
        assert generate(request, folder).video_path.read_bytes() == made.video_path.read_bytes()
    assert GenerationParams.from_video(made.video_path) == request
    assert GenerationParams.from_yaml(made.run_dir / "request.yaml") == request


def test_the_record_knows_the_shots_and_their_files(request_for, gradient, tmp_path):
    made = generate(request_for(image_path=two_shots(gradient)), tmp_path / "run")
    record = json.loads((made.run_dir / "run.json").read_text())
    assert record["resolved"]["shots"] == [0.0, 0.4]
    assert record["inputs"].keys() == {"image_path", "image_path.1", "audio_path"}
    Image.new("RGB", (64, 48), "red").save(gradient)
    again = verify(made.run_dir)
    assert again.first_chunk == 2 and again.first_frame == 10 and "inputs.image_path.1" in again.changed


def test_what_is_measured_leaves_cuts_out(request_for, gradient, tmp_path):
    made = generate(request_for(image_path=two_shots(gradient)), tmp_path / "run")
    measures = {m["name"]: m for m in json.loads((made.run_dir / "run.json").read_text())["measures"]}
    whole = generate(request_for(), tmp_path / "whole")
    of_whole = {m["name"]: m for m in json.loads((whole.run_dir / "run.json").read_text())["measures"]}
    assert measures["color_drift"]["why_not"] == "the video has several shots"
    assert measures["motion"]["value"] < 3 * of_whole["motion"]["value"]


def test_a_shot_after_the_end_is_warned_of(request_for, gradient):
    resolved = resolved_for(request_for(image_path=two_shots(gradient, at=3)))
    assert resolved.cuts == () and len(resolved.chunks) == 5
    assert "The shot from 3 s on is not seen: the video ends at 1 s" in resolved.warnings[0]


def test_the_plan_shows_when_shots_begin(request_for, gradient):
    shown = str(plan(request_for(image_path=two_shots(gradient))))
    assert "shots [0.0, 0.4]" in shown and "prompts" not in shown


@pytest.mark.parametrize("starts", [(1, 2), (0, 0), (0, 2, 1), (0, 0.01, 0.02)])
def test_times_begin_at_0_and_rise(request_for, starts):
    with pytest.raises(InvalidRequest, match="`prompt` is not valid") as caught:
        request_for(prompt=[{"start": start, "text": "a"} for start in starts])
    assert caught.value.field == "prompt" and "start" in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("image_path", [{"start": 0, "file": ""}], "image_path.0.file"),
        ("image_path", [{"start": 0, "path": "a.png"}], "image_path.0.path"),
        ("image_path", [], "image_path"),
        ("prompt", [{"start": "soon", "text": "a"}], "prompt"),
        ("prompt", [{"start": 0, "text": 2001 * "a"}], "prompt.0.text"),
        ("prompt", 2001 * "a", "prompt"),
        ("prompt", 5, "prompt"),
        ("image_path", 5, "image_path"),
    ],
)
def test_errors_name_the_entry(request_for, field, value, named):
    with pytest.raises(InvalidRequest, match=rf"\b{named}\b") as caught:
        request_for(**{field: value})
    assert caught.value.field == field


def test_a_missing_file_of_a_later_shot_is_named(request_for):
    with pytest.raises(MediaError, match="absent"):
        resolved_for(request_for(image_path=two_shots("/absent.png")))


@pytest.mark.parametrize("kept", [{"lips_only": True}, {"denoise_strength": 0.5}])
def test_every_shot_must_be_a_video_where_one_is_needed(request_for, kept):
    shots = [{"start": 0, "file": DRIVING}, {"start": 0.4, "file": PORTRAIT}]
    with pytest.raises(InvalidRequest, match="image_path is a single picture"):
        resolved_for(request_for(image_path=shots, **kept))


def test_boxes_are_of_one_picture(request_for, gradient):
    boxes = [[0, 0, 20, 40], [30, 0, 60, 40]]
    with pytest.raises(InvalidRequest, match="image_path lists several") as caught:
        request_for(image_path=two_shots(gradient), second_audio_path="b.wav", speaker_boxes=boxes)
    assert caught.value.field == "speaker_boxes"


def test_a_shot_continues_to_keep_its_driving_video(request_for):
    shots = [{"start": 0, "file": DRIVING}, {"start": 0.4, "file": DRIVING}]
    generator = start(request_for(image_path=shots, lips_only=True))
    made = made_of(generator)
    first, second = made[0], made[2]
    source = generator.shots[1].reference.fitted_frames(0, 9, (32, 32), request_framing(generator))
    from talkinghead_lab.pipeline.lips_only import keep

    outside = (keep(source, 6).weights == 0).expand_as(second.frames)
    assert (second.frames - to_unit_range(source).transpose(0, 1)).abs()[outside].max() == 0
    assert (first.frames - second.frames).abs()[outside].max() == 0
