"""Pictures become 8-bit sRGB: profiles, PNG gamma, depth, transparency and orientation."""

import io
import logging
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from talkinghead_lab.errors import MediaError
from talkinghead_lab.foundation.paths import local_file
from talkinghead_lab.media.frame_colors import to_srgb
from talkinghead_lab.media.gamut import BT2020, DISPLAY_P3, to_srgb_primaries
from talkinghead_lab.media.image import is_picture, read_portrait
from talkinghead_lab.media.reference import Portrait, open_reference
from tests.media.profiles import RGB_SPACES, cmyk_profile, gray_profile, rgb_profile, to_inks

SRGB = ImageCms.createProfile("sRGB")


@pytest.fixture(scope="module")
def portrait():
    """The sample portrait, paler, so that every colour space contains its colours."""
    picture = Image.open(local_file("sample:portrait")).convert("RGB").resize((80, 80))
    return Image.blend(picture, Image.new("RGB", picture.size, "gray"), 0.3)


def pixels(path, background="white"):
    return np.asarray(read_portrait(path, background)).astype(int)


def difference(found, expected):
    return np.abs(found - np.asarray(expected).astype(int)).mean()


@pytest.mark.parametrize("space", RGB_SPACES)
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tiff", "a.webp"])
def test_rgb_profiles(tmp_path, portrait, space, name):
    profile = rgb_profile(space)
    encoded = ImageCms.profileToProfile(portrait, SRGB, ImageCms.ImageCmsProfile(io.BytesIO(profile)))
    lossless = {"lossless": True} if name.endswith("webp") else {"quality": 100, "subsampling": 0}
    encoded.save(tmp_path / name, icc_profile=profile, **lossless)
    assert difference(pixels(tmp_path / name), portrait) < 1.5
    assert difference(np.asarray(encoded).astype(int), portrait) > 2


def test_profiles_apply_to_palettes_and_beside_transparency(tmp_path, portrait):
    profile = rgb_profile("Adobe RGB")
    encoded = ImageCms.profileToProfile(portrait, SRGB, ImageCms.ImageCmsProfile(io.BytesIO(profile)))
    encoded.quantize(256).save(tmp_path / "palette.png", icc_profile=profile)
    assert difference(pixels(tmp_path / "palette.png"), portrait) < 3
    half = encoded.copy()
    half.putalpha(Image.linear_gradient("L").resize((80, 80)).point(lambda level: 255 * (level > 127)))
    half.save(tmp_path / "alpha.png", icc_profile=profile)
    found = pixels(tmp_path / "alpha.png", "#102030")
    assert (found[0, 0] == (16, 32, 48)).all(), "the background is sRGB"
    assert difference(found[50:], np.asarray(portrait)[50:]) < 1.5


def test_cmyk_profiles(tmp_path, portrait):
    to_inks(portrait).save(tmp_path / "a.jpg", quality=100, subsampling=0, icc_profile=cmyk_profile())
    to_inks(portrait).save(tmp_path / "a.tiff", icc_profile=cmyk_profile())
    for name in ("a.jpg", "a.tiff"):
        assert difference(pixels(tmp_path / name), portrait) < 3
    to_inks(portrait).save(tmp_path / "plain.jpg", quality=100, subsampling=0)
    assert difference(pixels(tmp_path / "plain.jpg"), portrait) > 20


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_grey_profiles(tmp_path, mode):
    grey = Image.linear_gradient("L").resize((64, 64))
    picture = grey.convert(mode) if mode != "I;16" else Image.fromarray(np.asarray(grey, np.uint16) * 257)
    picture.save(tmp_path / "a.png", icc_profile=gray_profile(1.0))
    light = np.asarray(grey)[32, 32] / 255
    expected = 255 * (1.055 * light ** (1 / 2.4) - 0.055)
    assert np.abs(pixels(tmp_path / "a.png")[32, 32] - expected).max() <= 2


