"""Crops and padding: which part of a picture the frame shows, and where a speaker's box lands in it."""

import numpy as np
import pytest
import torch
from PIL import Image

from talkinghead_lab.errors import InvalidRequest
from talkinghead_lab.media.frame_size import Framing, fit, fit_image, place
from talkinghead_lab.media.speaker_masks import speaker_masks


def stripes(width: int, height: int) -> Image.Image:
    """Red grows to the right, green downwards, from 0 to 255; blue is 77."""
    rows, columns = np.mgrid[:height, :width]
    red, green = columns * 255 / (width - 1), rows * 255 / (height - 1)
    return Image.fromarray(np.stack([red, green, np.full_like(red, 77)], -1).round().astype(np.uint8))


def shares(pixels: torch.Tensor) -> list[float]:
    """Left, top, right and bottom edge of what is seen of `stripes`, as shares of it."""
    red, green = pixels[0].float() / 255, pixels[1].float() / 255
    return [
        red[:, 0].mean().item(),
        green[0].mean().item(),
        red[:, -1].mean().item(),
        green[-1].mean().item(),
    ]


@pytest.mark.parametrize(
    ("size", "framing", "kept"),
    [
        ((300, 600), Framing(), (0, 150, 300, 450)),
        ((300, 600), Framing("top"), (0, 0, 300, 300)),
        ((600, 300), Framing("top"), (150, 0, 450, 300)),
        ((300, 600), Framing("face", face=(0.9, 0.35)), (0, 60, 300, 360)),
        ((600, 300), Framing("face", face=(0.35, 0.9)), (60, 0, 360, 300)),
        ((300, 600), Framing("face", face=(0.5, 0.01)), (0, 0, 300, 300)),
        ((300, 600), Framing("face", face=(0.5, 0.99)), (0, 300, 300, 600)),
        ((300, 300), Framing("none"), (0, 0, 300, 300)),
        ((300, 302), Framing("none"), (0, 0, 300, 302)),  # less than a pixel of the frame is empty
        ((300, 600), Framing("none", "edge"), (0, 0, 300, 600)),
    ],
)
def test_the_frame_shows_the_part_that_is_recorded_as_kept(size, framing, kept):
    assert place(size, (96, 96), framing).kept == pytest.approx(kept, abs=2)
    pixels = fit(stripes(*size), 96, 96, framing)
    assert pixels.shape == (3, 96, 96)
    wanted = [edge / size[number % 2] for number, edge in enumerate(kept)]
    assert shares(pixels) == pytest.approx(wanted, abs=0.02)


@pytest.mark.parametrize(("size", "empty"), [((300, 600), (0, 10)), ((600, 300), (10, 0))])
@pytest.mark.parametrize(("pad", "color"), [("#102030", (16, 32, 48)), ("#FFFFFF", (255, 255, 255))])
def test_a_colour_fills_what_the_whole_picture_leaves_empty(size, empty, pad, color):
    pixels = fit(stripes(*size), 96, 96, Framing("none", pad))
    rows, columns = empty
    assert pixels[:, rows, columns].tolist() == pixels[:, -1 - rows, -1 - columns].tolist()
    assert pixels[:, 0, 0].tolist() == list(color)
    inside = (pixels != torch.tensor(color, dtype=torch.uint8)[:, None, None]).any(0)
    assert inside.sum() == 96 * 48


def test_edges_are_continued_and_blurred_padding_has_the_colours_of_the_picture():
    picture = stripes(300, 600)
    edge = np.asarray(fit_image(picture, (96, 96), Framing("none", "edge")))
    assert (edge[:, :24] == edge[:, 24:25]).all()
    assert (edge[:, 72:] == edge[:, 71:72]).all()
    blur = np.asarray(fit_image(picture, (96, 96), Framing("none", "blur")))
    assert (blur[:, 24:72] == edge[:, 24:72]).all()
    assert (blur[..., 2] == 77).all()
    assert np.abs(np.diff(blur[:, :24].astype(int), axis=1)).max() < 8


@pytest.mark.parametrize("size", [(300, 600), (600, 300), (16, 128)])
def test_a_whole_picture_of_another_shape_needs_padding(size):
    with pytest.raises(
        InvalidRequest, match=r"does not fill the frame: received a picture of .*Set `pad`"
    ) as no:
        fit(stripes(*size), 96, 96, Framing("none"))
    assert no.value.field == "pad"


@pytest.mark.parametrize(
    "framing",
    [Framing("top"), Framing("face", face=(0.5, 0.3)), Framing("none", "edge"), Framing("none", "#000000")],
)
@pytest.mark.parametrize("size", [(320, 640), (640, 320)])
def test_speaker_boxes_move_with_the_picture(size, framing):
    """A box drawn into the picture is where its mask is, to within the mask's resolution of 8 pixels."""
    width, height = size
    boxes = [
        (width // 8, height // 8, width // 2, height // 2),
        (width // 2, height // 4, width, height // 2),
    ]
    for number, box in enumerate(boxes):
        marked = Image.new("RGB", size)
        marked.paste((255, 255, 255), box)
        seen = fit(marked, 128, 128, Framing(framing.crop, framing.pad and "#000000", framing.face))
        mask = speaker_masks(size, boxes, (128, 128), framing)[number]
        assert (mask - (seen[0, ::8, ::8] > 127).float()).abs().mean() < 0.05
        assert 0 < mask.mean() < 1


def test_a_box_outside_the_kept_part_is_refused_and_the_part_is_named():
    boxes = [(0, 500, 100, 600), (100, 0, 300, 300)]
    speaker_masks((300, 600), boxes, (96, 96), Framing("none", "blur"))
    with pytest.raises(InvalidRequest, match=r"speaker 1 is outside the frame.*\[0, 0, 300, 300\]"):
        speaker_masks((300, 600), boxes, (96, 96), Framing("top"))
