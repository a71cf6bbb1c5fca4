"""Driving videos are indexed by time; portraits and videos are told apart by content."""

import io
import math
import struct
import subprocess
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from talkinghead_lab.errors import MediaError
from talkinghead_lab.media.reference import DrivingVideo, Portrait, open_reference

WIDTH, HEIGHT = 64, 48
STEP = 6  # grey levels between two frames
NEARLY_LOSSLESS = {
    "libx264": {"crf": "4"},
    "libvpx-vp9": {"crf": "4", "b": "0"},
    "mpeg2video": {"qmax": "2"},
}


def write_numbered(
    path, count=20, rate=Fraction(25), codec="libx264", times=None, gop=5, silence=0.0, delay=0
):
    """Write a video whose frame n has grey level STEP · n; `times` in milliseconds make the rate variable.

    `silence`: seconds of a sound track; `delay`: frames by which the picture starts later.
    """
    with av.open(str(path), "w") as container:
        if silence:
            sound = container.add_stream("mp2", rate=48_000, layout="mono")
            frame = av.AudioFrame.from_ndarray(
                np.zeros((1, round(48_000 * silence)), np.int16), format="s16", layout="mono"
            )
            frame.sample_rate = 48_000
        stream = container.add_stream(codec, rate=rate, options={"g": str(gop)} | NEARLY_LOSSLESS[codec])
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        if silence:
            container.mux([*sound.encode(frame), *sound.encode(None)])
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(
                np.full((HEIGHT, WIDTH, 3), STEP * number, np.uint8), format="rgb24"
            )
            frame.pts = times[number] if times else number + delay
            frame.time_base = Fraction(1, 1000) if times else 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def number_at(video, seconds):
    return round(np.asarray(video.frame_at(seconds)).mean() / STEP)


@pytest.mark.parametrize(
    ("name", "rate", "codec"),
    [
        ("a.mp4", Fraction(25), "libx264"),
        ("a.mp4", Fraction(30), "libx264"),
        ("a.mkv", Fraction(30000, 1001), "libx264"),
        ("a.mov", Fraction(60), "libx264"),
        ("a.webm", Fraction(24), "libvpx-vp9"),
        ("a.mkv", Fraction(10), "libx264"),
    ],
)
def test_frames_are_found_by_time_at_any_rate(tmp_path, name, rate, codec):
    video = DrivingVideo(write_numbered(tmp_path / name, rate=rate, codec=codec))
    assert video.size == (WIDTH, HEIGHT)
    for seconds in (0.0, 0.04, 0.2, 0.28, 0.36, 0.12):
        assert number_at(video, seconds) == min(19, int(seconds * rate + Fraction(1, 50)))


def test_frames_are_found_by_time_at_a_variable_rate(tmp_path):
    times = [0, 20, 150, 160, 400, 1000]
    video = DrivingVideo(write_numbered(tmp_path / "a.mkv", count=6, rate=Fraction(50), times=times))
    found = [number_at(video, seconds) for seconds in (0.0, 0.1, 0.15, 0.39, 0.4, 0.99, 1.0)]
    assert found == [0, 1, 2, 3, 4, 4, 5]


def test_after_the_end_the_last_frame_is_shown(tmp_path):
    for name in ("a.mp4", "a.mkv", "a.mov"):
        video = DrivingVideo(write_numbered(tmp_path / name))
        assert number_at(video, 0.76) == number_at(video, 0.9) == number_at(video, 1000.0) == 19
        assert number_at(video, -1.0) == 0


@pytest.mark.parametrize(
    ("name", "codec"), [("a.ts", "mpeg2video"), ("a.h264", "libx264"), ("a.m2v", "mpeg2video")]
)
def test_streams_without_an_index_are_read_from_the_start(tmp_path, name, codec):
    video = DrivingVideo(write_numbered(tmp_path / name, codec=codec))
    assert [number_at(video, n / 25) for n in (0, 3, 7, 19)] == [0, 3, 7, 19]


@pytest.mark.parametrize(("name", "codec"), [("clip.mp4", "libx264"), ("a.ts", "mpeg2video")])
def test_frames_from_a_time_on_are_those_that_decoding_from_the_start_gives(tmp_path, name, codec):
    write_numbered(tmp_path / name, codec=codec)
    video = DrivingVideo(tmp_path / name)
    whole = [np.array(frame) for frame in video.frames(0.0, 20)]
    later = [np.array(frame) for frame in video.frames(0.52, 5)]
    assert np.array_equal(later, whole[13:18])


