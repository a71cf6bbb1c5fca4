"""Videos of any size, length and rate side by side: in step, labelled, with one sound."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from talkinghead_lab.errors import InvalidRequest, MediaError, OutputError
from talkinghead_lab.figures.comparison import Comparison
from talkinghead_lab.figures.side_by_side import GAP, LARGEST_SIZE, _rows, _tile_height, side_by_side
from talkinghead_lab.media import audio, video
from tests.runs.past_runs import finished_run

RATE = 48_000


def clip(path: Path, seconds: float, size: tuple[int, int], tone: float = 0.0, fps: float = 25) -> Path:
    """A video that is dark first and bright from 0.4 s on, with a tone of this frequency in Hz."""
    frames = round(seconds * fps)
    with av.open(str(path), "w") as container:
        picture = container.add_stream(
            "libx264", rate=Fraction(fps).limit_denominator(100), options={"crf": "1"}
        )
        picture.width, picture.height, picture.pix_fmt = *size, "yuv420p"
        sound = container.add_stream("aac", rate=RATE, layout="mono") if tone else None
        for number in range(frames):
            level = 220 if (number + 0.5) / fps >= 0.4 else 60
            pixels = np.full((size[1], size[0], 3), level, np.uint8)
            container.mux(picture.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(picture.encode(None))
        if sound is not None:
            wave = 0.5 * np.sin(2 * np.pi * tone * np.arange(round(seconds * RATE)) / RATE)
            frame = av.AudioFrame.from_ndarray(wave[None].astype(np.float32), format="fltp", layout="mono")
            frame.sample_rate = RATE
            container.mux([*sound.encode(frame), *sound.encode(None)])
    return path


def levels(path: Path, boxes: list[tuple[int, int]]) -> np.ndarray:
    """Brightness at places (x, y) in every frame of a video, [frames, places]."""
    return np.array([[frame[y, x].mean() for x, y in boxes] for frame in video.read_frames(path)])


@pytest.fixture
def clips(tmp_path):
    return [
        clip(tmp_path / "a.mp4", 1.0, (160, 160), tone=440),
        clip(tmp_path / "b.mp4", 0.6, (320, 160), tone=880),
        clip(tmp_path / "slow.mp4", 1.2, (160, 320), fps=12.5),
        clip(tmp_path / "fast.mp4", 1.2, (64, 64), fps=50),
    ]


def test_videos_are_in_step_whatever_their_size_length_and_rate(clips, tmp_path):
    path = side_by_side(tmp_path / "all.mp4", clips, ["a", "b", "slow", "fast"], heard=0)
    facts = video.probe(path)
    assert facts.frame_count == 30
    widths = [320, 640, 160, 320]  # all 320 pixels high
    assert facts.width == sum(widths) + 5 * GAP and 320 < facts.height < 420
    places = [(GAP * (n + 1) + sum(widths[:n]) + widths[n] // 2, facts.height - 100) for n in range(4)]
    found = levels(path, places)
    assert np.all(found[:9] < 80) and np.all(found[11:15] > 200), "bright from 0.4 s on"
    assert np.all(found[16:, 1] < 100), "ended after 0.6 s: its last frame, darkened"
    assert np.all(found[15:24, 0] > 200) and np.all(found[26:, 0] < 100)
    assert np.all(found[11:, 2:] > 200), "until the end"


@pytest.mark.parametrize(("heard", "tone", "seconds"), [(0, 440, 1.0), (1, 880, 0.6)])
def test_one_sound_is_heard_and_silence_after_its_end(clips, tmp_path, heard, tone, seconds):
    path = side_by_side(tmp_path / "all.mp4", clips[:3], ["a", "b", "slow"], heard)
    wave = audio.read_soundtrack(path)[0]
    during = wave[: round(0.5 * RATE)]
    assert np.abs(np.fft.rfft(during)).argmax() * 2 == tone
    assert np.abs(wave[round((seconds + 0.1) * RATE) :]).max() < 0.01
    assert video.read_metadata(path)["title"] == f"a | b | slow; sound: {'ab'[heard]}"


def test_labels_fit_above_their_videos(clips, tmp_path):
    def top(name):
        path = tmp_path / f"{len(name)}.mp4"
        side_by_side(path, clips[:2], [name, "b"], heard=0)
        frame = next(iter(video.read_frames(path)))
        return frame[: frame.shape[0] - 256 - GAP - 2]

    short, long = top("short"), top("word " * 80)
    assert len(long) > len(short), "two lines"
    for label in (short, long):
        dark = (label[:, GAP : GAP + 256] < 120).any(axis=(0, 2))
        assert dark.any()
        assert label[:, GAP + 257 : 2 * GAP + 254].min() > 200, "nothing between the tiles"


@pytest.mark.parametrize("count", [2, 4, 5, 24])
def test_the_whole_keeps_its_bounds(count):
    facts = [video.VideoFacts(1280, 720, 25, 1.0, 1.0, ()) for _ in range(count)]
    rows = _rows(count)
    assert sum(map(len, rows)) == count and max(map(len, rows)) <= 4
    height = _tile_height([facts[row.start : row.stop] for row in rows])
    assert max(map(len, rows)) * (height * 16 / 9 + GAP) <= LARGEST_SIZE[0] + 8
    assert len(rows) * height < LARGEST_SIZE[1]
    assert height > 200 and height % 2 == 0


def test_what_cannot_be_shown_is_refused_and_nothing_is_written(clips, tmp_path):
    names = ["a", "slow"]
    for path, videos, heard, error in (
        (tmp_path / "a.webm", [clips[0], clips[2]], 0, InvalidRequest),
        (clips[1], [clips[0], clips[2]], 0, OutputError),
        (tmp_path / "silent.mp4", [clips[0], clips[2]], 1, MediaError),
        (tmp_path / "many.mp4", [clips[0]] * 25, 0, InvalidRequest),
    ):
        before = sorted(tmp_path.iterdir())
        with pytest.raises(error):
            side_by_side(path, videos, names, heard)
        assert sorted(tmp_path.iterdir()) == before


def test_a_comparison_plays_the_longest_run_s_sound(tmp_path):
    runs = [finished_run(tmp_path / name, {"seed": seed}) for name, seed in (("one", 1), ("two", 2))]
    found = Comparison(runs)
    path = found.video(tmp_path / "both.mp4")
    assert video.read_metadata(path)["title"] == "one | two; sound: one"
    assert video.probe(path).frame_count == 30
    assert video.read_metadata(found.video(tmp_path / "two.mp4", "two"))["title"].endswith("sound: two")
    with pytest.raises(InvalidRequest, match="Did you mean `two`"):
        found.video(tmp_path / "three.mp4", "twoo")