def test_an_srgb_profile_changes_nothing(tmp_path, portrait):
    profile = ImageCms.ImageCmsProfile(SRGB).tobytes()
    portrait.save(tmp_path / "a.png", icc_profile=profile)
    assert difference(pixels(tmp_path / "a.png"), portrait) == 0


@pytest.mark.parametrize("profile", [b"no profile", cmyk_profile()[:900], cmyk_profile(), gray_profile(2.2)])
def test_a_profile_that_does_not_fit_is_ignored_with_a_warning(tmp_path, portrait, profile, caplog):
    portrait.save(tmp_path / "a.png", icc_profile=profile)
    with caplog.at_level(logging.WARNING):
        assert difference(pixels(tmp_path / "a.png"), portrait) == 0
    assert "colour profile of the picture is ignored" in caplog.text
    opened = open_reference(tmp_path / "a.png")
    assert isinstance(opened, Portrait)
    assert "its colours may be off" in opened.warnings[0]


def test_lab_tiff(tmp_path, portrait):
    lab = ImageCms.profileToProfile(portrait, SRGB, ImageCms.createProfile("LAB"), outputMode="LAB")
    lab.save(tmp_path / "a.tiff")
    assert difference(pixels(tmp_path / "a.tiff"), portrait) < 2


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def write_png(path, pixels, depth, color, *chunks):
    """A PNG of 32x32 pixels that repeats one row of bytes."""
    header = chunk(b"IHDR", struct.pack(">2I5B", 32, 32, depth, color, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(32 * (b"\0" + pixels)))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + data + chunk(b"IEND", b""))
    return path


def chromaticities(*values):
    return chunk(b"cHRM", struct.pack(">8I", *(round(100_000 * value) for value in values)))


LINEAR = chunk(b"gAMA", struct.pack(">I", 100_000))
USUAL = chunk(b"gAMA", struct.pack(">I", 45_455))
SRGB_PRIMARIES = chromaticities(0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
P3_PRIMARIES = chromaticities(0.3127, 0.329, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06)


@pytest.mark.parametrize(
    ("color", "row", "chunks", "expected"),
    [
        (0, b"\x80", (LINEAR,), (188, 188, 188)),
        (2, b"\x80\x40\x20", (LINEAR, SRGB_PRIMARIES), (188, 137, 99)),
        (2, b"\x80\x40\x20", (USUAL, SRGB_PRIMARIES), (128, 64, 32)),
        (2, b"\x80\x40\x20", (LINEAR, chunk(b"sRGB", b"\0")), (128, 64, 32)),
        (2, b"\x78\x43\x31", (USUAL, P3_PRIMARIES), (128, 63, 44)),
        (2, b"\x80\x40\x20", (LINEAR, chromaticities(*8 * [0.3])), (188, 137, 99)),
    ],
)
def test_png_gamma_and_primaries(tmp_path, color, row, chunks, expected):
    path = write_png(tmp_path / "a.png", 32 * row, 8, color, *chunks)
    assert np.abs(pixels(path)[5, 5] - expected).max() <= 1


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("transparent", ["white", "black"])
def test_a_transparent_grey_of_any_depth(tmp_path, depth, transparent):
    row = b"\xff" * (2 * depth) + b"\0" * (2 * depth)  # white on the left, black on the right
    level = ((1 << depth) - 1) if transparent == "white" else 0
    path = write_png(tmp_path / "a.png", row, depth, 0, chunk(b"tRNS", struct.pack(">H", level)))
    left, right = pixels(path, "#00ff00")[5, [2, 30]]
    assert (left.tolist(), right.tolist()) == (
        ([0, 255, 0], [0, 0, 0]) if transparent == "white" else ([255, 255, 255], [0, 255, 0])
    )


def test_a_transparent_colour_of_sixteen_bits(tmp_path):
    row = 16 * struct.pack(">3H", 0x8012, 0x1234, 0xFF00) + 16 * struct.pack(">3H", 0, 0, 0)
    transparent = chunk(b"tRNS", struct.pack(">3H", 0x8012, 0x1234, 0xFF00))
    left, right = pixels(write_png(tmp_path / "a.png", row, 16, 2, transparent), "#00ff00")[5, [2, 30]]
    assert (left.tolist(), right.tolist()) == ([0, 255, 0], [0, 0, 0])


def test_sixteen_bit_colours(tmp_path):
    values = np.array([0x0000, 0x80FF, 0xFF00, 0xFFFF])
    row = 32 * struct.pack(">4H", *values)
    found = pixels(write_png(tmp_path / "a.png", row, 16, 6), "black")[5, 5]
    assert np.abs(found - values[:3] / 257).max() <= 1


def write_grey_tiff(path, samples, bits, photometric, order="<"):
    """An uncompressed grey TIFF 6.0 of one strip, 32x32."""
    width, height, data = 32, 32, np.asarray(samples, f"{order}u{bits // 8}").tobytes()
    entries = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height}
    entries[279] = len(data)
    directory = struct.pack(f"{order}H", len(entries))
    for tag, value in entries.items():
        directory += struct.pack(f"{order}HHII", tag, 4, 1, value)
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(data))
    path.write_bytes(start + data + directory + bytes(4))
    return path


