"""Several people in the picture: who speaks, who is silent, and what a run records of it."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from talkinghead_lab import generate
from talkinghead_lab.errors import InvalidRequest, Stopped
from talkinghead_lab.figures.runs import portrait_and_waveform
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.pipeline.portrait import frame_picture
from talkinghead_lab.pipeline.request import resolve
from talkinghead_lab.pipeline.request_media import read_inputs
from talkinghead_lab.runs.verify import verify
from tests.pipeline.start import start

BOXES = ((0, 0, 160, 160), (160, 0, 320, 160))
SAID = {"speaker": 1, "start": 0.0, "file": "a.wav"}
PEOPLE = {"image_path": "sample:two-people", "frame_size": "64x32"}


@pytest.fixture
def masks(tmp_path) -> list[str]:
    """The boxes, drawn into a file each."""
    paths = [str(tmp_path / f"{name}.png") for name in ("left", "right")]
    for path, box in zip(paths, BOXES, strict=True):
        picture = Image.new("L", (320, 160))
        picture.paste(255, box)
        picture.save(path)
    return paths


def test_one_recording_with_regions_has_a_silent_second_voice(request_for):
    one = read_inputs(request_for(**PEOPLE))
    two = read_inputs(request_for(**PEOPLE, speaker_boxes=BOXES[:1]))
    assert len(one.voices) == 1
    spoken, silent = two.voices
    assert np.array_equal(spoken, one.voices[0])
    assert silent.shape == spoken.shape and not silent.any()
    assert np.array_equal(two.soundtrack, one.soundtrack)


def test_the_silent_voice_reaches_the_transformer_as_encoded_silence(request_for):
    generator = start(request_for(**PEOPLE, speaker_boxes=BOXES[:1]))
    spoken, silent = generator.conditions.audio
    assert silent.shape == spoken.shape and silent.isfinite().all() and silent.abs().sum() > 0
    assert generator.regions.sum(dim=1).tolist() == [4, 4, 0]
    assert generator.generate(generator.resolved.chunks[0]).latent.isfinite().all()


def test_the_regions_decide_who_speaks(request_for):
    latents = []
    for boxes in (BOXES, BOXES[::-1]):
        generator = start(request_for(**PEOPLE, speaker_boxes=boxes))
        latents.append(generator.generate(generator.resolved.chunks[0]).latent)
    assert not torch.equal(*latents)


@pytest.mark.parametrize("several", [{"second_audio_path": "sample:recording-2"}, {"speaker_boxes": BOXES}])
def test_how_the_bundled_model_animates_two_people_is_said(request_for, several):
    request = request_for(**PEOPLE, **several)
    assert read_inputs(request).warnings == ()
    bundled = GenerationParams(checkpoint="embedded", **PEOPLE, audio_path=request.audio_path, **several)
    (warning,) = resolve(bundled, read_inputs(bundled)).warnings
    assert "two-speakers-embedded" in warning and "released weights" in warning
    fit = bundled.replace(frame_size="320x160", loras=[{"path": "sample:pairs-lora"}])
    assert resolve(fit, read_inputs(fit)).warnings == ()
    alone = fit.replace(image_path="sample:portrait", speaker_boxes=((0, 0, 160, 320), (160, 0, 320, 320)))
    (warning,) = resolve(alone, read_inputs(alone)).warnings
    assert "cartoon presenters" in warning


def test_masks_are_recorded_resumed_and_made_again_to_the_byte(request_for, masks, tmp_path):
    request = request_for(**PEOPLE, speaker_masks=masks, max_frames=13)
    assert GenerationParams(**yaml.safe_load(request.to_yaml())) == request
    made = generate(request, tmp_path / "run", show_progress=False)
    record = yaml.safe_load((Path(made.run_dir) / "run.json").read_text())
    for number, path in enumerate(masks):
        digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        assert record["inputs"][f"speaker_masks.{number}"] == digest
    with pytest.raises(Stopped):
        generate(request, tmp_path / "stopped", on_progress=lambda at: at.chunk < 2, show_progress=False)
    resumed = generate(request, tmp_path / "stopped", show_progress=False)
    boxes = request.replace(speaker_masks=None, speaker_boxes=BOXES)
    by_boxes = generate(boxes, tmp_path / "boxes", show_progress=False)
    again = verify(made.run_dir, show_progress=False)
    assert again.identical
    assert resumed.video_path.read_bytes() == made.video_path.read_bytes()
    latents = [
        [
            chunk["latent_sha256"]
            for chunk in yaml.safe_load((each.run_dir / "run.json").read_text())["chunks"]
        ]
        for each in (made, by_boxes)
    ]
    assert latents[0] == latents[1], "a mask of a box is that box"
    Image.open(masks[0]).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(masks[1])
    Image.new("L", (320, 160)).save(masks[0])
    with Image.open(masks[0]) as picture:
        picture.paste(255, (0, 0, 130, 160))
        picture.save(masks[0])
    changed = verify(made.run_dir, show_progress=False)
    assert {"inputs.speaker_masks.0", "inputs.speaker_masks.1"} >= changed.changed.keys() > set()


@pytest.mark.parametrize(
    ("fields", "message", "field"),
    [
        ({"speaker_boxes": BOXES, "speaker_masks": ["a.png"]}, "use one", "speaker_masks"),
        (
            {"speaker_boxes": BOXES[:1], "second_audio_path": "b.wav"},
            "one box per recording: 2, and has 1",
            "speaker_boxes",
        ),
        ({"speaker_boxes": BOXES * 2, "second_audio_path": "b.wav"}, "and has 4", "speaker_boxes"),
        ({"speaker_boxes": BOXES * 4}, "at most 6", "speaker_boxes"),
        ({"speaker_masks": []}, "at least 1", "speaker_masks"),
        (
            {"speaker_masks": ["a.png"], "lips_only": True},
            "lips_only follows one face, and speaker_masks",
            "lips_only",
        ),
        ({"segments": [SAID], "audio_path": None}, "segments require audio_mix: timeline", "audio_mix"),
        ({"segments": [SAID], "audio_mix": "timeline"}, "leave out audio_path", "audio_path"),
        ({"audio_mix": "timeline"}, "timeline requires segments", "segments"),
        ({"audio_path": None}, "`audio_path` is missing: set it, or segments", "audio_path"),
        (
            {"audio_mix": "timeline", "segments": [SAID | {"speaker": 3}]},
            "less than or equal to 2",
            "segments",
        ),
        (
            {"audio_mix": "timeline", "segments": [SAID | {"end": 0.5, "start": 1}]},
            "`end` must be after",
            "segments",
        ),
        ({"speaker_loudness": [-23, -20]}, "has 2 values, and 1 speaks", "speaker_loudness"),
        ({"speaker_loudness": [3]}, "less than or equal to 0", "speaker_loudness"),
        ({"speaker_boxes": BOXES, "crop": "face"}, "crop face follows one face", "crop"),
    ],
)
def test_what_does_not_go_together_is_refused(fields, message, field):
    with pytest.raises(InvalidRequest, match=message) as refused:
        GenerationParams(**{"audio_path": "a.wav", "image_path": "b.png"} | fields)
    assert refused.value.field == field


def test_a_dialogue_is_one_file_recorded_resumed_and_made_again_to_the_byte(request_for, recording, tmp_path):
    dialogue = tmp_path / "dialogue.yaml"
    segments = [
        {"speaker": 1, "start": 0.0, "end": 0.3, "file": recording(0.5)},
        {"speaker": 2, "start": 0.2, "file": recording(0.4)},
        {"speaker": 1, "start": 0.6, "file": recording(0.25)},
    ]
    fields = request_for(**PEOPLE).model_dump(exclude_unset=True, exclude={"audio_path"})
    said = {"audio_mix": "timeline", "segments": segments, "speaker_loudness": [-20, -26]}
    dialogue.write_text(yaml.safe_dump(fields | said))
    request = GenerationParams.from_yaml(dialogue)
    assert (request.speakers, request.voices) == (2, 2)
    assert GenerationParams(**yaml.safe_load(request.to_yaml())) == request
    made = generate(request, tmp_path / "run", show_progress=False)
    assert made.frame_count == 21
    digests = yaml.safe_load((Path(made.run_dir) / "run.json").read_text())["inputs"]
    assert {name for name in digests if name.startswith("segments")} == {
        f"segments.{n}.file" for n in range(3)
    }
    with pytest.raises(Stopped):
        generate(request, tmp_path / "stopped", on_progress=lambda at: at.chunk < 2, show_progress=False)
    resumed = generate(request, tmp_path / "stopped", show_progress=False)
    assert resumed.video_path.read_bytes() == made.video_path.read_bytes()
    assert verify(made.run_dir, show_progress=False).identical
    assert GenerationParams.from_video(made.video_path) == request
    assert len(portrait_and_waveform(request).axes) == 4


def test_masks_of_another_size_are_refused_by_their_own_name_before_anything_is_loaded(request_for, masks):
    Image.new("L", (100, 100), 255).save(masks[1])
    request = request_for(**PEOPLE, speaker_masks=masks)
    for read in (read_inputs, frame_picture):
        with pytest.raises(
            InvalidRequest, match=r"speaker 2 has another size .* received 100x100; allowed: 320x160"
        ):
            read(request)
    Image.new("L", (320, 160), 0).save(masks[1])
    with pytest.raises(InvalidRequest, match=r"a mask is empty.*right\.png"):
        read_inputs(request)


def test_the_notebook_draws_masks(request_for, masks):
    figure = portrait_and_waveform(request_for(**PEOPLE, speaker_masks=masks))
    assert figure.axes[0].get_title(loc="left") == "Picture and speakers"
    drawn = figure.axes[0].collections
    assert len(drawn) == 2
