"""Write videos as H.264 and AAC, and read their properties, frames and contact sheets."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

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

from talkinghead_lab.errors import MediaError
from talkinghead_lab.foundation.files import atomic_path
from talkinghead_lab.foundation.latent_grid import FRAMES_PER_SECOND
from talkinghead_lab.media.audio import SOUNDTRACK_RATE
from talkinghead_lab.media.frame_colors import to_rgb
from talkinghead_lab.media.reference import DrivingVideo, open_video, timed_frames
from talkinghead_lab.media.resampled_track import ResampledTrack
from talkinghead_lab.media.sound_track import Timeline, choose

Frames = NDArray[np.uint8]

SAMPLES_PER_FRAME = SOUNDTRACK_RATE // FRAMES_PER_SECOND
# A key frame at least every four seconds keeps seeking fast. None lies inside a chunk of 81 frames, which
# starts with one anyway.
KEY_FRAME_DISTANCE = 4 * FRAMES_PER_SECOND
# Macroblock tree (mbtree) reads uninitialised memory in x264, which makes the output depend on earlier
# contents of that memory. Key frames are where `_quantisers` expects them if cuts of scenes get none.
H264_OPTIONS = {
    "crf": "17",
    "preset": "medium",
    "g": str(KEY_FRAME_DISTANCE),
    "sc_threshold": "0",
    "mbtree": "0",
}
# A key frame is coded without the frames before it, so the coding error of the whole picture changes at once:
# a faint pulse. It is as small as between other frames if key frames have a finer quantiser step, by this
# factor relative to other frames (x264's default is 1.4), and the frame before each of them has one, too.
KEY_FRAME_FACTOR = 2.8
BEFORE_KEY_FRAME_FACTOR = 2.5
# The output depends on the number of threads, and with slice threads on their timing, too. So the number is
# fixed and the threads are frame threads.
H264_THREADS = 4
AAC_BITS_PER_CHANNEL = 128_000
# The default quantiser search overshoots at the start: a tone of amplitude 0.5 had decoded peaks of 1.03.
AAC_OPTIONS = {"aac_coder": "fast"}
# Without `bitexact`, here and for AAC, the file contains the versions of the libraries.
MP4_OPTIONS = {"movflags": "+faststart", "fflags": "+bitexact"}


@dataclass(frozen=True)
class VideoFacts:
    """Properties of a video file."""

    width: int
    height: int
    frame_count: int
    duration_seconds: float
    audio_seconds: float
    codecs: tuple[str, ...]


class SoundEncoder:
    """Encodes the sound track of a container, one video frame after another; gives nothing for silence."""

    def __init__(self, container: OutputContainer, sound: NDArray[np.float32] | None) -> None:
        self.sound = sound
        if sound is not None:
            layout = {1: "mono", 2: "stereo"}[len(sound)]
            self.stream: AudioStream = container.add_stream(
                "aac", rate=SOUNDTRACK_RATE, layout=layout, options=AAC_OPTIONS
            )
            self.stream.bit_rate = len(sound) * AAC_BITS_PER_CHANNEL
            self.stream.codec_context.flags |= Flags.bitexact

    def encode(self, number: int) -> "list[Packet[Any]]":
        """Encode the sound of one video frame."""
        if self.sound is None:
            return []
        return list(self.stream.encode(_audio_frame(self.sound, number)))

    def flush(self) -> "list[Packet[Any]]":
        """What the encoder still holds."""
        return [] if self.sound is None else list(self.stream.encode(None))


# Receives the stream of the pictures, and packets of it that were muxed.
OnPackets = Callable[[VideoStream, "list[Packet[Any]]"], None]


def write_video(
    path: str | Path,
    frames: Iterable[Frames],
    sound: NDArray[np.float32] | None,
    frame_count: int,
    metadata: Mapping[str, str],
    on_packets: OnPackets = lambda picture, packets: None,
) -> None:
    """Encode an mp4 with 25 frames per second, block by block: H.264 (yuv420p, BT.709) and AAC, index first.

    Equal input gives equal bytes. The file appears under its name when complete and never replaces another.

    Args:
        path: the mp4 file; its folder exists.
        frames: blocks of RGB frames, uint8 [n, H, W, 3] with even H and W.
        sound: [1 or 2 channels, samples] at 48 kHz in [-1, 1], cut or padded with silence to the duration
            of the frames. None: a silent video.
        frame_count: total number of frames in all blocks.
        metadata: tags that mp4 supports, such as `title` and `comment`; others are dropped.
        on_packets: called with encoded pictures, as soon as the encoder gives them.

    Raises:
        OutputError: the file exists, its folder is not writable, or no space is left.
        ValueError: the blocks do not hold `frame_count` frames.
    """
    blocks = iter(frames)
    first = next(blocks, None)
    if first is None:
        raise ValueError(f"received 0 frames, expected {frame_count}")
    with (
        atomic_path(path) as temporary,
        av.open(str(temporary), "w", format="mp4", options=MP4_OPTIONS) as container,
    ):
        container.metadata.update(metadata)
        picture = _picture_stream(container, first.shape, frame_count)
        sound_track = SoundEncoder(container, sound)
        pixels = itertools.chain.from_iterable(itertools.chain([first], blocks))
        number = -1
        for number, frame in enumerate(pixels):
            packets = picture.encode(_video_frame(frame, number))
            container.mux(packets)
            on_packets(picture, packets)
            container.mux(sound_track.encode(number))
        packets = picture.encode(None)
        container.mux(packets)
        on_packets(picture, packets)
        container.mux(sound_track.flush())
        if number + 1 != frame_count:
            raise ValueError(f"received {number + 1} frames, expected {frame_count}")


def join_videos(
    path: str | Path, parts: Sequence[Path], sound: NDArray[np.float32], metadata: Mapping[str, str]
) -> None:
    """Concatenate videos made by `write_video` and add a sound track, without encoding frames again.

    The result decodes to exactly the frames of the parts.

    Args:
        path: the mp4 file; its folder exists.
        parts: silent videos of one frame size, in order.
        sound, metadata: see `write_video`.

    Raises:
        OutputError: see `write_video`.
    """
    with (
        atomic_path(path) as temporary,
        av.open(str(temporary), "w", format="mp4", options=MP4_OPTIONS) as container,
    ):
        container.metadata.update(metadata)
        with open_video(parts[0]) as (_, template):
            picture = container.add_stream_from_template(template)
            reorder_depth = template.codec_context.reorder_depth
        sound_track, frames = SoundEncoder(container, sound), 0
        for part in parts:
            start = frames
            for packet, ticks in packets_of(part):
                # Packets come in decoding order. How far decoding starts ahead of presentation differs
                # between short parts; the same distance for all keeps the decoding times increasing.
                packet.pts = cast(int, packet.pts) + start * ticks
                packet.dts = (frames - reorder_depth) * ticks
                packet.stream = picture
                container.mux(packet)
                container.mux(sound_track.encode(frames))
                frames += 1
        container.mux(sound_track.flush())


def packets_of(part: Path) -> Iterator[tuple["Packet[VideoStream]", int]]:
    """(packet, duration of a frame in the packet's time base) of a video."""
    with open_video(part) as (source, stream):
        ticks = int(1 / (FRAMES_PER_SECOND * cast(Fraction, stream.time_base)))
        for packet in source.demux(stream):
            if packet.dts is not None:  # None marks the end of the stream
                yield packet, ticks


def _picture_stream(container: OutputContainer, shape: tuple[int, ...], frame_count: int) -> VideoStream:
    options = H264_OPTIONS | {"x264-params": _quantisers(frame_count)}
    stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options=options)
    _, stream.height, stream.width, _ = shape
    stream.pix_fmt = "yuv420p"
    context = stream.codec_context
    context.thread_type, context.thread_count = "FRAME", H264_THREADS
    context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
    context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
    return stream