@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize("photometric", [0, 1])
def test_grey_tiffs_of_any_depth(tmp_path, bits, photometric):
    levels = np.arange(1024).reshape(32, 32) / 1023
    samples = np.round((levels if photometric else 1 - levels) * ((1 << bits) - 1))
    path = write_grey_tiff(tmp_path / "a.tiff", samples, bits, photometric)
    if (bits, photometric) == (32, 0):
        with pytest.raises(MediaError, match="unknown format"):  # Pillow does not know it
            read_portrait(path)
    else:
        assert np.abs(pixels(path)[..., 1] - 255 * levels).max() <= 1


ORIENTED = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
    8: lambda p: np.rot90(p),
}


def corners():
    picture = Image.new("RGB", (64, 48), "black")
    picture.paste("red", (0, 0, 32, 24))
    picture.paste("lime", (32, 0, 64, 24))
    picture.paste("blue", (0, 24, 32, 48))
    return picture


@pytest.mark.parametrize("orientation", ORIENTED)
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.tiff", "a.avif", "a.heic"])
def test_orientation(tmp_path, orientation, name):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = corners()
    if name == "a.heic":
        picture = pytest.importorskip("pillow_heif").from_pillow(picture)
        picture.save(tmp_path / name, exif=exif.tobytes(), quality=95)
    else:
        picture.save(tmp_path / name, exif=exif, quality=95)
    expected = ORIENTED[orientation](np.asarray(corners()).astype(int))
    found = pixels(tmp_path / name)
    assert found.shape == expected.shape
    assert difference(found, expected) < 10


def test_an_orientation_that_only_xmp_tells(tmp_path):
    xmp = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'><rdf:Description tiff:Orientation=\"6\"/></x:xmpmeta>"
    corners().save(tmp_path / "a.jpg", xmp=xmp, quality=95)
    assert pixels(tmp_path / "a.jpg").shape == (64, 48, 3)


def test_a_heic_picture_has_its_profile_applied(tmp_path, portrait):
    heif = pytest.importorskip("pillow_heif")
    profile = rgb_profile("Adobe RGB")
    encoded = ImageCms.profileToProfile(portrait, SRGB, ImageCms.ImageCmsProfile(io.BytesIO(profile)))
    encoded.info["icc_profile"] = profile
    heif.from_pillow(encoded).save(tmp_path / "a.jpg", format="HEIF", quality=95, chroma=444)
    assert is_picture(tmp_path / "a.jpg")
    assert difference(pixels(tmp_path / "a.jpg"), portrait) < 3


