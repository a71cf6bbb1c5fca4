"""Writing, joining and reading videos."""

import json
import os
import shutil
import subprocess
import sys

import av
import numpy as np
import pytest
from PIL import Image

from talkinghead_lab.errors import MediaError, OutputError
from talkinghead_lab.media.audio import SOUNDTRACK_RATE, read_soundtrack
from talkinghead_lab.media.video import (
    VideoFacts,
    contact_sheet,
    evenly_spaced,
    join_videos,
    probe,
    read_frames,
    write_video,
)
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.request_text import VIDEO_METADATA_KEY

WIDTH, HEIGHT = 64, 48


def moving_blocks(count, block=7):
    """Blocks of frames with a smooth moving pattern; all frames differ."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    for start in range(0, count, block):
        yield np.stack(
            [
                np.stack([columns * 3, rows * 4, np.full_like(rows, 4 * number % 256)], axis=-1)
                for number in range(start, min(start + block, count))
            ]
        ).astype(np.uint8)


def tone(seconds, channels=1, hertz=440.0):
    times = np.arange(round(seconds * SOUNDTRACK_RATE)) / SOUNDTRACK_RATE
    return np.tile(0.3 * np.sin(2 * np.pi * hertz * times), (channels, 1)).astype(np.float32)


def written(path, count=10, sound=None, metadata=None):
    write_video(
        path, moving_blocks(count), tone(count / 25) if sound is None else sound, count, metadata or {}
    )
    return path


@pytest.mark.parametrize("count", [1, 2, 5, 81, 130])
@pytest.mark.parametrize("channels", [1, 2])
def test_sound_and_frames_have_exactly_the_same_duration(tmp_path, count, channels):
    for name, seconds in (("short", count / 50), ("long", count / 25 + 1), ("none", 0.0)):
        path = written(tmp_path / f"{name}.mp4", count, tone(seconds, channels))
        assert probe(path) == VideoFacts(
            width=WIDTH,
            height=HEIGHT,
            frame_count=count,
            duration_seconds=count / 25,
            audio_seconds=count / 25,
            codecs=("h264", "aac"),
        )
        assert sum(1 for _ in read_frames(path)) == count


def ffprobe(path):
    command = [
        "ffprobe",
        "-v",
        "error",
        "-count_frames",
        "-show_streams",
        "-show_format",
        "-of",
        "json",
        str(path),
    ]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(shutil.which("ffprobe") is None, reason="ffprobe is not installed")
@pytest.mark.parametrize("count", [1, 33])
def test_ffprobe_and_pyav_agree(tmp_path, count):
    path = written(tmp_path / "a.mp4", count, tone(9, channels=2))
    found, facts = ffprobe(path), probe(path)
    picture, voice = found["streams"]
    assert (picture["codec_name"], voice["codec_name"]) == facts.codecs == ("h264", "aac")
    assert (picture["width"], picture["height"]) == (facts.width, facts.height)
    assert int(picture["nb_read_frames"]) == facts.frame_count == count
    assert float(picture["duration"]) == pytest.approx(facts.duration_seconds, abs=1e-6)
    assert float(voice["duration"]) == pytest.approx(facts.audio_seconds, abs=1e-6)
    assert float(found["format"]["duration"]) == pytest.approx(count / 25, abs=1e-6)
    assert picture["pix_fmt"] == "yuv420p"
    assert picture["avg_frame_rate"] == "25/1"
    assert picture["color_range"] == "tv"
    assert {picture[f"color_{key}"] for key in ("space", "primaries", "transfer")} == {"bt709"}
    assert (voice["sample_rate"], voice["channels"]) == ("48000", 2)


@pytest.mark.skipif(shutil.which("ffprobe") is None, reason="ffprobe is not installed")
def test_the_index_comes_first_for_playback_during_download(tmp_path):
    path = written(tmp_path / "first.mp4")
    command = ["ffprobe", "-v", "trace", str(path)]
    trace = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert trace.index("type:'moov' parent:'root'") < trace.index("type:'mdat' parent:'root'")


def test_decoded_frames_are_in_order_and_close_to_the_originals(tmp_path):
    path = written(tmp_path / "a.mp4", 60)
    expected = np.concatenate(list(moving_blocks(60))).astype(int)
    for found, frame in zip(read_frames(path), expected, strict=True):
        assert found.shape == (HEIGHT, WIDTH, 3)
        assert np.abs(found - frame).mean() < 4


def test_colours_are_encoded_as_bt709(tmp_path):
    red, green, blue = 200, 30, 60
    block = np.full((3, HEIGHT, WIDTH, 3), (red, green, blue), np.uint8)
    write_video(tmp_path / "a.mp4", [block], tone(0.1), 3, {})
    with av.open(str(tmp_path / "a.mp4")) as container:
        frame = next(container.decode(video=0))
    # ITU-R BT.709-6: luma weights, and 219 steps from 16 for 8 bits.
    luma = 16 + 219 / 255 * (0.2126 * red + 0.7152 * green + 0.0722 * blue)
    assert np.abs(np.frombuffer(frame.planes[0], np.uint8).astype(float).max() - luma) < 1.5
    first = next(read_frames(tmp_path / "a.mp4"))
    assert np.abs(first.astype(int) - (red, green, blue)).max() <= 4


def test_sound_is_in_sync_to_the_sample(tmp_path):
    sound = np.zeros((1, 2 * SOUNDTRACK_RATE), np.float32)
    sound[0, SOUNDTRACK_RATE] = 1.0
    path = written(tmp_path / "a.mp4", 50, sound)
    heard = read_soundtrack(path)[0]
    assert np.abs(heard).argmax() == SOUNDTRACK_RATE


def test_sound_keeps_pitch_level_and_channels(tmp_path):
    sound = np.concatenate([tone(1.0, hertz=440), tone(1.0, hertz=1000)])
    heard = read_soundtrack(written(tmp_path / "a.mp4", 25, sound))[:, :SOUNDTRACK_RATE]
    assert [np.abs(np.fft.rfft(channel)).argmax() for channel in heard] == [440, 1000]
    assert np.sqrt((heard**2).mean(axis=1)) == pytest.approx(0.3 / np.sqrt(2), rel=0.02)


def test_sound_starts_without_a_click(tmp_path):
    sound = tone(1.0, hertz=220)
    heard = read_soundtrack(written(tmp_path / "a.mp4", 25, sound))
    assert np.abs(heard[:, :4096]).max() == pytest.approx(np.abs(sound).max(), rel=0.1)


def test_equal_input_gives_equal_bytes(tmp_path):
    sound = np.random.default_rng(0).normal(scale=0.1, size=(2, SOUNDTRACK_RATE)).astype(np.float32)
    first = written(tmp_path / "a.mp4", 60, sound, {"comment": "same"}).read_bytes()
    second = written(tmp_path / "b.mp4", 60, sound, {"comment": "same"}).read_bytes()
    write_video(tmp_path / "c.mp4", moving_blocks(60, block=25), sound, 60, {"comment": "same"})
    assert first == second == (tmp_path / "c.mp4").read_bytes()
    assert b"Lavf" not in first
    assert b"Lavc" not in first
    # Slice threads change the bytes only sometimes, so a comparison could miss them.
    assert b" threads=4 " in first
    assert b" sliced_threads=0 " in first


def test_sound_beyond_full_scale_is_clipped(tmp_path):
    loud = read_soundtrack(written(tmp_path / "a.mp4", 25, 10 * tone(1.0)))
    square = read_soundtrack(written(tmp_path / "b.mp4", 25, (10 * tone(1.0)).clip(-1, 1)))
    assert np.array_equal(loud, square)


def test_the_request_can_be_read_from_the_file(tmp_path):
    params = GenerationParams(
        audio_path="/recordings/наука.wav",
        image_path="/portraits/face.png",
        prompt='She says: "Grüße — 你好" #1\n\\n, 50 % = half' + "x" * 1500,
        seed=2**62 + 1,
        text_guide_scale=0.1 + 0.2,
        second_audio_path="/recordings/b.wav",
        speaker_boxes=[[0, 0, 10, 10], [10, 0, 20, 10]],
    )
    path = written(tmp_path / "a.mp4", metadata={VIDEO_METADATA_KEY: params.to_yaml(versioned=True)})
    assert GenerationParams.from_video(path) == params


def test_an_existing_video_is_not_overwritten(tmp_path):
    path = written(tmp_path / "a.mp4")
    before = path.read_bytes()
    with pytest.raises(OutputError, match="already exists"):
        written(path, 3)
    assert path.read_bytes() == before


def interrupted_blocks(exception):
    yield from moving_blocks(14)
    raise exception


@pytest.mark.parametrize("exception", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_video_leaves_no_file(tmp_path, exception):
    with pytest.raises(exception):
        write_video(tmp_path / "a.mp4", interrupted_blocks(exception), tone(1), 50, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("expected", [9, 11])
def test_a_wrong_number_of_frames_is_an_error(tmp_path, expected):
    with pytest.raises(ValueError, match=f"received 0 frames, expected {expected}"):
        write_video(tmp_path / "a.mp4", [], tone(1), expected, {})
    with pytest.raises(ValueError, match=f"received 10 frames, expected {expected}"):
        write_video(tmp_path / "a.mp4", moving_blocks(10), tone(1), expected, {})
    assert list(tmp_path.iterdir()) == []


FILL = """
import resource, sys
from pathlib import Path
import numpy as np
from talkinghead_lab.errors import OutputError
from talkinghead_lab.media.video import join_videos, write_video
noise = np.random.default_rng(0).integers(0, 256, (30, 48, 64, 3)).astype(np.uint8)
whole = Path(sys.argv[1]) / "whole.mp4"
write_video(whole, [noise], np.zeros((1, 10), np.float32), 30, {})
for limit in (100, 10_000, whole.stat().st_size - 10):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        write_video(whole.with_name("a.mp4"), [noise], np.zeros((1, 10), np.float32), 30, {})
    except OutputError as error:
        print(error)
