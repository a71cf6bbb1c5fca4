"""Whether a service accepts files. Does not import torch, so that a process of its own starts quickly."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from talkinghead_lab.media.audio import read_recording
from talkinghead_lab.media.image import MAX_PIXELS
from talkinghead_lab.media.mask_files import read_masks
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


def check_media(files: Mapping[str, Path], limits: MediaLimits) -> None:
    """Read files, by their fields of the request, as a run does, and keep nothing.

    Raises:
        MediaTooLarge: a picture or a recording exceeds a limit.
        MediaError, InvalidRequest: a file cannot be used.
    """
    masks = [path for field, path in files.items() if field.startswith("speaker_masks.")]
    if masks:
        read_masks(masks, limits.pixels)
    for field, path in files.items():
        if field.endswith(("audio_path", ".file")):
            read_recording(path, max_seconds=limits.seconds)
        elif path not in masks:
            open_reference(path, max_pixels=limits.pixels)