def test_time_counts_from_the_first_frame(tmp_path):
    times = [3320 + 40 * n for n in range(20)]
    assert any(3.32 + n / 25 < (3320 + 40 * n) / 1000 for n in range(20)), "no sum is rounded down"
    video = DrivingVideo(write_numbered(tmp_path / "a.mkv", times=times))
    assert [number_at(video, n / 25) for n in range(20)] == list(range(20))


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_time_counts_from_the_sound_if_that_starts_earlier(tmp_path, name):
    """As the sound track's time does, so that both stay together."""
    video = DrivingVideo(write_numbered(tmp_path / name, silence=1.0, delay=5))
    expected = [0] * 5 + list(range(20))
    assert [number_at(video, n / 25 + 0.02) for n in range(25)] == expected
    frames = [round(np.asarray(frame).mean() / STEP) for frame in video.frames(0.02, 25)]
    assert frames == expected
    assert video.last_time() == pytest.approx(0.96, abs=0.02)


def test_a_damaged_packet_is_skipped(tmp_path):
    path = write_numbered(tmp_path / "a.mp4")
    with av.open(str(path)) as container:
        packet = list(container.demux(video=0))[8]
    content = bytearray(path.read_bytes())
    content[packet.pos : packet.pos + packet.size] = b"\xff" * packet.size
    path.write_bytes(content)
    with av.open(str(path)) as container, pytest.raises(av.error.InvalidDataError):
        list(container.decode(video=0))
    video = DrivingVideo(path)
    assert number_at(video, 0.0) == 0
    assert number_at(video, 0.76) == 19


ONE = 1 << 16  # 1.0 of a display matrix


def set_rotation(path, matrix):
    """Change the display matrix of an mp4's track header (ISO/IEC 14496-12, 8.3.2)."""
    content = bytearray(path.read_bytes())
    matrix_at = content.index(b"tkhd") + 44
    content[matrix_at : matrix_at + 36] = struct.pack(">9i", *matrix)
    path.write_bytes(content)


# (a, b, c, d) of every way to turn by a multiple of 90° and mirror.
TURNS = [(a, 0, 0, d) for a in (1, -1) for d in (1, -1)] + [(0, b, c, 0) for b in (1, -1) for c in (1, -1)]


def write_gradient(path, count=2, **stream_settings):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for name, value in stream_settings.items():
            setattr(stream.codec_context, name, value)
        rows, columns = np.mgrid[:HEIGHT, :WIDTH]
        pixels = np.stack([columns * 4, rows * 5, 0 * rows], axis=-1).astype(np.uint8)
        for _ in range(count):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def shown_by_ffmpeg(path, filters="null"):
    """The first frame as the ffmpeg program shows it."""
    shown = path.with_suffix(".png")
    command = ["/usr/bin/ffmpeg", "-v", "error", "-i", path, "-frames:v", "1", "-vf", filters, "-y", shown]
    subprocess.run(command, check=True)
    return Image.open(shown).convert("RGB")


def difference(found, expected):
    """Mean absolute difference of two pictures, in levels of 255."""
    assert found.size == expected.size
    return np.abs(np.asarray(found).astype(int) - np.asarray(expected)).mean()


@pytest.mark.skipif(not Path("/usr/bin/ffmpeg").exists(), reason="compares with the ffmpeg program")
@pytest.mark.parametrize("turn", TURNS)
def test_videos_are_turned_and_mirrored_like_ffmpeg(tmp_path, turn):
    path = write_gradient(tmp_path / "a.mp4")
    a, b, c, d = (ONE * entry for entry in turn)
    set_rotation(path, [a, b, 0, c, d, 0, 0, 0, 1 << 30])
    video, expected = DrivingVideo(path), shown_by_ffmpeg(path)
    assert video.size == expected.size
    assert difference(video.frame_at(0), expected) < 2


@pytest.mark.parametrize(("angle", "size"), [(20, (WIDTH, HEIGHT)), (70, (HEIGHT, WIDTH))])
def test_other_angles_count_as_the_nearest_quarter_turn(tmp_path, angle, size):
    path = write_gradient(tmp_path / "a.mp4")
    cosine, sine = (round(ONE * f(math.radians(angle))) for f in (math.cos, math.sin))
    set_rotation(path, [cosine, sine, 0, -sine, cosine, 0, 0, 0, 1 << 30])
    assert DrivingVideo(path).size == size


def test_a_frame_with_unknown_side_data_is_turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = io.BytesIO()
    Image.linear_gradient("L").resize((WIDTH, HEIGHT)).save(picture, "jpeg", exif=exif)
    (tmp_path / "a.mjpeg").write_bytes(2 * picture.getvalue())
    shown = np.asarray(DrivingVideo(tmp_path / "a.mjpeg").frame_at(0))
    assert shown.shape == (WIDTH, HEIGHT, 3)
    assert shown[:, 40].mean() < shown[:, 8].mean()  # the dark top is on the right


@pytest.mark.parametrize("shape", [Fraction(20), Fraction(1, 20)])
def test_an_impossible_pixel_shape_is_refused_before_scaling(tmp_path, shape, monkeypatch):
    path = write_gradient(tmp_path / "a.mp4", sample_aspect_ratio=shape)
    monkeypatch.setattr(Image.Image, "resize", lambda *_: pytest.fail("scaled"))
    with pytest.raises(MediaError, match=r"too narrow|too small"):
        DrivingVideo(path)


