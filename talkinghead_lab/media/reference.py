"""Reference media, which show the speaker: a portrait, or a driving video to dub."""

import itertools
import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Protocol, cast

import av
import numpy as np
from av.container import InputContainer
from av.sidedata.sidedata import SideDataContainer, Type
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image

from talkinghead_lab.errors import MediaError
from talkinghead_lab.foundation.latent_grid import FRAMES_PER_SECOND
from talkinghead_lab.media.deinterlacing import progressive
from talkinghead_lab.media.frame_colors import UNSPECIFIED, to_rgb
from talkinghead_lab.media.image import MAX_PIXELS, check_size, is_picture, read_portrait
from talkinghead_lab.media.packets import demux
from talkinghead_lab.media.sound_track import stream_starts

# Demuxers that render text files and unknown bytes as video.
TEXT_ART_FORMATS = {"tty", "bin", "xbin", "adf", "idf"}
IMAGES = re.compile(r"image2|\w+_pipe")  # demuxers of still images
ONLY_THIS_FILE = {"protocol_whitelist": "file"}  # a playlist may name further sources
DOLBY_VISION = {"dvh1", "dvhe", "dav1", "dva1", "dvav"}  # codec tags
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}

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
    """A still image.

    Args:
        image: 8-bit sRGB, upright.
        warnings: what the user should know about it.
    """

    image: Image.Image
    warnings: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.image.size

    def frame_at(self, seconds: float) -> Image.Image:
        """The image, at any time."""
        return self.image


class DrivingVideo:
    """A video of any frame rate, indexed by time; the file is open only during a read.

    Time starts with the first picture, or with the file's sound if that starts earlier, as for `Timeline`.
    Before the first picture, that one is shown.

    Args:
        path: the video.
        background: what is seen behind transparent pixels; a colour that Pillow's ImageColor knows.
        max_pixels: of a frame in square pixels.

    Raises:
        MediaError: no frame can be decoded, or an unusable size or shape.
    """

    def __init__(self, path: str | Path, background: str = "white", max_pixels: int = MAX_PIXELS) -> None:
        self.path, self.background, self.max_pixels = Path(path), background, max_pixels
        with open_video(self.path) as (container, stream):
            if stream.width and stream.height:  # before anything is decoded; frames may differ from it
                check_size(*_square_size(stream, stream.sample_aspect_ratio), self.path, max_pixels)
            first = next(timed_frames(container, stream), None)
            if first is None:
                raise _unreadable(self.path, "no frames")
            time, frame = first
            self._start = min([time, *stream_starts(container.streams.audio)])
            if stream.codec_context.codec_tag in DOLBY_VISION and frame.color_trc == UNSPECIFIED:
                raise _unreadable(self.path, "Dolby Vision without a base layer, such as profile 5")
            self._size = self._upright(frame, stream).size

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in square pixels, upright."""
        return self._size

    def frame_at(self, seconds: float) -> Image.Image:
        """The frame shown at a time; after the end, the last one.

        Raises:
            MediaError: the file cannot be decoded any more.
        """
        target = self._start + max(0.0, seconds) + TIME_TOLERANCE
        # If the index is missing or wrong, decode from the first frame.
        picture = self._shown(target, seek=True) or self._shown(target, seek=False)
        if picture is None:
            raise _unreadable(self.path, f"no frame at {seconds:.2f} s")
        return picture

    def last_time(self) -> float:
        """When the last frame is first shown, in seconds.

        Raises:
            MediaError: the file cannot be decoded any more.
        """
        times = list(self._last_times(seek=True)) or list(self._last_times(seek=False))
        if not times:
            raise _unreadable(self.path, "no frames")
        return max(0.0, times[-1] - self._start)

    def _last_times(self, *, seek: bool) -> Iterator[float]:
        """The times of the file's frames; to begin with, seek to the last key frame if its end is known."""
        with open_video(self.path) as (container, stream):
            if seek:
                if container.duration is None:
                    return
                _seek(container, stream, ((container.start_time or 0) + container.duration) / av.time_base)
            for time, _ in timed_frames(container, stream):
                yield time

    def frames(self, start: float, count: int) -> Iterator[Image.Image]:
        """The frames shown at up to `count` times, 1/25 s apart, from `start` on; ends with the video.

        Raises:
            MediaError: the file cannot be decoded any more.
        """
        yield from self._frames(start, count, seek=start > 0)

    def _frames(self, start: float, count: int, *, seek: bool) -> Iterator[Image.Image]:
        target = self._time(start, 0, 1)
        with open_video(self.path) as (container, stream):
            if seek:
                _seek(container, stream, target)
            shown, number = None, 0
            for time, frame in timed_frames(container, stream):
                if seek and shown is None and time > target:  # the index is missing or wrong
                    yield from self._frames(start, count, seek=False)
                    return
                picture = self._upright(frame, stream)
                while self._time(start, number, count) < time:
                    yield shown or picture
                    number += 1
                shown = picture
                end = time + float(1 / (stream.average_rate or FRAMES_PER_SECOND))
            while shown is not None and self._time(start, number, count) < end:
                yield shown
                number += 1

    def _time(self, start: float, number: int, count: int) -> float:
        """The file's time of frame `number` of `count` frames from `start` on; after these, never."""
        return (
            self._start + start + number / FRAMES_PER_SECOND + TIME_TOLERANCE if number < count else math.inf
        )

    def _shown(self, target: float, *, seek: bool) -> Image.Image | None:
        with open_video(self.path) as (container, stream):
            if seek:
                _seek(container, stream, target)
            frame = _last_until(target, timed_frames(container, stream), or_first=not seek)
            return self._upright(frame, stream) if frame else None

    def _upright(self, frame: VideoFrame, stream: VideoStream) -> Image.Image:
        """The frame as RGB in square pixels, turned and mirrored as its metadata says."""
        size = _square_size(frame, stream.sample_aspect_ratio)
        check_size(*size, self.path, self.max_pixels)
        picture = Image.fromarray(to_rgb(frame, self.background))
        if size != picture.size:
            picture = picture.resize(size)
        for turn in _turns(frame):
            picture = picture.transpose(turn)
        return picture


