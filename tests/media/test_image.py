"""Reading portraits, choosing frame sizes, speaker masks and colour matching."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from talkinghead_lab.errors import InvalidRequest, MediaError
from talkinghead_lab.media.colors import match_colors
from talkinghead_lab.media.frame_size import RELEASED_SIZES, fit, nearest_size, place
from talkinghead_lab.media.image import is_picture, read_portrait
from talkinghead_lab.media.speaker_masks import speaker_masks

SIDE = 32


def gradient(width=SIDE, height=SIDE):
    rows, columns = np.mgrid[:height, :width]
    return np.stack([columns * 255 // width, rows * 255 // height, np.full_like(rows, 40)], axis=-1).astype(
        np.uint8
    )


@pytest.mark.parametrize(
    "name", ["a.png", "a.bmp", "a.ppm", "a.tiff", "a.gif", "a.webp", "a.jpg", "a.avif", "a.jp2"]
)
def test_formats(tmp_path, name):
    Image.fromarray(gradient()).save(tmp_path / name)
    portrait = read_portrait(tmp_path / name)
    assert (portrait.mode, portrait.size) == ("RGB", (SIDE, SIDE))
    assert np.abs(np.asarray(portrait).astype(int) - gradient()).mean() < 12
    assert is_picture(tmp_path / name)


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (1, lambda p: p),
        (3, lambda p: p[::-1, ::-1]),
        (6, lambda p: np.rot90(p, -1)),
        (8, lambda p: np.rot90(p)),
    ],
)
def test_exif_rotation_is_applied(tmp_path, orientation, turn):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(gradient(40, 24)).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(np.asarray(read_portrait(tmp_path / "a.png")), turn(gradient(40, 24)))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
def test_transparency_becomes_white(tmp_path, mode):
    pixels = np.zeros((SIDE, SIDE, 4), np.uint8)
    pixels[:16, :, 3] = 255
    if mode == "P":
        picture = Image.new("P", (SIDE, SIDE), 0)
        picture.putpalette([0, 0, 0, 9, 9, 9])
        picture.paste(1, (0, 16, SIDE, SIDE))
        picture.save(tmp_path / "a.png", transparency=1)
    else:
        Image.fromarray(pixels).convert(mode).save(tmp_path / ("a.tiff" if mode == "PA" else "a.png"))
    out = np.asarray(read_portrait(next(tmp_path.iterdir())))
    assert (out[:16] == 0).all()
    assert (out[16:] == 255).all()


@pytest.mark.parametrize("name", ["a.png", "a.tiff"])
def test_sixteen_bits_become_eight(tmp_path, name):
    grey = (np.arange(SIDE * SIDE).reshape(SIDE, SIDE) * 64).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / name)
    out = np.asarray(read_portrait(tmp_path / name))
    assert np.array_equal(out[..., 0], np.round(grey / 257).astype(np.uint8))
    assert out.max() > 250


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr"])
def test_other_modes(tmp_path, mode):
    picture = Image.fromarray(gradient()).convert(mode)
    path = tmp_path / ("a.png" if mode in "1LP" else "a.tiff")
    picture.save(path)
    out = np.asarray(read_portrait(path)).astype(int)
    assert np.abs(out - np.asarray(picture.convert("RGB"))).max() <= 2


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp"])
def test_an_animation_is_read_as_its_first_frame(tmp_path, name):
    frames = [Image.new("RGB", (SIDE, SIDE), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], duration=100)
    assert read_portrait(tmp_path / name).getpixel((5, 5))[0] > 240


def test_images_at_the_limits_are_read(tmp_path):
    for size in ((16, 16), (128, 16), (16, 128)):
        Image.new("RGB", size).save(tmp_path / "a.png")
        assert read_portrait(tmp_path / "a.png").size == size


def cut(path, kept):
    Image.fromarray(gradient(256, 256)).save(path)
    path.write_bytes(path.read_bytes()[:kept])


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("empty.png", lambda path: path.write_bytes(b""), "unknown format"),
        ("text.png", lambda path: path.write_text("no picture"), "unknown format"),
        ("noise.jpg", lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)), "unknown format"),
        ("cut.jpg", lambda path: cut(path, 1500), "truncated"),
        ("cut.png", lambda path: cut(path, 200), "the image cannot be read"),
        ("float.tiff", lambda path: Image.new("F", (SIDE, SIDE), 0.5).save(path), "no known range"),
        (
            "dot.png",
            lambda path: Image.new("RGB", (1, 1)).save(path),
            "too small: .* 1x1; allowed: at least 16",
        ),
        ("tiny.png", lambda path: Image.new("RGB", (15, 40)).save(path), "too small"),
        ("line.png", lambda path: Image.new("RGB", (20000, 10)).save(path), "too small: .* 20000x10"),
        (
            "strip.png",
            lambda path: Image.new("RGB", (1000, 100)).save(path),
            "too narrow: .*1000x100",
        ),
        (
            "large.png",
            lambda path: Image.new("1", (10_000, 8_001)).save(path),
            "too large: .*; allowed: up to 80",
        ),
        (
            "larger.png",
            lambda path: Image.new("1", (10_000, 9_500)).save(path),  # Pillow warns from 89 million pixels on
            "too large: .*10000x9500; allowed: up to 80",
        ),
        ("bomb.png", lambda path: Image.new("1", (20_000, 20_000)).save(path), "too large"),
    ],
)
def test_the_error_names_an_unusable_image(tmp_path, recwarn, name, write, message):
    write(tmp_path / name)
    with pytest.raises(MediaError, match=message) as caught:
        read_portrait(tmp_path / name)
    assert name in str(caught.value)
    assert caught.value.remedy
    assert not recwarn.list


# Keys of the released tables: height / width.
RELEASED_RATIOS = {
    "infinitetalk-480": "0.26 0.38 0.50 0.67 0.82 1.00 1.22 1.50 1.86 2.00 2.50 2.83 3.60 3.80 4.00",
    "infinitetalk-720": "0.22 0.29 0.36 0.45 0.55 0.63 0.76 0.88 1.00 1.14 1.31 1.50 1.58 1.82 1.91 "
    "2.20 2.30 2.67 2.89 3.62 3.75",
}


@pytest.mark.parametrize("resolution", RELEASED_SIZES)
def test_released_sizes_have_the_released_ratios(resolution):
    sizes = RELEASED_SIZES[resolution]
    assert " ".join(f"{height / width:.2f}" for width, height in sizes) == RELEASED_RATIOS[resolution]
    assert all(side % 64 == 0 for size in sizes for side in size)


@pytest.mark.parametrize("resolution", RELEASED_SIZES)
def test_a_released_size_is_nearest_to_itself(resolution):
    for width, height in RELEASED_SIZES[resolution]:
        assert nearest_size(width, height, resolution) == (width, height)


def test_shapes_are_compared_by_the_rounded_ratios_of_the_released_tables():
    # 0.8199 is nearer to 0.76 than to 0.88, though nearer to 896 / 1024 = 0.875 than to 832 / 1088 = 0.7647.
    assert nearest_size(10_000, 8_199, "infinitetalk-720") == (1088, 832)


@pytest.mark.parametrize("source", [(33, 77), (77, 33), (64, 48), (640, 480), (48, 64), (1000, 125)])
def test_fit_covers_the_frame_and_keeps_its_centre(source):
    out = fit(Image.fromarray(gradient(*source)), 64, 48)
    assert out.shape == (3, 48, 64)
    assert out.dtype == torch.uint8
    assert out[0, :, 32].float().mean() == pytest.approx(127, abs=8)
    assert out[1, 24].float().mean() == pytest.approx(127, abs=8)


def masks_of_the_released_pipeline(source, boxes, frame):
    """The masks of the released pipeline: scaled to cover, cropped at the centre, scaled to latents."""
    (width, height), (frame_width, frame_height) = source, frame
    people = torch.zeros(2, height, width)
    for person, (left, top, right, bottom) in zip(people, boxes, strict=True):
        person[top:bottom, left:right] = 1
    masks = torch.cat([people, (people.sum(0, keepdim=True) == 0).float()])[None]
    scale = max(frame_height / height, frame_width / width)
    covering = math.ceil(scale * height), math.ceil(scale * width)
    masks = functional.interpolate(masks, size=covering, mode="nearest")
    top, left = round((covering[0] - frame_height) / 2), round((covering[1] - frame_width) / 2)
    masks = masks[..., top : top + frame_height, left : left + frame_width]
    return functional.interpolate(masks, size=(frame_height // 8, frame_width // 8), mode="nearest")[0]


@pytest.mark.parametrize("source", [(333, 217), (100, 100), (217, 333), (1024, 576)])
@pytest.mark.parametrize("frame", [(96, 64), (64, 96), (128, 128)])
def test_masks_are_scaled_and_cropped_like_the_frame(source, frame):
    width, height = source
    boxes = [(width // 5, height // 4, width // 2, height - 5), (width // 2, 0, width, height // 2)]
    masks = speaker_masks(source, boxes, frame)
    assert masks.dtype == torch.float32
    assert torch.equal(masks, masks_of_the_released_pipeline(source, boxes, frame))


def test_boxes_are_left_top_right_bottom():
    masks = speaker_masks((160, 80), [(0, 0, 80, 40), (80, 40, 160, 80)], (160, 80))
    expected = torch.zeros(3, 10, 20)
    expected[0, :5, :10] = expected[1, 5:, 10:] = 1
    expected[2] = 1 - expected[0] - expected[1]
    assert torch.equal(masks, expected)


def test_default_masks_are_halves_with_a_margin_of_five_percent():
    masks = speaker_masks((800, 400), None, (800, 400))
    boxes = [(20, 20, 380, 380), (420, 20, 780, 380)]
    assert torch.equal(masks, masks_of_the_released_pipeline((800, 400), boxes, (800, 400)))
    assert torch.equal(masks.sum(0), torch.ones(50, 100))


@pytest.mark.parametrize("box", [(900, 0, 1000, 50), (0, 0, 3, 400)])
def test_the_error_names_a_speaker_outside_the_frame(box):
    with pytest.raises(InvalidRequest, match=r"speaker 2 is outside the frame: .*; allowed: .*800x400"):
        speaker_masks((800, 400), [(300, 0, 500, 400), box], (400, 400))


@pytest.mark.parametrize(
    ("source", "box", "smallest"),
    [
        ((800, 400), (400, 100, 430, 300), "32x32"),  # one side too small
        ((800, 400), (300, 300, 500, 330), "32x32"),
        ((800, 400), (-50, 0, 230, 400), "32x32"),  # within the frame, 15 pixels are left
        ((801, 399), (400, 100, 431, 300), "32x32"),
        ((100, 50), (40, 10, 43, 40), "4x4"),  # a picture that is scaled up
    ],
)
def test_a_box_smaller_than_a_token_is_refused_and_the_smallest_is_named(source, box, smallest):
    other = (source[0] // 2, 0, source[0], source[1])
    with pytest.raises(
        InvalidRequest, match=rf"speaker 1 is smaller than a token.*at least {smallest} pixels"
    ):
        speaker_masks(source, [box, other], (200, 200))


@pytest.mark.parametrize("source", [(800, 400), (333, 517), (1000, 1000), (120, 90)])
def test_the_smallest_box_owns_a_token_wherever_it_is(source):
    frame = (192, 128)
    side = math.ceil(16 / max(frame[0] / source[0], frame[1] / source[1]))
    left, top, right, bottom = place(source, frame).kept
    other = (0, 0, *source)
    for x in (*range(left, right - side, 7), right - side):
        y = top + (x - left) * (bottom - side - top) // (right - left)
        box = (x, y, x + side, y + side)
        assert speaker_masks(source, [box, other], frame)[0, ::2, ::2].any(), box


def test_boxes_of_any_numbers_are_cut_at_the_picture():
    everything = [(0, 0, 80, 80), (80, 0, 160, 80)]
    beyond = [(-(10**30), 0, 80, 80), (80, 0, 10**30, 10**30)]
    assert torch.equal(*(speaker_masks((160, 80), boxes, (160, 80)) for boxes in (everything, beyond)))


@pytest.mark.parametrize("second", [(0, 0, 160, 80), (0, 0, 159, 79), (0, 0, 1000, 1000)])
def test_speakers_that_share_every_token_are_refused(second):
    with pytest.raises(InvalidRequest, match=r"same part of the frame.*16x16 pixels of the picture"):
        speaker_masks((160, 80), [(0, 0, 160, 80), second], (160, 80))


def test_matched_frames_have_the_colours_of_the_reference():
    draw = torch.Generator().manual_seed(0)
    video = torch.rand(3, 11, 24, 32, generator=draw) * 0.6 - 0.6
    reference = torch.rand(3, 24, 32, generator=draw) * 0.5 - 0.1
    before = (video.mean((1, 2, 3)) - reference.mean((1, 2))).abs().max()
    matched = match_colors(video, reference, 1.0)
    after = (matched.mean((2, 3)) - reference.mean((1, 2))[:, None]).abs().max()
    assert after < 0.02 < 0.3 < before
    again = match_colors(matched, reference, 1.0)
    assert (again - matched).abs().max() < 0.02


def test_strength_blends_linearly():
    draw = torch.Generator().manual_seed(1)
    video, reference = torch.rand(3, 3, 8, 8, generator=draw), torch.rand(3, 8, 8, generator=draw) - 0.5
    full, half = match_colors(video, reference, 1.0), match_colors(video, reference, 0.5)
    assert torch.equal(match_colors(video, reference, 0.0), video)
    torch.testing.assert_close(half, (full + video) / 2)


def test_a_uniform_frame_gets_the_mean_colour_of_the_reference():
    reference = torch.tensor([0.5, -0.2, 0.1])[:, None, None].expand(3, 8, 8)
    matched = match_colors(torch.zeros(3, 2, 8, 8), reference, 1.0)
    torch.testing.assert_close(matched, reference[:, None].expand(3, 2, 8, 8), atol=1e-3, rtol=0)


def test_values_outside_the_range_are_clamped():
    draw = torch.Generator().manual_seed(3)
    video, reference = 3 * torch.randn(3, 2, 8, 8, generator=draw), torch.rand(3, 8, 8, generator=draw)
    clamped = match_colors(video.clamp(-1, 1), reference, 0.7)
    assert torch.equal(match_colors(video, reference, 0.7), clamped)
    assert clamped.abs().max() <= 1


def test_each_frame_is_matched_separately():
    draw = torch.Generator().manual_seed(2)
    video, reference = torch.rand(3, 10, 8, 8, generator=draw), torch.rand(3, 8, 8, generator=draw)
    whole = match_colors(video, reference, 1.0)
    torch.testing.assert_close(whole[:, 9:], match_colors(video[:, 9:], reference, 1.0))
    assert match_colors(video.bfloat16(), reference, 1.0).dtype == torch.bfloat16
