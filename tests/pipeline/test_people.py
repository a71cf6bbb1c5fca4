"""The people in a picture are found, told apart and boxed."""

import json

import numpy as np
import pytest
import torch
from ipywidgets import Button
from PIL import Image
from torch import Generator

from talkinghead_lab.__main__ import main
from talkinghead_lab.errors import InvalidRequest, MediaError
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.pipeline import people
from talkinghead_lab.pipeline.people import people_in_frame, propose_boxes
from talkinghead_lab.pipeline.portrait import frame_picture
from talkinghead_lab.pipeline.request import resolve
from talkinghead_lab.pipeline.request_media import read_inputs
from talkinghead_lab.training.avatar import Motion, render, sample_identity
from talkinghead_lab.widgets.request_form import RequestForm


@pytest.fixture
def presenters(tmp_path):
    """A picture of presenters at some distance from each other: its path."""

    def draw(lefts: list[int], width: int, upright: bool = False) -> str:
        size = (160, width) if upright else (width, 160)
        picture, generator = Image.new("RGB", size, "#9ab3c4"), Generator().manual_seed(4)
        for left in lefts:
            frame = render(sample_identity(generator), Motion.still(1))[0]
            pixels = ((frame + 1) * 127.5).to(torch.uint8).permute(1, 2, 0).numpy()
            picture.paste(Image.fromarray(pixels), (0, left) if upright else (left, 0))
        path = tmp_path / "presenters.png"
        picture.save(path)
        return str(path)

    return draw


@pytest.mark.parametrize("lefts", [[0], [0, 160], [0, 200, 400]])
@pytest.mark.parametrize("upright", [False, True])
def test_every_presenter_has_a_box_around_the_face(presenters, lefts, upright):
    boxes = propose_boxes(presenters(lefts, lefts[-1] + 160, upright))
    assert len(boxes) == len(lefts)
    for box, at in zip(sorted(boxes, key=lambda box: box[upright]), lefts, strict=True):
        x, y = (0, at) if upright else (at, 0)
        left, top, right, bottom = (edge - start for edge, start in zip(box, (x, y, x, y), strict=True))
        assert 0 <= left < 50 and 110 < right <= 160 and 0 <= top < 40 and 120 < bottom <= 160


def test_the_boxes_can_be_used_as_they_are(presenters):
    path = presenters([0, 160], 320)
    boxes = propose_boxes(path)
    request = GenerationParams(
        image_path=path, audio_path="sample:recording", frame_size="320x160", speaker_boxes=boxes
    )
    assert frame_picture(request).reference.size == (320, 160)


def test_boxes_of_neighbours_meet_in_the_middle(monkeypatch, tmp_path):
    Image.new("RGB", (200, 100), "#335544").save(tmp_path / "plain.png")
    faces = np.array([[110.0, 20, 150, 70], [50, 20, 90, 70], [0, 0, 20, 20]])
    monkeypatch.setattr(people, "find_faces", lambda pixels, most: faces)
    boxes = propose_boxes(str(tmp_path / "plain.png"))
    assert boxes == ((0, 0, 27, 27), (36, 2, 100, 88), (100, 2, 164, 88))


def test_where_nobody_is_found_the_reason_is_given(monkeypatch, tmp_path):
    Image.new("RGB", (200, 100), "#335544").save(tmp_path / "plain.png")

    def none(pixels: np.ndarray, most: int) -> np.ndarray:
        raise MediaError("no face is visible")

    monkeypatch.setattr(people, "find_faces", none)
    with pytest.raises(
        InvalidRequest, match=r"found no people.*no face is visible.*draw `speaker_boxes`"
    ) as no:
        propose_boxes(str(tmp_path / "plain.png"))
    assert no.value.field == "speaker_boxes"


def test_the_shell_prints_a_line_for_the_parameter_file(tmp_path, capsys):
    assert main(["people", "sample:two-people", "--drawn", str(tmp_path / "drawn.png")]) == 0
    name, _, boxes = capsys.readouterr().out.partition(": ")
    assert (name, json.loads(boxes)) == (
        "speaker_boxes",
        [list(box) for box in propose_boxes("sample:two-people")],
    )
    with Image.open(tmp_path / "drawn.png") as drawn:
        assert drawn.width > 320
    assert main(["people", "sample:driving-nobody"]) == 2


def test_the_panel_proposes_boxes_and_shows_them(presenters):
    shown = GenerationParams(image_path=presenters([0, 160], 320), audio_path="sample:recording")
    form = RequestForm(shown, lambda: None)
    before = form.preview.value
    (find,) = [part for part in form["speaker_boxes"].children if isinstance(part, Button)]
    find.click()
    assert form.params.speaker_boxes == propose_boxes(shown.image_path)
    assert "2 people found" in form.people.value
    form.mark()
    assert form.preview.value != before
    form["image_path"].value = "gone.png"
    find.click()
    assert "no such file" in form.people.value


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"speaker_boxes": ((0, 0, 160, 160), (160, 0, 320, 160))}, [(0, 0, 32, 32), (32, 0, 64, 32)]),
        ({"speaker_boxes": ((160, 0, 320, 160),)}, [(32, 0, 64, 32), None]),
        ({"second_audio_path": "sample:recording-2"}, [(8, 8, 32, 32), (40, 8, 64, 32)]),
        ({}, []),
    ],
)
def test_where_the_people_of_a_run_are_in_the_frame(request_for, fields, expected):
    request = request_for(image_path="sample:two-people", frame_size="64x32", **fields)
    inputs = read_inputs(request)
    found = people_in_frame(resolve(request, inputs), inputs)
    assert [person.box for person in found] == expected
    assert [person.voice.any() for person in found][1:] == ["second_audio_path" in fields] * (len(found) - 1)
