"""Videos out and back in: one H.264 and AAC encode, its facts, its frames and a contact sheet of them."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.codec.context import Flags
from av.container import OutputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from av.video.stream import VideoStream
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from talkinghead_lab.foundation.files import atomic_path
from talkinghead_lab.foundation.latent_grid import FRAMES_PER_SECOND
from talkinghead_lab.media.audio import SOUNDTRACK_RATE, ResampledTrack
from talkinghead_lab.media.reference import DrivingVideo, open_video, timed_frames

Frames = NDArray[np.uint8]

SAMPLES_PER_FRAME = SOUNDTRACK_RATE // FRAMES_PER_SECOND
# The bytes of an encode depend on the number of threads, with threads by slice on their timing too: so the
# number is fixed, and they are by frame. A key frame every two seconds keeps jumping about quick.
# Macroblock tree reads memory that x264 has not written, so that bytes change with what lay there before.
H264_OPTIONS = {"crf": "17", "preset": "medium", "g": str(2 * FRAMES_PER_SECOND), "mbtree": "0"}
H264_THREADS = 4
AAC_BITS_PER_CHANNEL = 128_000
# The default search for quantisers overshoots at the start: a tone of 0.5 came back with peaks of 1.03.
AAC_OPTIONS = {"aac_coder": "fast"}
# Without `bitexact`, here and for AAC, the libraries' versions are written into the file.
MP4_OPTIONS = {"movflags": "+faststart", "fflags": "+bitexact"}


@dataclass(frozen=True)
class VideoFacts:
    """What a video file holds. `faststart`: its index comes first, so that it plays while it loads."""

    width: int
    height: int
    frame_count: int
    duration_seconds: float
    audio_seconds: float
    codecs: tuple[str, ...]
    faststart: bool


class _Voice:
    """The sound track of a video that is being written, or of a silent one."""

    def __init__(self, container: OutputContainer, sound: NDArray[np.float32] | None):
        self.container, self.sound = container, sound
        if sound is not None:
            layout = {1: "mono", 2: "stereo"}[len(sound)]
            self.stream: AudioStream = container.add_stream(
                "aac", rate=SOUNDTRACK_RATE, layout=layout, options=AAC_OPTIONS
            )
            self.stream.bit_rate = len(sound) * AAC_BITS_PER_CHANNEL
            self.stream.codec_context.flags |= Flags.bitexact

    def speak(self, number: int) -> None:
        """Write what is heard during one video frame."""
        if self.sound is not None:
            self.container.mux(self.stream.encode(_audio_frame(self.sound, number)))

    def end(self) -> None:
        if self.sound is not None:
            self.container.mux(self.stream.encode(None))


def write_video(
    path: str | Path,
    frames: Iterable[Frames],
    sound: NDArray[np.float32] | None,
    frame_count: int,
    metadata: Mapping[str, str],
) -> None:
    """Encode an mp4 of 25 frames a second, block by block: H.264 (yuv420p, BT.709) and AAC, index first.

    Equal input gives equal bytes. The file appears under its name when it is whole, and replaces none.

    Args:
        path: where the mp4 goes; its folder exists.
        frames: blocks of RGB frames, uint8 [n, H, W, 3] with even H and W.
        sound: [1 or 2 channels, samples] at 48 kHz in [-1, 1]; cut, or followed by silence, to the
            picture's length. None: a silent video.
        frame_count: how many frames all blocks hold.
        metadata: tags that mp4 knows, such as `title` and `comment`; it drops others.

    Raises:
        OutputError: the file exists, its folder is not writable, or space ran out.
        ValueError: the blocks hold other than `frame_count` frames.
    """
    blocks = iter(frames)
    first = next(blocks, None)
    if first is None:
        raise ValueError(f"0 frames came, {frame_count} were announced")
    with (
        atomic_path(path) as temporary,
        av.open(str(temporary), "w", format="mp4", options=MP4_OPTIONS) as container,
    ):
        container.metadata.update(metadata)
        picture, voice = _picture_stream(container, first.shape), _Voice(container, sound)
        pixels = itertools.chain.from_iterable(itertools.chain([first], blocks))
        number = -1
        for number, frame in enumerate(pixels):
            container.mux(picture.encode(_video_frame(frame, number)))
            voice.speak(number)
        container.mux(picture.encode(None))
        voice.end()
        if number + 1 != frame_count:
            raise ValueError(f"{number + 1} frames came, {frame_count} were announced")


def join_videos(
    path: str | Path, parts: Sequence[Path], sound: NDArray[np.float32], metadata: Mapping[str, str]
) -> None:
    """Lay videos made by `write_video` end to end under one sound track; no picture is encoded again.

    The joined picture decodes to exactly the parts' frames.

    Args:
        path: where the mp4 goes; its folder exists.
        parts: silent videos of one frame size, in order.
        sound, metadata: as for `write_video`.

    Raises:
        OutputError: as `write_video`.
    """
    with (
        atomic_path(path) as temporary,
        av.open(str(temporary), "w", format="mp4", options=MP4_OPTIONS) as container,
    ):
        container.metadata.update(metadata)
        with open_video(parts[0]) as (_, template):
            picture = container.add_stream_from_template(template)
            reorder_depth = template.codec_context.reorder_depth
        voice, frames = _Voice(container, sound), 0
        for part in parts:
            start = frames
            for packet, ticks in _packets(part):
                # Packets come in the order of decoding, and how far ahead of its picture a part starts to
                # decode differs between parts of a few frames: one distance for all keeps the times in order.
                packet.pts = cast(int, packet.pts) + start * ticks
                packet.dts = (frames - reorder_depth) * ticks
                packet.stream = picture
                container.mux(packet)
                voice.speak(frames)
                frames += 1
        voice.end()


def _packets(part: Path) -> Iterator[tuple[Packet, int]]:
    """(packet, length of a frame in the packet's units of time) of a video's picture."""
    with open_video(part) as (source, stream):
        ticks = int(1 / (FRAMES_PER_SECOND * cast(Fraction, stream.time_base)))
        for packet in source.demux(stream):
            if packet.dts is not None:  # the end of the stream has none
                yield packet, ticks


def _picture_stream(container: OutputContainer, shape: tuple[int, ...]) -> VideoStream:
    stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options=H264_OPTIONS)
    _, stream.height, stream.width, _ = shape
    stream.pix_fmt = "yuv420p"
    context = stream.codec_context
    context.thread_type, context.thread_count = "FRAME", H264_THREADS
    context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
    context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
    return stream


def _video_frame(pixels: Frames, number: int) -> VideoFrame:
    rgb = VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
    frame = rgb.reformat(
        format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG, threads=1
    )
    frame.pts, frame.time_base = number, Fraction(1, FRAMES_PER_SECOND)
    return frame


def _audio_frame(sound: NDArray[np.float32], number: int) -> AudioFrame:
    """The sound that is heard during one video frame."""
    start = number * SAMPLES_PER_FRAME
    heard = sound[:, start : start + SAMPLES_PER_FRAME].astype(np.float32).clip(-1, 1)
    padded = np.pad(heard, ((0, 0), (0, SAMPLES_PER_FRAME - heard.shape[1])))
    frame = AudioFrame.from_ndarray(padded, format="fltp", layout="mono" if len(sound) == 1 else "stereo")
    frame.sample_rate = SOUNDTRACK_RATE
    frame.pts, frame.time_base = start, Fraction(1, SOUNDTRACK_RATE)
    return frame


def probe(path: str | Path) -> VideoFacts:
    """Read an mp4's facts from its index, without decoding.

    Raises:
        MediaError: not a video.
    """
    path = Path(path)
    with open_video(path) as (container, stream):
        voice = next(iter(container.streams.audio), None)
        return VideoFacts(
            width=stream.width,
            height=stream.height,
            frame_count=stream.frames,
            duration_seconds=_seconds(stream),
            audio_seconds=_seconds(voice) if voice else 0.0,
            codecs=tuple(found.codec_context.name for found in (stream, voice) if found),
            faststart=_index_first(path),
        )


def _seconds(stream: VideoStream | AudioStream) -> float:
    return float((stream.duration or 0) * (stream.time_base or 0))


def _index_first(path: Path) -> bool:
    """Whether `moov` comes before `mdat` among the boxes of an mp4 (ISO/IEC 14496-12, 4.2)."""
    with path.open("rb") as file:
        while len(header := file.read(8)) == 8:
            size, kind = int.from_bytes(header[:4]), header[4:]
            if kind in (b"moov", b"mdat"):
                return kind == b"moov"
            if size == 1:
                size = int.from_bytes(file.read(8)) - 8
            if size < 8:
                return False
            file.seek(size - 8, 1)
    return False


def read_frames(path: str | Path) -> Iterator[Frames]:
    """Decode a video frame by frame: uint8 [H, W, 3].

    Raises:
        MediaError: not a video, or damaged.
    """
    with open_video(Path(path)) as (container, stream):
        for _, frame in timed_frames(container, stream):
            yield cast(Frames, frame.to_ndarray(format="rgb24"))


def decode_once(path: str | Path, on_frame: Callable[[Frames], None]) -> NDArray[np.float32] | None:
    """Decode picture and sound in one pass over the file.

    Args:
        path: the video.
        on_frame: called with every frame in order, uint8 [H, W, 3].

    Returns:
        The sound track as `audio.read_soundtrack` gives it; None: there is none.

    Raises:
        MediaError: not a video, or damaged.
    """
    track, path = ResampledTrack(SOUNDTRACK_RATE), Path(path)
    with open_video(path) as (container, picture):
        picture.thread_type = "AUTO"
        sound = next(iter(container.streams.audio), None)
        for packet in container.demux([picture] if sound is None else [picture, sound]):
            for frame in packet.decode():
                if isinstance(frame, VideoFrame):
                    on_frame(cast(Frames, frame.to_ndarray(format="rgb24")))
                elif isinstance(frame, AudioFrame) and sound is not None:
                    track.add(frame, sound.channels, path)
    return track.wave() if track.samples else None


def evenly_spaced_numbers(frames: int, count: int) -> list[int]:
    """Numbers of `count` frames spread evenly from the first of `frames` frames to the last."""
    return sorted({round((frames - 1) * step / max(1, count - 1)) for step in range(count)})


def evenly_spaced(path: str | Path, count: int) -> list[tuple[float, Image.Image]]:
    """(seconds, frame) at `count` times from the first frame of a 25 fps mp4 to the last, read by seeking.

    Raises:
        MediaError: not a video.
    """
    video, numbers = DrivingVideo(path), evenly_spaced_numbers(probe(path).frame_count, count)
    return [(number / FRAMES_PER_SECOND, video.frame_at(number / FRAMES_PER_SECOND)) for number in numbers]


def contact_sheet(
    frames: Iterable[tuple[float, Image.Image]], columns: int = 4, frame_width: int = 320
) -> Image.Image:
    """Lay (seconds, frame) pairs out in rows, each with its time under it."""
    pictures = list(frames)
    height = round(frame_width * pictures[0][1].height / pictures[0][1].width)
    font = ImageFont.load_default(size=14)
    gap, caption = 8, 22
    rows = -(-len(pictures) // columns)
    size = (columns * (frame_width + gap) + gap, rows * (height + caption + gap) + gap)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for place, (seconds, picture) in enumerate(pictures):
        row, column = divmod(place, columns)
        left, top = gap + column * (frame_width + gap), gap + row * (height + caption + gap)
        sheet.paste(picture.resize((frame_width, height), Image.Resampling.LANCZOS), (left, top))
        draw.text((left, top + height + 2), f"{seconds:.2f} s", fill="black", font=font)
    return sheet