def _quantisers(frame_count: int) -> str:
    """x264's parameters for key frames and the frames before them; a key frame may follow the last frame."""
    key_frames = [*range(KEY_FRAME_DISTANCE, frame_count, KEY_FRAME_DISTANCE), frame_count]
    zones = "/".join(f"{n - 1},{n - 1},b={BEFORE_KEY_FRAME_FACTOR}" for n in key_frames)
    return f"ipratio={KEY_FRAME_FACTOR}:zones={zones}"


def _video_frame(pixels: Frames, number: int) -> VideoFrame:
    rgb = VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
    frame = rgb.reformat(
        format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG, threads=1
    )
    frame.pts, frame.time_base = number, Fraction(1, FRAMES_PER_SECOND)
    return frame


def _audio_frame(sound: NDArray[np.float32], number: int) -> AudioFrame:
    """The sound of one video frame."""
    start = number * SAMPLES_PER_FRAME
    heard = sound[:, start : start + SAMPLES_PER_FRAME].astype(np.float32).clip(-1, 1)
    padded = np.pad(heard, ((0, 0), (0, SAMPLES_PER_FRAME - heard.shape[1])))
    frame = AudioFrame.from_ndarray(padded, format="fltp", layout="mono" if len(sound) == 1 else "stereo")
    frame.sample_rate = SOUNDTRACK_RATE
    frame.pts, frame.time_base = start, Fraction(1, SOUNDTRACK_RATE)
    return frame


