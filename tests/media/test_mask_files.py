"""Speakers drawn into pictures: the same masks in the frame as boxes give, and clear refusals."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter

from talkinghead_lab.errors import InvalidRequest
from talkinghead_lab.media.frame_size import Framing
from talkinghead_lab.media.mask_files import COLORS, check_masks, read_masks
from talkinghead_lab.media.speaker_masks import speaker_masks

SIZE = (333, 217)
BOXES = [(20, 30, 150, 190), (170, 10, 320, 200)]
RGB = {name: tuple(255 * part for part in color) for name, color in COLORS.items()}
FRAMINGS = [Framing(), Framing("top"), Framing("face", face=(0.5, 0.6)), Framing("none", "blur")]


@pytest.fixture
def drawn(tmp_path):
    """Draw boxes into files: one per box in white, or one for all in the colours of the speakers."""

    def draw(boxes=BOXES, colors=None, size=SIZE, smooth=False) -> list[str]:
        paths = []
        for number, parts in enumerate([boxes] if colors else [[box] for box in boxes]):
            picture = Image.new("RGB", size)
            for (left, top, right, bottom), color in zip(
                parts, colors or ["white"] * len(parts), strict=True
            ):
                fill = RGB.get(color, color)
                ImageDraw.Draw(picture).rectangle((left, top, right - 1, bottom - 1), fill)
            if smooth:
                picture = picture.filter(ImageFilter.GaussianBlur(1))
            paths.append(str(tmp_path / f"{len(list(tmp_path.iterdir()))}-{number}.png"))
            picture.save(paths[-1])
        return paths

    return draw


@pytest.mark.parametrize("framing", FRAMINGS, ids=lambda framing: framing.crop)
@pytest.mark.parametrize("frame", [(96, 64), (64, 96), (128, 128)])
@pytest.mark.parametrize("colors", [None, ("red", "green")])
def test_masks_follow_the_picture_as_boxes_do(drawn, framing, frame, colors):
    masks = read_masks(drawn(colors=colors))
    check_masks(masks, SIZE, voices=2)
    boxes = speaker_masks(SIZE, BOXES, frame, framing)
    assert torch.equal(speaker_masks(SIZE, masks, frame, framing), boxes)
    assert 0 < boxes[0].mean() < 1


def test_smooth_edges_and_transparent_pixels_do_no_harm(drawn, tmp_path):
    sharp, smooth = (
        read_masks(drawn(colors=("red", "green"))),
        read_masks(drawn(BOXES, ("red", "green"), smooth=True)),
    )
    for one, other in zip(sharp, smooth, strict=True):
        assert (one ^ other).mean() < 0.002  # corners are rounded
    white = Image.new("RGBA", SIZE, (255, 255, 255, 0))
    white.paste((255, 255, 255, 255), BOXES[0])
    white.save(tmp_path / "transparent.png")
    (mask,) = read_masks([tmp_path / "transparent.png"])
    assert np.array_equal(mask, sharp[0])


def test_whoever_is_not_drawn_is_silent(drawn):
    (only,) = read_masks(drawn(BOXES[:1]))
    masks = speaker_masks(SIZE, [only], (96, 64))
    assert torch.equal(masks[1], 1 - masks[0])
    assert masks[2].sum() == 0
    assert torch.equal(speaker_masks(SIZE, BOXES[:1], (96, 64)), masks)


def test_all_but_the_first_region_are_one_silent_party():
    third = (0, 140, 160, 217)
    silent = [speaker_masks(SIZE, [BOXES[0], box], (96, 64))[1] for box in (BOXES[1], third)]
    masks = speaker_masks(SIZE, [BOXES[0], BOXES[1], third], (96, 64))
    assert torch.equal(masks[1], torch.maximum(*silent))
    assert not torch.equal(*silent)


@pytest.mark.parametrize(
    ("drawing", "message"),
    [
        ({"boxes": [(0, 0, 100, 100), (90, 90, 200, 200)]}, r"speakers 1 and 2 overlap: received 100 shared"),
        (
            {"boxes": [(0, 0, 100, 100), (300, 300, 400, 400)]},
            r"a mask is empty: no pixel is white.*-1\.png, no value above 0 of",
        ),
        ({"boxes": [(0, 0, 9, 9)], "colors": ["black"]}, "a mask is empty"),
        ({"colors": ["red", "white"]}, "has white pixels, too: received .*column 170, row 10"),
        ({"colors": ["red", "blue"]}, "the colour of speaker 2, green, is missing"),
    ],
)
def test_what_cannot_be_read_is_refused(drawn, drawing, message):
    with pytest.raises(InvalidRequest, match=message) as refused:
        read_masks(drawn(**drawing))
    assert refused.value.field == "speaker_masks"


def test_a_coloured_mask_among_several_is_refused(drawn):
    paths = [*drawn(BOXES[:1]), *drawn(BOXES[1:], ["green"])]
    with pytest.raises(InvalidRequest, match=r"a mask is coloured.*For a colour per speaker, give one file"):
        read_masks(paths)


@pytest.mark.parametrize(
    ("drawing", "voices", "message"),
    [
        (
            {"size": (332, 217)},
            2,
            r"speaker 1 has another size than the picture: received 332x217; allowed: 333x217",
        ),
        ({"boxes": [*BOXES, (0, 0, 10, 10)]}, 2, r"2 recordings, .*: received 3 masks or colours"),
        ({"boxes": BOXES[:1]}, 2, r"received 1 mask or colour"),
        (
            {"boxes": [*BOXES, (0, 0, 10, 10)], "colors": ["red", "green", "blue"]},
            2,
            "received 3 masks or colours",
        ),
    ],
)
def test_what_does_not_go_with_picture_and_recordings_is_refused(drawn, drawing, voices, message):
    with pytest.raises(InvalidRequest, match=message) as refused:
        check_masks(read_masks(drawn(**drawing)), SIZE, voices)
    assert refused.value.field == "speaker_masks"


@pytest.mark.parametrize(
    ("boxes", "framing", "message"),
    [
        (
            [(0, 0, 30, 200), BOXES[1]],
            Framing(),
            r"mask of speaker 1 is outside the frame.*\[61, 0, 275, 217\]",
        ),
        ([(100, 100, 103, 103), BOXES[1]], Framing(), r"mask of speaker 1 is smaller than a token"),
        ([(0, 0, 333, 217)], Framing(), "fills the frame: nobody is left to be silent"),
    ],
)
def test_masks_that_bind_nothing_are_refused(drawn, boxes, framing, message):
    with pytest.raises(InvalidRequest, match=message) as refused:
        speaker_masks(SIZE, read_masks(drawn(boxes)), (64, 64), framing)
    assert refused.value.field == "speaker_masks"
