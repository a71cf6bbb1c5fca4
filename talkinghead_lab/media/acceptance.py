"""Whether a service accepts files. Does not import torch, so that a process of its own starts quickly."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from talkinghead_lab.media.audio import read_recording
from talkinghead_lab.media.image import MAX_PIXELS
from talkinghead_lab.media.reference import open_reference
from talkinghead_lab.media.sound_track import MAX_SECONDS


@dataclass(frozen=True)
class MediaLimits:
    """What files may hold.

    Args:
        pixels: of a picture, or of a frame of a driving video in square pixels.
        seconds: length of a recording, counted in decoded samples.
    """

    pixels: int = MAX_PIXELS
    seconds: float = MAX_SECONDS


NO_FURTHER_LIMITS = MediaLimits()


def check_media(pictures: Sequence[Path], recordings: Sequence[Path], limits: MediaLimits) -> None:
    """Read files as a run does, and keep nothing.

    Raises:
        MediaTooLarge: a picture or a recording exceeds a limit.
        MediaError: a file cannot be used.
    """
    for picture in pictures:
        open_reference(picture, max_pixels=limits.pixels)
    for recording in recordings:
        read_recording(recording, max_seconds=limits.seconds)