@pytest.mark.parametrize(("primaries", "transfer"), [(12, 13), (9, 16), (9, 18)])
def test_a_heic_picture_in_hdr_or_a_wide_gamut_is_converted(tmp_path, portrait, primaries, transfer):
    heif = pytest.importorskip("pillow_heif")
    signal = encode(np.asarray(portrait), primaries, transfer)
    tags = {"color_primaries": primaries, "transfer_characteristics": transfer, "matrix_coefficients": 1}
    heif.from_pillow(Image.fromarray(signal)).save(tmp_path / "a.heic", quality=-1, chroma=444, **tags)
    assert difference(pixels(tmp_path / "a.heic"), portrait) < 4


def test_a_png_picture_in_hdr_is_converted(tmp_path):
    signal = np.uint8([118, 118, 118])
    expected = to_srgb(signal[None, None].astype(np.uint16) * 257, 9, 18)[0, 0]
    points = chunk(b"cICP", bytes((9, 18, 0, 1)))
    profile = chunk(b"iCCP", b"a\0\0" + zlib.compress(rgb_profile("gamma 1.8")))
    long_text = chunk(b"tEXt", b"a\0" + 20_000 * b"b")
    for chunks in ((points,), (points, profile), (profile, long_text, points)):
        path = write_png(tmp_path / "a.png", 32 * signal.tobytes(), 8, 2, *chunks)
        assert (pixels(path)[5, 5] == expected).all()
    assert np.abs(expected - 118.0).min() > 10


@pytest.mark.skipif(not Path("/usr/bin/ffmpeg").exists(), reason="made with the ffmpeg program")
def test_an_avif_picture_in_hdr_is_converted(tmp_path):
    source = ("-f", "lavfi", "-i", "color=0x767676:s=64x64,format=yuv420p10le")
    tags = ("-color_primaries", "bt2020", "-color_trc", "arib-std-b67", "-colorspace", "bt2020nc")
    still = ("-frames:v", "1", "-c:v", "libaom-av1", "-still-picture", "1", "-cpu-used", "8")
    command = ["/usr/bin/ffmpeg", "-v", "error", *source, *tags, *still, tmp_path / "a.avif"]
    subprocess.run(command, check=True)
    expected = to_srgb(np.full((1, 1, 3), 118 * 257, np.uint16), 9, 18)[0, 0]
    assert np.abs(pixels(tmp_path / "a.avif")[32, 32] - expected).max() <= 4


def encode(colors, primaries, transfer):
    """The inverse of `to_srgb` below its knee, by search over 8-bit levels."""
    levels = np.repeat(np.arange(256, dtype=np.uint16)[:, None, None] * 257, 3, axis=-1)
    shown = to_srgb(levels, 9 if transfer in (16, 18) else primaries, transfer)[:, 0, 0].astype(int)
    matrix = np.linalg.inv(to_srgb_primaries({9: BT2020, 12: DISPLAY_P3}[primaries]))
    light = ((colors / 255) ** 2.4) @ matrix.T
    wanted = 255 * light.clip(0, 1) ** (1 / 2.4)
    return np.abs(wanted[..., None] - shown).argmin(-1).astype(np.uint8)


HEIC_START = b"\0\0\0\x1cftypmif1\0\0\0\0mif1heicmiaf" + bytes(100)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (HEIC_START, "HEIC needs the extra `heic`.*pip install 'talkinghead_lab\\[heic\\]'"),
        (b"\xff\x0a" + bytes(100), "JPEG XL is not supported"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(100), "JPEG XL is not supported"),
        (b"8BPS" + bytes(100), "Photoshop is not supported"),
    ],
)
def test_formats_that_are_not_read_are_named(tmp_path, start, message, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    (tmp_path / "a.png").write_bytes(start)
    assert is_picture(tmp_path / "a.png")
    with pytest.raises(MediaError, match=message):
        read_portrait(tmp_path / "a.png")


def test_a_damaged_heic_picture_is_refused(tmp_path):
    pytest.importorskip("pillow_heif")
    (tmp_path / "a.heic").write_bytes(HEIC_START)
    with pytest.raises(MediaError, match=r"cannot be read .*a\.heic"):
        read_portrait(tmp_path / "a.heic")