def _seek(container: InputContainer, stream: VideoStream, target: float) -> None:
    """Go to the key frame before a time of the file, if its index is good."""
    if stream.time_base is not None:
        with suppress(av.error.FFmpegError):
            container.seek(int(target / stream.time_base), stream=stream)


def open_reference(
    path: str | Path, background: str = "white", max_pixels: int = MAX_PIXELS
) -> ReferenceMedia:
    """Open a portrait or a driving video, distinguished by content; a video of one frame is a portrait.

    Args:
        path: the picture or video.
        background: what is seen behind transparent pixels; a colour that Pillow's ImageColor knows.
        max_pixels: of the picture, or of a frame in square pixels.

    Raises:
        MediaError: neither of them, or not usable.
    """
    if frames := _count_to_two(path):
        video = DrivingVideo(path, background, max_pixels)
        if frames == 2:
            return video
        return Portrait(video.frame_at(0.0), ("The video has a single frame: it is used as a picture.",))
    warnings: list[str] = []
    try:
        portrait = read_portrait(path, background, max_pixels, warnings.append)
    except MediaError as error:
        if is_picture(path) or not _has_sound(path):
            raise
        raise MediaError(
            "the file holds sound, but no picture that can be shown",
            received=str(path),
            allowed="a picture, or a video to dub",
            remedy="A recording belongs into audio_path; a video whose codec is unknown is converted to mp4.",
        ) from error
    return Portrait(portrait, tuple(warnings))


def _has_sound(path: str | Path) -> bool:
    try:
        with av.open(str(path), "r", options=ONLY_THIS_FILE, metadata_errors="replace") as container:
            return bool(container.streams.audio)
    except (av.error.FFmpegError, ValueError):
        return False


def _count_to_two(path: str | Path) -> int:
    """Frames of a video, at most 2; 0 for what is none: still and animated images, and cover art."""
    if is_picture(path):
        return 0
    try:
        with open_video(Path(path)) as (container, stream):
            if stream.disposition & Disposition.attached_pic or IMAGES.fullmatch(container.format.name):
                return 0
            if stream.width * stream.height > MAX_PIXELS:
                return 2  # not decoded: DrivingVideo refuses it by its size
            return len(list(itertools.islice(timed_frames(container, stream), 2)))
    except MediaError:
        return 0


