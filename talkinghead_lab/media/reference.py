"""Reference media, which show the speaker: a portrait, or a driving video to dub."""

import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import av
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image

from talkinghead_lab.errors import MediaError
from talkinghead_lab.media.image import check_size, is_picture, read_portrait

# Demuxers that render text files and unknown bytes as video.
TEXT_ART_FORMATS = {"tty", "bin", "xbin", "adf", "idf"}
TIME_TOLERANCE = 0.001  # seconds; floating-point sums are inexact, and some containers round to milliseconds


class ReferenceMedia(Protocol):
    """A source of reference images."""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels, upright."""
        ...

    def frame_at(self, seconds: float) -> Image.Image:
        """The RGB image shown at a time; after the end, the last one."""
        ...


@dataclass(frozen=True)
class Portrait:
    """A still image."""

    image: Image.Image

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.image.size

    def frame_at(self, seconds: float) -> Image.Image:
        """The image, at any time."""
        return self.image


class DrivingVideo:
    """A video of any frame rate, indexed by time; the file is open only during a read.

    Raises:
        MediaError: no frame can be decoded, or an unusable size or shape.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with open_video(self.path) as (container, stream):
            first = next(timed_frames(container, stream), None)
            if first is None:
                raise _unreadable(self.path, "no frames")
            self._start, frame = first
            self._size = _upright(frame, stream.sample_aspect_ratio).size
        check_size(*self._size, self.path)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in square pixels, upright."""
        return self._size

    def frame_at(self, seconds: float) -> Image.Image:
        """The frame shown `seconds` after the first one; after the end, the last one.

        Raises:
            MediaError: the file cannot be decoded any more.
        """
        target = self._start + max(0.0, seconds) + TIME_TOLERANCE
        # If the index is missing or wrong, decode from the first frame.
        picture = self._shown(target, seek=True) or self._shown(target, seek=False)
        if picture is None:
            raise _unreadable(self.path, f"no frame at {seconds:.2f} s")
        return picture

    def _shown(self, target: float, *, seek: bool) -> Image.Image | None:
        with open_video(self.path) as (container, stream):
            if seek and stream.time_base is not None:
                with suppress(av.error.FFmpegError):
                    container.seek(int(target / stream.time_base), stream=stream)
            frame = _last_until(target, timed_frames(container, stream))
            return _upright(frame, stream.sample_aspect_ratio) if frame else None


def open_reference(path: str | Path) -> ReferenceMedia:
    """Open a portrait or a driving video, distinguished by content.

    Raises:
        MediaError: neither of them, or not usable.
    """
    return DrivingVideo(path) if is_video(path) else Portrait(read_portrait(path))


def is_video(path: str | Path) -> bool:
    """Whether a file is a video; animated images and cover art do not count."""
    if is_picture(path):
        return False
    try:
        with open_video(Path(path)) as (container, stream):
            return len(list(itertools.islice(timed_frames(container, stream), 2))) == 2
    except MediaError:
        return False


@contextmanager
def open_video(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file and its first video stream.

    Raises:
        MediaError: there is none, or decoding fails while the file is open.
    """
    try:
        # A playlist may name further sources; only this file is opened.
        options = {"protocol_whitelist": "file"}
        with av.open(str(path), "r", options=options, metadata_errors="replace") as container:
            if not container.streams.video or container.format.name in TEXT_ART_FORMATS:
                raise _unreadable(path, "no video stream")
            yield container, container.streams.video[0]
    except (av.error.FFmpegError, ValueError) as error:
        raise _unreadable(path, getattr(error, "strerror", None) or str(error)) from error


def timed_frames(container: InputContainer, stream: VideoStream) -> Iterator[tuple[float, VideoFrame]]:
    """Decode (seconds, frame) in presentation order; skips damaged packets like a media player."""
    stream.thread_type = "AUTO"
    step = float(1 / (stream.average_rate or 25))
    time = -step
    for packet in container.demux(stream):
        with suppress(av.error.FFmpegError):
            for frame in packet.decode():
                time = frame.time if frame.time is not None else time + step
                yield time, frame


def _last_until(target: float, frames: Iterable[tuple[float, VideoFrame]]) -> VideoFrame | None:
    shown = None
    for time, frame in frames:
        if time > target:
            break
        shown = frame
    return shown


def _upright(frame: VideoFrame, pixel_shape: Fraction | None) -> Image.Image:
    """The frame as RGB in square pixels, with the rotation of its metadata applied."""
    picture: Image.Image = frame.to_image()  # type: ignore[no-untyped-call]  # PyAV has no types for it
    if pixel_shape and pixel_shape != 1:
        picture = picture.resize((max(1, round(picture.width * pixel_shape)), picture.height))
    return picture.rotate(frame.rotation, expand=True) if frame.rotation else picture


def _unreadable(path: Path, reason: str) -> MediaError:
    return MediaError(
        f"the video cannot be read ({reason})",
        received=str(path),
        allowed="video files such as mp4, mov, mkv, webm",
        remedy="Check that it plays, or convert it to mp4.",
    )