def probe(path: str | Path) -> VideoFacts:
    """Read the properties of an mp4 from its index, without decoding.

    Raises:
        MediaError: not a video.
    """
    path = Path(path)
    with open_video(path) as (container, stream):
        sound = next(iter(container.streams.audio), None)
        return VideoFacts(
            width=stream.width,
            height=stream.height,
            frame_count=stream.frames,
            duration_seconds=_seconds(stream),
            audio_seconds=_seconds(sound) if sound else 0.0,
            codecs=tuple(found.codec_context.name for found in (stream, sound) if found),
        )


def read_metadata(path: str | Path) -> dict[str, str]:
    """Read the metadata of a file, such as its comment.

    Raises:
        MediaError: the file cannot be opened.
    """
    try:
        with av.open(str(path)) as container:
            return dict(container.metadata)
    except (OSError, av.error.FFmpegError) as error:
        raise MediaError(f"the video cannot be opened ({error})", received=str(path)) from None


def _seconds(stream: VideoStream | AudioStream) -> float:
    return float((stream.duration or 0) * (stream.time_base or 0))


def read_frames(path: str | Path) -> Iterator[Frames]:
    """Decode a video frame by frame: uint8 [H, W, 3].

    Raises:
        MediaError: not a video, or damaged.
    """
    with open_video(Path(path)) as (container, stream):
        for _, frame in timed_frames(container, stream):
            yield to_rgb(frame)


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
        sound = choose(container, path) if container.streams.audio else None
        timeline = Timeline(container, sound, path, [track]) if sound else None
        for packet in container.demux([picture, sound] if sound else [picture]):
            for frame in packet.decode():
                if isinstance(frame, VideoFrame):
                    on_frame(to_rgb(frame))
                elif isinstance(frame, AudioFrame) and timeline:
                    timeline.add(frame)
        if timeline:
            timeline.finish()
    return track.wave() if timeline and timeline.seconds else None


def evenly_spaced_numbers(frames: int, count: int) -> list[int]:
    """Numbers of `count` frames spread evenly from the first of `frames` frames to the last."""
    return sorted({round((frames - 1) * step / max(1, count - 1)) for step in range(count)})


def evenly_spaced(path: str | Path, count: int) -> list[tuple[float, Image.Image]]:
    """(seconds, frame) at `count` evenly spaced times from the first to the last frame of a 25 fps mp4.

    Raises:
        MediaError: not a video.
    """
    video, numbers = DrivingVideo(path), evenly_spaced_numbers(probe(path).frame_count, count)
    return [(number / FRAMES_PER_SECOND, video.frame_at(number / FRAMES_PER_SECOND)) for number in numbers]


def contact_sheet(
    frames: Iterable[tuple[float, Image.Image]], columns: int = 4, frame_width: int = 320
) -> Image.Image:
    """Arrange (seconds, frame) pairs in rows, each with its time below."""
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
