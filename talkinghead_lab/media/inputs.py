"""The media of a request, read once and checked before anything is loaded."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from talkinghead_lab.foundation.field_types import Segment
from talkinghead_lab.foundation.latent_grid import FRAMES_PER_SECOND
from talkinghead_lab.foundation.snapshot import Snapshot
from talkinghead_lab.media import audio
from talkinghead_lab.media.acceptance import NO_FURTHER_LIMITS, MediaLimits
from talkinghead_lab.media.frame_size import CENTER, Framing, Size, fit, nearest_size
from talkinghead_lab.media.isolated import Call, call_here
from talkinghead_lab.media.mask_files import Mask, check_masks, read_masks
from talkinghead_lab.media.reference import DrivingVideo, Portrait, ReferenceMedia, open_reference
from talkinghead_lab.media.timeline import lay_out


@dataclass(frozen=True)
class CopiedVideo:
    """A driving video, read from its copy.

    Args:
        video: the copy.
        copy: keeps the file.
        call: where it is decoded.
    """

    video: DrivingVideo
    copy: Snapshot
    call: Call

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in square pixels, upright."""
        return self.video.size

    def frame_at(self, seconds: float) -> Image.Image:
        """The frame shown at a time; see `DrivingVideo.frame_at`."""
        with self.copy.named_as_original():
            return self.call(self.video.frame_at, seconds)

    def last_time(self) -> float:
        """See `DrivingVideo.last_time`."""
        with self.copy.named_as_original():
            return self.call(self.video.last_time)

    def fitted_frames(self, start: float, count: int, frame: Size, framing: Framing) -> Tensor:
        """See `reference_frames`."""
        with self.copy.named_as_original():
            return self.call(reference_frames, self.video, start, count, frame, framing)


def open_copy(
    copy: Snapshot,
    background: str = "white",
    call: Call = call_here,
    limits: MediaLimits = NO_FURTHER_LIMITS,
) -> ReferenceMedia:
    """Open a copy of a portrait or video; arguments and errors as for `Inputs.read`."""
    with copy.named_as_original():
        reference = call(open_reference, copy.path, background, limits.pixels)
    return CopiedVideo(reference, copy, call) if isinstance(reference, DrivingVideo) else reference


def warnings_of(reference: ReferenceMedia) -> tuple[str, ...]:
    """What the user should know about a picture."""
    return reference.warnings if isinstance(reference, Portrait) else ()


def reference_frames(video: DrivingVideo, start: float, count: int, frame: Size, framing: Framing) -> Tensor:
    """Frames of a driving video, 1/25 s apart, brought into a frame of (W, H): uint8 [count, 3, H, W].

    After the end of the video, the last one.

    Raises:
        MediaError: the file cannot be decoded any more.
    """
    fitted = [fit(picture, *frame, framing) for picture in video.frames(start, count)]
    if missing := count - len(fitted):
        fitted += missing * [fit(video.frame_at(start + count / FRAMES_PER_SECOND), *frame, framing)]
    return torch.stack(fitted)


@dataclass(frozen=True)
class Shot:
    """What is seen from a frame of the video on.

    Args:
        reference: the portrait, or the driving video.
        framing: how it is brought into the frame.
        start: the number of that frame.
        offset: where the driving video is then, in seconds.
    """

    reference: ReferenceMedia
    framing: Framing = CENTER
    start: int = 0
    offset: float = 0.0

    def time(self, seconds: float) -> float:
        """The time in the driving video at a time of the video that is made."""
        return seconds - self.start / FRAMES_PER_SECOND + self.offset

    def fitted_frames(self, seconds: float, count: int, frame: Size) -> Tensor:
        """The pictures in a frame of (W, H) from a time on, 1/25 s apart: uint8 [count, 3, H, W]."""
        if isinstance(self.reference, CopiedVideo):
            return self.reference.fitted_frames(self.time(seconds), count, frame, self.framing)
        return self.fitted(seconds, frame).expand(count, -1, -1, -1)

    def fitted(self, seconds: float, frame: Size) -> Tensor:
        """The picture in a frame of (W, H) at a time of the video that is made, uint8 [3, H, W]."""
        return fit(self.reference.frame_at(self.time(seconds)), *frame, self.framing)


