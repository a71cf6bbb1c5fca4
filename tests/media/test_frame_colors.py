"""Frames of user videos are shown in the colours that ffmpeg gives them."""

import subprocess
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from talkinghead_lab.errors import MediaError
from talkinghead_lab.foundation.paths import local_file
from talkinghead_lab.media.frame_colors import to_rgb
from talkinghead_lab.media.gamut import BT2020, DISPLAY_P3, SRGB, to_srgb_primaries
from talkinghead_lab.media.reference import DrivingVideo

FFMPEG = Path("/usr/bin/ffmpeg")
pytestmark = pytest.mark.skipif(not FFMPEG.exists(), reason="makes its videos with the ffmpeg program")
PORTRAIT = ("-loop", "1", "-i", local_file("sample:portrait"))
BT709 = (
    "scale=160:160:out_color_matrix=bt709:out_range=tv,format=yuv444p,"
    "setparams=range=tv:colorspace=bt709:color_primaries=bt709:color_trc=bt709"
)


def ffmpeg(*arguments):
    subprocess.run([FFMPEG, "-v", "error", "-y", *map(str, arguments)], check=True)


def shown(path, filters="null"):
    """The first frame, converted by the ffmpeg program."""
    picture = path.with_suffix(".png")
    ffmpeg("-i", path, "-frames:v", 1, "-vf", f"{filters},format=rgb24", picture)
    return np.asarray(Image.open(picture)).astype(int)


def first_frame(path, background="white"):
    return np.asarray(DrivingVideo(path, background).frame_at(0)).astype(int)


def difference(found, expected):
    """Mean absolute difference in levels of 255."""
    assert found.shape == expected.shape
    return np.abs(found - expected).mean()


def write_color(path, size, matrix, tags=(), pixel_format="yuv420p", full=0):
    """Two frames of (200, 40, 40)."""
    scale = f"scale=out_color_matrix={matrix}:out_range={'pc' if full else 'tv'},format={pixel_format}"
    source = f"color=0xc82828:s={size},format=rgb24"
    tags = tags or ("-bsf:v", "h264_metadata=matrix_coefficients=2:video_full_range_flag=0")
    ffmpeg(
        *("-f", "lavfi", "-i", source, "-frames:v", 2, "-vf", scale, "-c:v", "libx264", "-qp", 0), *tags, path
    )
    return path


@pytest.mark.parametrize(
    ("size", "matrix"),
    [
        ("1280x720", "bt709"),
        ("1920x800", "bt709"),
        ("720x1280", "bt709"),
        ("720x576", "bt601"),
        ("480x640", "bt601"),
    ],
)
def test_without_tags_the_size_tells_the_matrix(tmp_path, size, matrix):
    path = write_color(tmp_path / "a.mp4", size, matrix)
    assert np.abs(first_frame(path)[100, 100] - (200, 40, 40)).max() <= 2


@pytest.mark.parametrize(
    ("size", "matrix", "tags", "full"),
    [
        ("1280x720", "bt601", ("-colorspace", "smpte170m"), 0),
        ("640x480", "bt709", ("-colorspace", "bt709"), 0),
        ("640x480", "bt709", ("-colorspace", "bt709", "-color_range", "pc"), 1),
        ("640x480", "smpte240m", ("-colorspace", "smpte240m"), 0),
        ("640x480", "bt709", ("-color_primaries", "bt709"), 0),
    ],
)
def test_tags_tell_matrix_and_range(tmp_path, size, matrix, tags, full):
    path = write_color(tmp_path / "a.mp4", size, matrix, tags, full=full)
    assert np.abs(first_frame(path)[100, 100] - (200, 40, 40)).max() <= 2


def test_an_unknown_matrix_is_refused(tmp_path):
    tags = ("-bsf:v", "h264_metadata=matrix_coefficients=14")
    path = write_color(tmp_path / "a.mp4", "320x240", "bt709", tags)
    with pytest.raises(MediaError, match="ICtCp"):
        DrivingVideo(path)


def test_dolby_vision_without_a_base_layer_is_refused(tmp_path):
    path = tmp_path / "a.mp4"
    untagged = ("-c:v", "libx265", "-x265-params", "log-level=none", "-tag:v", "hvc1")
    ffmpeg("-f", "lavfi", "-i", "color=red:s=160x160", "-frames:v", 2, *untagged, path)
    DrivingVideo(path)
    path.write_bytes(path.read_bytes().replace(b"hvc1", b"dvh1"))
    with pytest.raises(MediaError, match="Dolby Vision"):
        DrivingVideo(path)


def write_converted(path, conversion, x265_tags, *source):
    filters = f"{BT709},zscale={conversion},format=yuv420p10le"
    tags = ("-c:v", "libx265", "-preset", "ultrafast", "-x265-params", f"log-level=none:crf=8:{x265_tags}")
    ffmpeg(*(source or PORTRAIT), "-frames:v", 2, "-vf", filters, *tags, path)
    return path


SDR_WHITE = 203  # cd/m²
TRANSFERS = {"arib-std-b67": "HLG", "smpte2084": "PQ"}


def write_hdr(path, transfer, *source, white=SDR_WHITE):
    conversion = f"p=bt2020:t={transfer}:m=bt2020nc:r=limited:npl={white}"
    tags = f"colorprim=bt2020:colormatrix=bt2020nc:transfer={transfer}"
    return write_converted(path, conversion, tags, *source)