@contextmanager
def open_video(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file and its video stream: the default one, or the one that libav finds best.

    Raises:
        MediaError: there is none, or decoding fails while the file is open.
    """
    try:
        with av.open(str(path), "r", options=ONLY_THIS_FILE, metadata_errors="replace") as container:
            stream = container.streams.best("video")
            if not isinstance(stream, VideoStream) or container.format.name in TEXT_ART_FORMATS:
                raise _unreadable(path, "no video stream")
            if stream.codec_context is None:
                raise _unreadable(path, "its kind of video cannot be decoded")
            yield container, stream
    except (av.error.FFmpegError, ValueError) as error:
        raise _unreadable(path, getattr(error, "strerror", None) or str(error)) from error


def timed_frames(container: InputContainer, stream: VideoStream) -> Iterator[tuple[float, VideoFrame]]:
    """Decode (seconds, frame) in presentation order; skips damaged packets like a media player.

    Interlaced frames are deinterlaced. VP8 and VP9 are decoded with their transparency.
    """
    return progressive(_decoded(container, stream))


def _decoded(container: InputContainer, stream: VideoStream) -> Iterator[tuple[float, VideoFrame]]:
    stream.thread_type = "AUTO"
    step = float(1 / (stream.average_rate or 25))
    time = -step
    decoder: VideoStream | VideoCodecContext = stream
    if stream.metadata.get("alpha_mode") == "1" and stream.codec_context.name in ALPHA_DECODERS:
        # FFmpeg's own decoders leave the transparency out.
        decoder = cast(
            VideoCodecContext, av.CodecContext.create(ALPHA_DECODERS[stream.codec_context.name], "r")
        )
    for packet in demux(container, stream):
        with suppress(av.error.FFmpegError):
            for frame in decoder.decode(packet):
                frame.time_base = frame.time_base or stream.time_base
                time = frame.time if frame.time is not None else time + step
                yield time, frame


def _last_until(
    target: float, frames: Iterable[tuple[float, VideoFrame]], or_first: bool
) -> VideoFrame | None:
    shown = None
    for time, frame in frames:
        if time > target:
            return shown or (frame if or_first else None)
        shown = frame
    return shown


def _square_size(frame: VideoFrame | VideoStream, pixel_shape: Fraction | None) -> tuple[int, int]:
    """(width, height) in square pixels, not turned yet."""
    return max(1, round(frame.width * (pixel_shape or 1))), frame.height


def _turns(frame: VideoFrame) -> Iterator[Image.Transpose]:
    """How to turn and mirror a frame; an angle between multiples of 90° counts as the nearest of them."""
    a, b, c, d = _display_matrix(frame)
    if abs(b) + abs(c) > abs(a) + abs(d):
        yield Image.Transpose.TRANSPOSE
        a, d = c, b
    if a < 0:
        yield Image.Transpose.FLIP_LEFT_RIGHT
    if d < 0:
        yield Image.Transpose.FLIP_TOP_BOTTOM


def _display_matrix(frame: VideoFrame) -> tuple[float, float, float, float]:
    """a, b, c, d of x' = a x + c y, y' = b x + d y (ISO/IEC 14496-12, 8.3.2)."""
    try:
        matrix = cast(SideDataContainer, frame.side_data).get(Type.DISPLAYMATRIX)
    except ValueError:  # PyAV lists no side data if it does not know one of them
        # The angle leaves mirrors out.
        angle = math.radians(frame.rotation)
        return math.cos(angle), -math.sin(angle), math.sin(angle), math.cos(angle)
    if matrix is None:
        return 1, 0, 0, 1
    a, b, _, c, d, *_ = np.frombuffer(bytes(matrix), np.int32).tolist()
    return a, b, c, d


def _unreadable(path: Path, reason: str) -> MediaError:
    return MediaError(
        f"the video cannot be read ({reason})",
        received=str(path),
        allowed="video files such as mp4, mov, mkv, webm",
        remedy="Check that it plays, or convert it to mp4.",
    )
