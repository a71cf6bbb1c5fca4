"""Key frames lie at the starts of chunks alone, and change the picture no more than other frames do."""

from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from talkinghead_lab.foundation.paths import SAMPLES_FOLDER
from talkinghead_lab.media import video
from talkinghead_lab.media.growing_video import GrowingVideo
from talkinghead_lab.media.video import KEY_FRAME_DISTANCE, join_videos, read_frames, write_video

LUMA = np.float32([0.2126, 0.7152, 0.0722])


def portrait_in_motion(count: int, noise: float = 0.5) -> np.ndarray:
    """A portrait that sways before a backdrop which keeps still, under the noise of a camera."""
    picture = Image.open(SAMPLES_FOLDER / "portrait.png").convert("RGB").resize((200, 200))
    middle = np.asarray(picture.crop((20, 20, 180, 180)), np.float32)
    rng, frames = np.random.default_rng(0), []
    weights = np.exp(-np.square(np.linspace(-2, 2, 160)))[None, :, None]
    for number in range(count):
        right = 3 * np.sin(number / 6)
        moved = np.asarray(
            picture.transform((160, 160), Image.Transform.AFFINE, (1, 0, 20 + right, 0, 1, 20))
        )
        frames.append(weights * moved + (1 - weights) * middle + rng.normal(0, noise, (160, 160, 1)))
    return np.rint(frames).clip(0, 255).astype(np.uint8)


def key_frames(path: Path) -> list[int]:
    with av.open(str(path)) as container:
        return [number for number, frame in enumerate(container.decode(video=0)) if frame.key_frame]


def coding_changes(path: Path, frames: np.ndarray) -> np.ndarray:
    """How much the coding error of each frame's luma differs from the previous frame's, [F − 1]."""
    error = (np.stack(list(read_frames(path))).astype(np.float32) - frames) @ LUMA
    return np.abs(np.diff(error, axis=0)).mean((1, 2))


def chunked(folder: Path, frames: np.ndarray, counts: Sequence[int]) -> tuple[Path, Path]:
    """Write frames as a run does: the finished video, and the growing one."""
    sound, start = np.zeros((1, len(frames) * 1920), np.float32), 0
    parts = [folder / f"{number}.mp4" for number in range(len(counts))]
    with GrowingVideo(folder / "growing.mp4", sound, len(frames)) as growing:
        for part, count in zip(parts, counts, strict=True):
            write_video(part, [frames[start : start + count]], None, count, {}, growing.add)
            growing.end_chunk()
            start += count
        growing.finish()
    join_videos(folder / "joined.mp4", parts, sound, {})
    return folder / "joined.mp4", folder / "growing.mp4"


def pulses(path: Path, frames: np.ndarray) -> np.ndarray:
    """Coding changes at key frames, relative to what nine of ten other frames stay below."""
    changes, keys = coding_changes(path, frames), np.array(key_frames(path)[1:]) - 1
    return changes[keys] / np.quantile(np.delete(changes, keys), 0.9)


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_no_pulse_is_seen_where_a_chunk_starts(tmp_path, noise):
    frames = portrait_in_motion(113, noise)
    for path in chunked(tmp_path, frames, (61, 52)):
        assert key_frames(path) == [0, 61]
        assert pulses(path, frames) < 0.9


def test_long_chunks_have_no_pulse_either(tmp_path):
    count = 2 * KEY_FRAME_DISTANCE + 20
    frames = portrait_in_motion(count)
    write_video(tmp_path / "long.mp4", [frames], None, count, {})
    assert key_frames(tmp_path / "long.mp4") == [0, KEY_FRAME_DISTANCE, 2 * KEY_FRAME_DISTANCE]
    assert pulses(tmp_path / "long.mp4", frames).max() < 0.9


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_the_settings_of_x264_itself_would_pulse(tmp_path, monkeypatch, noise):
    """The measure above sees what it is for."""
    monkeypatch.setattr(video, "KEY_FRAME_FACTOR", 1.4)
    monkeypatch.setattr(video, "BEFORE_KEY_FRAME_FACTOR", 1.0)
    frames = portrait_in_motion(113, noise)
    path, _ = chunked(tmp_path, frames, (61, 52))
    assert pulses(path, frames) > 1.05


def test_a_change_of_scene_does_not_move_key_frames(tmp_path):
    frames = portrait_in_motion(60)
    frames[33:] = 255 - frames[33:, ::-1]
    write_video(tmp_path / "scenes.mp4", [frames], None, 60, {})
    assert key_frames(tmp_path / "scenes.mp4") == [0]
    assert (
        np.abs(np.stack(list(read_frames(tmp_path / "scenes.mp4")))[35] - frames[35].astype(int)).mean() < 4
    )
