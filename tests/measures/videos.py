"""Small videos, and what the measures see in them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from talkinghead_lab.measures.cartoon_faces import MouthReader
from talkinghead_lab.measures.frames import FrameStatistics
from talkinghead_lab.measures.judge import Subject
from talkinghead_lab.media import video


def write(path: Path, frames: np.ndarray, sound: np.ndarray | None = None) -> Path:
    """A video of RGB frames [F, H, W, 3]."""
    video.write_video(path, [np.ascontiguousarray(frames, dtype=np.uint8)], sound, len(frames), {})
    return path


def grey(levels: Sequence[int], size: int = 64) -> np.ndarray:
    return np.broadcast_to(np.asarray(levels)[:, None, None, None], (len(levels), size, size, 3))


def shown_to(collector: Any, path: Path) -> Any:
    """A collector that has seen every frame of a video."""
    for pixels in video.read_frames(path):
        collector.add(pixels)
    return collector


def openings_in(path: Path) -> np.ndarray:
    return shown_to(MouthReader(), path).openings()


def statistics_of(path: Path) -> FrameStatistics:
    return shown_to(FrameStatistics(), path)


def subject(**changes: Any) -> Subject:
    """One photographed speaker, two seconds long."""
    fields = {
        "portrait": Image.new("RGB", (32, 32)),
        "speech": np.zeros(32_000, np.float32),
        "frame_count": 50,
        "seconds": 2.0,
    }
    return Subject(**(fields | changes))