@pytest.mark.parametrize("transfer", TRANSFERS)
@pytest.mark.parametrize("operator", ["clip", "mobius"])
def test_hdr_is_tone_mapped(tmp_path, transfer, operator):
    path = write_hdr(tmp_path / "a.mp4", transfer)
    found = first_frame(path)
    tone_mapping = (
        f"zscale=t=linear:npl={SDR_WHITE},format=gbrpf32le,tonemap={operator},"
        "zscale=p=bt709:t=bt709:m=bt709:r=limited,format=yuv420p"
    )
    assert difference(found, shown(path, tone_mapping)) < 8
    original = Image.open(local_file("sample:portrait")).convert("RGB").resize((160, 160))
    assert difference(found, np.asarray(original).astype(int)) < 8


@pytest.mark.parametrize("transfer", TRANSFERS)
def test_highlights_keep_their_order(tmp_path, transfer):
    ramp = ("-f", "lavfi", "-i", "color=black:s=160x160,format=gray,geq=lum='255*X/W'")
    path = write_hdr(tmp_path / "a.mp4", transfer, *ramp, white=1000)
    row = first_frame(path)[80].mean(axis=-1)
    assert np.diff(row[::20]).min() >= 1
    assert row[0] < 3
    assert row[-1] > 250


@pytest.mark.parametrize(
    ("primaries", "matrix"), [("bt2020", "bt2020nc"), ("smpte432", "bt709"), ("smpte431", "bt709")]
)
def test_wide_gamuts_are_converted(tmp_path, primaries, matrix):
    conversion = f"p={primaries}:t=bt709:m={matrix}:r=limited"
    tags = f"colorprim={primaries}:colormatrix={matrix}:transfer=bt709"
    path = write_converted(tmp_path / "a.mp4", conversion, tags)
    expected = shown(path, "zscale=p=bt709:m=bt709:r=limited,format=yuv420p")
    assert difference(first_frame(path), expected) < 2
    assert difference(shown(path), expected) > 2


def test_srgb_primaries_stay(tmp_path):
    np.testing.assert_allclose(to_srgb_primaries(SRGB), np.eye(3), atol=1e-6)
    # ITU-R BT.2087, equation 3, inverted.
    expected = [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]]
    np.testing.assert_allclose(to_srgb_primaries(BT2020), expected, atol=2e-4)
    np.testing.assert_allclose(to_srgb_primaries(DISPLAY_P3).sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("primaries", [((0.3, 0.3),) * 4, ((0.3, 0),) * 4])
def test_impossible_primaries_are_refused(primaries):
    with pytest.raises(ValueError, match="impossible primaries"):
        to_srgb_primaries(primaries)


def test_a_frame_larger_than_a_band_is_converted_whole():
    frame = av.VideoFrame.from_ndarray(np.full((600, 32, 3), 150, np.uint8), format="rgb24")
    frame.color_primaries = 9
    out = to_rgb(frame)
    assert out.shape == (600, 32, 3)
    assert np.abs(out.astype(int) - 150).max() <= 1


@pytest.mark.parametrize(
    ("name", "codec", "pixel_format"),
    [
        ("a.webm", "libvpx-vp9", "yuva420p"),
        ("a.webm", "libvpx", "yuva420p"),
        ("a.mov", "qtrle", "argb"),
        ("a.mov", "png", "rgba"),
        ("a.mov", "png", "pal8"),
        ("a.mov", "prores_ks", "yuva444p10le"),
        ("a.mkv", "ffv1", "yuva420p"),
    ],
)
def test_transparent_pixels_show_the_background(tmp_path, name, codec, pixel_format):
    picture = Image.new("RGBA", (160, 120), (0, 0, 0, 0))
    picture.paste((0, 255, 0, 255), (40, 30, 120, 90))
    picture.quantize(4).save(tmp_path / "a.png") if pixel_format == "pal8" else picture.save(
        tmp_path / "a.png"
    )
    path = tmp_path / name
    quality = ("-auto-alt-ref", 0, "-crf", 5, "-b:v", "2M") if "vpx" in codec else ()
    source = ("-loop", 1, "-i", tmp_path / "a.png", "-frames:v", 3)
    ffmpeg(*source, "-c:v", codec, "-pix_fmt", pixel_format, *quality, path)
    for background, color in (("white", (255, 255, 255)), ("#1020c0", (16, 32, 192))):
        video = DrivingVideo(path, background)
        for seconds in (0, 0.08):
            found = np.asarray(video.frame_at(seconds)).astype(int)
            assert np.abs(found[10, 10] - color).max() <= 2
            assert np.abs(found[60, 80] - (0, 255, 0)).max() <= 6


@pytest.mark.parametrize(
    ("name", "field_order", "codec"),
    [
        ("a.mp4", "tff", ("libx264", "-crf", 5, "-x264opts", "interlaced=1")),
        ("a.ts", "bff", ("mpeg2video", "-q:v", 2)),
    ],
)
def test_interlaced_videos_are_deinterlaced(tmp_path, name, field_order, codec):
    path = tmp_path / name
    box = "color=gray:s=320x240:r=50[wall];color=white:s=60x60:r=50[box];[wall][box]overlay=x=20+n*5:y=90"
    fields = ("-vf", f"interlace=scan={field_order}", "-flags", "+ilme+ildct")
    ffmpeg("-f", "lavfi", "-i", box, "-frames:v", 12, *fields, "-c:v", *codec, path)
    video = DrivingVideo(path)
    found = [np.asarray(video.frame_at(number / 25).convert("L")).astype(int) for number in range(12)]
    combed = shown(path, "format=gray")[..., 0]
    assert combing(combed) > 2
    assert all(combing(frame) < 0.5 for frame in found)
    lefts = [np.flatnonzero(frame[120] > 200).min() for frame in found]
    assert np.diff(lefts) == pytest.approx(10, abs=2)


def combing(frame):
    """How much more neighbouring rows differ than rows of the same field, within the box's height."""
    rows = frame[95:145]
    return np.abs(rows[1:-1] - rows[2:]).mean() - np.abs(rows[:-2] - rows[2:]).mean()