@dataclass(frozen=True)
class Inputs:
    """Pictures and sound of one run.

    Args:
        reference: the portrait, or the driving video.
        frame_size: (W, H) of the frames.
        voices: a 16 kHz mono wave per speaker, equally long.
        soundtrack: of the video, [1 or 2 channels, samples] at 48 kHz.
        sha256: digests of the files, in the order of `GenerationParams.media`.
        warnings: what the user should know about the media before anything is generated.
        framing: how the picture is brought into the frame.
        continued: the last frames of the video that the run goes on from, uint8 [motion_frame, 3, H, W].
        masks: where the speakers are in the picture, if that is drawn.
        later: shots after the first, in order.
        lips_mask: white where a driving video is sampled anew.
    """

    reference: ReferenceMedia
    frame_size: tuple[int, int]
    voices: tuple[audio.Wave, ...]
    soundtrack: audio.Wave
    sha256: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    framing: Framing = CENTER
    continued: Tensor | None = None
    masks: tuple[Mask, ...] = ()
    later: tuple[Shot, ...] = ()
    lips_mask: ReferenceMedia | None = None

    @classmethod
    def read(
        cls,
        picture: Snapshot,
        recordings: Sequence[Snapshot],
        mix: audio.Mix,
        resolution: str,
        frame_size: tuple[int, int] | None = None,
        audio_track: int | None = None,
        audio_start: float = 0.0,
        background: str = "white",
        masks: Sequence[Snapshot] = (),
        segments: Sequence[Segment] = (),
        loudness: Sequence[float] = (),
        *,
        call: Call = call_here,
        limits: MediaLimits = NO_FURTHER_LIMITS,
    ) -> "Inputs":
        """Open and read the media of one or two speakers; each recording is opened once.

        Args:
            picture: copy of the portrait or driving video.
            recordings: copies, one per speaker, or with `mix` timeline one per segment.
            mix, segments, loudness: see `timeline.lay_out`.
            resolution: family of released frame sizes; the one nearest to the picture's shape is chosen.
            frame_size: (W, H) instead of a released one.
            audio_track: sound track of the first recording, from 1; None: the default one.
            audio_start: seconds to skip in the first recording.
            background: colour behind transparent pixels of the picture.
            masks: copies of the pictures that show where the speakers are.
            call: where files are decoded.
            limits: what the files may hold.

        Raises:
            MediaTooLarge: a file exceeds a limit.
            MediaError: a file cannot be used.
            InvalidRequest: the masks do not go with the picture or the number of speakers, or the segments
                do not go with each other or with their recordings.
        """
        with ExitStack() as names:
            for copy in (picture, *recordings, *masks):
                names.enter_context(copy.named_as_original())
            reference = open_copy(picture, background, call, limits)
            parts = [(audio_track, audio_start)] + [(None, 0.0)] * (len(recordings) - 1)
            sounds = [
                call(audio.read_recording, copy.path, *part, limits.seconds)
                for copy, part in zip(recordings, parts, strict=True)
            ]
            voices, soundtrack, told = lay_out(sounds, mix, segments, loudness, limits.seconds)
            drawn = call(read_masks, [mask.path for mask in masks], limits.pixels) if masks else ()
            check_masks(drawn, reference.size, len(voices))
        size = frame_size or nearest_size(*reference.size, resolution)
        told = (*warnings_of(reference), *told)
        return cls(reference, size, voices, soundtrack, warnings=told, masks=drawn)

    @property
    def shots(self) -> tuple[Shot, ...]:
        """All shots."""
        return (Shot(self.reference, self.framing), *self.later)

    @property
    def seconds(self) -> float:
        """Length of the recordings in seconds."""
        return len(self.voices[0]) / audio.SAMPLE_RATE