def test_non_square_pixels_are_scaled(tmp_path):
    path = write_gradient(tmp_path / "a.mkv", sample_aspect_ratio=Fraction(4, 3))
    assert DrivingVideo(path).size == (85, HEIGHT)


def test_content_not_the_name_tells_videos_from_images(tmp_path):
    write_numbered(tmp_path / "video.mp4").rename(tmp_path / "video.png")
    assert isinstance(open_reference(tmp_path / "video.png"), DrivingVideo)
    Image.new("RGB", (40, 30), "red").save(tmp_path / "picture.png")
    (tmp_path / "picture.png").rename(tmp_path / "picture.mp4")
    portrait = open_reference(tmp_path / "picture.mp4")
    assert isinstance(portrait, Portrait)
    assert portrait.size == (40, 30)
    assert portrait.frame_at(0.0).getpixel((0, 0)) == portrait.frame_at(9.0).getpixel((0, 0)) == (255, 0, 0)


def test_of_several_streams_the_default_one_is_shown(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("mpeg4", rate=25) for _ in range(2)]
        streams[1].disposition = av.stream.Disposition.default
        for stream in streams:
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for level, stream in zip((40, 200), streams, strict=True):
            frame = av.VideoFrame.from_ndarray(np.full((HEIGHT, WIDTH, 3), level, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    assert np.asarray(DrivingVideo(path).frame_at(0)).mean() == pytest.approx(200, abs=4)


def test_an_animation_is_an_image(tmp_path):
    frames = [Image.new("RGB", (40, 30), color) for color in ("red", "blue", "lime")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    shown = open_reference(tmp_path / "a.gif")
    assert isinstance(shown, Portrait) and shown.frame_at(9.0).getpixel((0, 0)) == (255, 0, 0)


def test_a_recording_with_cover_art_is_not_a_video(tmp_path):
    path = tmp_path / "a.mp3"
    with av.open(str(path), "w") as container:
        sound = container.add_stream("mp3", rate=44100, layout="mono")
        cover = container.add_stream("png", rate=1)
        cover.width = cover.height = 32
        cover.pix_fmt = "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        container.mux(cover.encode(av.VideoFrame(32, 32, "rgb24")))
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
        container.mux(cover.encode(None))
    with pytest.raises(MediaError, match=r"holds sound, but no picture.*a\.mp3; allowed: .* audio_path"):
        open_reference(path)


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.webm", "libvpx-vp9")])
def test_a_video_of_one_frame_is_a_picture(tmp_path, name, codec):
    portrait = open_reference(write_numbered(tmp_path / name, count=1, codec=codec))
    assert isinstance(portrait, Portrait) and portrait.size == (WIDTH, HEIGHT)
    assert number_at(portrait, 0.0) == number_at(portrait, 9.0) == 0
    assert portrait.warnings == ("The video has a single frame: it is used as a picture.",)


def test_a_picture_that_only_ffmpeg_reads_is_no_video(tmp_path):
    with av.open(str(tmp_path / "a.dpx"), "w", format="image2", options={"update": "1"}) as container:
        stream = container.add_stream("dpx", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "rgb24"
        container.mux(stream.encode(av.VideoFrame(WIDTH, HEIGHT, "rgb24")))
        container.mux(stream.encode(None))
    with pytest.raises(MediaError, match="the image cannot be read"):
        open_reference(tmp_path / "a.dpx")


@pytest.mark.parametrize(
    "name", ["text.txt", "weights.bin", "empty.mp4", "cut.mp4", "drawing.png", "missing.mp4", "."]
)
def test_the_error_names_a_file_that_is_neither(tmp_path, name):
    write_numbered(tmp_path / "cut.mp4")
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "cut.mp4").read_bytes()[:400])
    (tmp_path / "text.txt").write_text("words\n" * 500)
    (tmp_path / "drawing.png").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")  # no decoder for it
    (tmp_path / "weights.bin").write_bytes(np.random.default_rng(0).bytes(50_000))
    (tmp_path / "empty.mp4").write_bytes(b"")
    with pytest.raises(MediaError, match=f"{name}; allowed: .*a video to dub"):
        open_reference(tmp_path / name)


def test_a_truncated_video_shows_what_is_left(tmp_path):
    whole = write_numbered(tmp_path / "whole.ts", codec="mpeg2video").read_bytes()
    (tmp_path / "cut.ts").write_bytes(whole[: len(whole) // 2])
    video = DrivingVideo(tmp_path / "cut.ts")
    assert number_at(video, 0.0) == 0
    assert 5 <= number_at(video, 10.0) <= 12


def test_tiny_videos_are_refused(tmp_path):
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 8
        stream.pix_fmt = "yuv420p"
        for _ in range(2):
            container.mux(stream.encode(av.VideoFrame(8, 8, "yuv420p")))
        container.mux(stream.encode(None))
    with pytest.raises(MediaError, match="too small"):
        open_reference(tmp_path / "a.mkv")
