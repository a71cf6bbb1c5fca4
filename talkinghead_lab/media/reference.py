"""Where the person is seen: a still portrait, or a driving video that is dubbed."""

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

# Demuxers that draw text files and unknown bytes as moving pictures.
TEXT_ART_FORMATS = {"tty", "bin", "xbin", "adf", "idf"}
TIME_TOLERANCE = 0.001  # seconds; sums of times are not exact, and some containers round to milliseconds


class ReferenceMedia(Protocol):
    """What reference frames are taken from."""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels, upright."""
        ...

    def frame_at(self, seconds: float) -> Image.Image:
        """The RGB picture on screen at a time; beyond the end, the last one."""
        ...


@dataclass(frozen=True)
class Portrait:
    """A still picture: the same at every time."""

    image: Image.Image

    @property
    def size(self) -> tuple[int, int]:
        return self.image.size

    def frame_at(self, seconds: float) -> Image.Image:
        return self.image


class DrivingVideo:
    """A video of any frame rate, read by time; between two reads nothing is held open or in memory.

    Raises:
        MediaError: nothing in it can be decoded, or no frame can be cut from its size or shape.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        with open_video(self.path) as (container, stream):
            first = next(timed_frames(container, stream), None)
            if first is None:
                raise _unreadable(self.path, "no frame in it")
            self._start, frame = first
            self._size = _upright(frame, stream.sample_aspect_ratio).size
        check_size(*self._size, self.path)

    @property
    def size(self) -> tuple[int, int]:
        return self._size

    def frame_at(self, seconds: float) -> Image.Image:
        """The frame on screen `seconds` after the first one; beyond the end, the last one.

        Raises:
            MediaError: the file can no longer be decoded.
        """
        target = self._start + max(0.0, seconds) + TIME_TOLERANCE
        # Where there is no index to seek by, or a wrong one, the way leads from the first frame.
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
    """A portrait or a driving video, told apart by content.

    Raises:
        MediaError: neither, or one that cannot be used.
    """
    return DrivingVideo(path) if is_video(path) else Portrait(read_portrait(path))


def is_video(path: str | Path) -> bool:
    """Whether a file holds moving pictures; animated pictures count as pictures, cover art does not count."""
    if is_picture(path):
        return False
    try:
        with open_video(Path(path)) as (container, stream):
            return len(list(itertools.islice(timed_frames(container, stream), 2))) == 2
    except MediaError:
        return False


@contextmanager
def open_video(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file at its first stream of pictures.

    Raises:
        MediaError: there is none, or decoding fails while the file is open.
    """
    try:
        # Playlists may name further files; none but this one is to be opened.
        options = {"protocol_whitelist": "file"}
        with av.open(str(path), "r", options=options, metadata_errors="replace") as container:
            if not container.streams.video or container.format.name in TEXT_ART_FORMATS:
                raise _unreadable(path, "no moving pictures in it")
            yield container, container.streams.video[0]
    except (av.error.FFmpegError, ValueError) as error:
        raise _unreadable(path, getattr(error, "strerror", None) or str(error)) from error


def timed_frames(container: InputContainer, stream: VideoStream) -> Iterator[tuple[float, VideoFrame]]:
    """Decode (seconds, frame) in the order of presentation; damaged packets are skipped, as players do."""
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
    """RGB in square pixels, with the rotation applied that cameras only note."""
    picture = frame.to_image()
    if pixel_shape and pixel_shape != 1:
        picture = picture.resize((max(1, round(picture.width * pixel_shape)), picture.height))
    return picture.rotate(frame.rotation, expand=True) if frame.rotation else picture


def _unreadable(path: Path, reason: str) -> MediaError:
    return MediaError(
        f"not a video that can be read ({reason})",
        received=str(path),
        allowed="video files such as mp4, mov, mkv, webm",
        remedy="Play it to see whether it is whole, or convert it to mp4.",
    )