try:
    join_videos(whole.with_name("a.mp4"), [whole, whole], np.zeros((1, 10), np.float32), {})
except OutputError as error:
    print(error)
"""


def test_a_full_disk_at_any_time_is_an_error_and_leaves_no_file(tmp_path):
    command = [sys.executable, "-c", FILL, str(tmp_path)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(lines) == 4
    assert all("no space left while writing" in line and "Free space under" in line for line in lines)
    assert [path.name for path in tmp_path.iterdir()] == ["whole.mp4"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_the_error_names_a_folder_that_is_not_writable(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(OutputError, match="must exist and be writable"):
        written(tmp_path / "locked" / "a.mp4")


LONG = """
import resource, sys
import numpy as np
from talkinghead_lab.media.video import write_video
block = np.random.default_rng(0).integers(0, 256, (25, 64, 96, 3)).astype(np.uint8)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
write_video(sys.argv[1] + "/short.mp4", (block for _ in range(8)), np.zeros((1, 10), np.float32), 200, {})
before = peak()
write_video(sys.argv[1] + "/long.mp4", (block for _ in range(40)), np.zeros((1, 10), np.float32), 1000, {})
print(peak() - before)
"""


def test_memory_does_not_grow_with_length(tmp_path):
    command = [sys.executable, "-c", LONG, str(tmp_path)]
    kilobytes = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    more_frames = 800 * 64 * 96 * 3 // 1024
    assert kilobytes < more_frames / 3


@pytest.mark.parametrize("content", [b"", b"no video" * 100])
def test_the_error_names_a_file_that_is_no_video(tmp_path, content):
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(MediaError, match=r"a\.mp4"):
        probe(tmp_path / "a.mp4")
    with pytest.raises(MediaError, match=r"a\.mp4"):
        next(read_frames(tmp_path / "a.mp4"))


def test_evenly_spaced_frames_include_the_first_and_the_last(tmp_path):
    path = written(tmp_path / "a.mp4", 61)
    frames = evenly_spaced(path, 4)
    assert [seconds for seconds, _ in frames] == pytest.approx([0, 0.8, 1.6, 2.4])
    everyone = list(read_frames(path))
    for seconds, picture in frames:
        assert np.abs(np.asarray(picture).astype(int) - everyone[round(seconds * 25)]).max() <= 1
    assert [seconds for seconds, _ in evenly_spaced(written(tmp_path / "b.mp4", 2), 9)] == [0.0, 0.04]


@pytest.mark.parametrize("counts", [(31, 8, 1), (1, 2, 3, 4, 5), (2, 50, 1, 1), (1,)])
def test_a_joined_video_has_exactly_the_frames_of_its_parts(tmp_path, counts):
    parts = [tmp_path / f"{number}.mp4" for number in range(len(counts))]
    for part, count in zip(parts, counts, strict=True):
        write_video(part, moving_blocks(count), None, count, {})
    joined, total = tmp_path / "joined.mp4", sum(counts)
    join_videos(joined, parts, tone(0.9), {"comment": "three"})
    facts = probe(joined)
    assert (facts.frame_count, facts.codecs) == (total, ("h264", "aac"))
    assert facts.duration_seconds == facts.audio_seconds == total / 25
    assert np.array_equal(
        np.stack(list(read_frames(joined))),
        np.concatenate([list(read_frames(part)) for part in parts]),
    )
    with av.open(str(joined)) as container:
        assert container.metadata["comment"] == "three"
        times = [frame.time for frame in container.decode(video=0)]
    assert times == pytest.approx([number / 25 for number in range(total)])


@pytest.mark.skipif(shutil.which("ffprobe") is None, reason="ffprobe is not installed")
def test_ffprobe_reports_no_warning_for_a_joined_video(tmp_path):
    parts = [written(tmp_path / f"{count}.mp4", count) for count in (13, 3, 20)]
    join_videos(tmp_path / "joined.mp4", parts, tone(1), {})
    picture, voice = ffprobe(tmp_path / "joined.mp4")["streams"]
    assert int(picture["nb_read_frames"]) == 36
    assert float(picture["duration"]) == float(voice["duration"]) == pytest.approx(36 / 25)
    command = ["ffprobe", "-v", "warning", "-count_frames", str(tmp_path / "joined.mp4")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stderr == ""


def test_the_contact_sheet_shows_every_frame_above_its_time():
    frames = [(n / 2, Image.new("RGB", (WIDTH, HEIGHT), (0, 0, 40 * n))) for n in range(5)]
    sheet = np.asarray(contact_sheet(frames, columns=3, frame_width=128))
    height = 96
    assert sheet.shape == (2 * (height + 30) + 8, 3 * 136 + 8, 3)
    for number in range(5):
        row, column = divmod(number, 3)
        top, left = 8 + row * (height + 30), 8 + column * 136
        assert (sheet[top : top + height, left : left + 128] == (0, 0, 40 * number)).all()
        caption = sheet[top + height : top + height + 22, left : left + 128]
        assert (caption < 100).any()
    assert (sheet[8 + height + 30 :, 8 + 2 * 136 :] == 255).all()


def test_uninitialised_memory_does_not_change_the_bytes(tmp_path):
    """glibc fills allocated memory with a different pattern in each process."""
    script = """
import sys, numpy
from talkinghead_lab.media.video import write_video
noise = numpy.random.default_rng(0)
still, change = noise.integers(0, 200, (1, 160, 160, 3)), noise.integers(0, 10, (30, 160, 160, 3))
frames = (still + change + numpy.arange(30)[:, None, None, None]).astype(numpy.uint8)
write_video(sys.argv[1], [frames], None, 30, {})
"""
    made = set()
    for pattern in ("1", "85"):
        path = tmp_path / f"{pattern}.mp4"
        environment = os.environ | {"MALLOC_PERTURB_": pattern, "PYTHONPATH": os.pathsep.join(sys.path)}
        subprocess.run([sys.executable, "-c", script, str(path)], env=environment, check=True)
        made.add(path.read_bytes())
    assert len(made) == 1
