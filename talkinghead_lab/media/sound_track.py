"""Choose a sound track of a file and decode it in step with its timestamps."""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, cast

import av
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.format import Flags
from av.stream import Disposition
from av.video.stream import VideoStream

from talkinghead_lab.errors import MediaError, MediaTooLarge
from talkinghead_lab.foundation.latent_grid import FRAMES_PER_SECOND
from talkinghead_lab.media.ogg_links import links
from talkinghead_lab.media.packets import demux
from talkinghead_lab.media.resampled_track import ResampledTrack

MAX_SECONDS = 2 * 60 * 60
# Share of packets. Media players skip a few damaged ones; noise that is mistaken for a format has many.
MAX_DAMAGE = 0.1
# Timestamps jitter: containers round them, and programs that record write them by the clock. Gaps of up to
# one video frame are ignored, since nobody sees them; so are late starts of up to 1 ms (FFmpeg's `min_comp`).
GAP_TOLERANCE, START_TOLERANCE = 1 / FRAMES_PER_SECOND, 0.001
# A larger step back is a clock that was set anew, as between joined files.
RESTART = 1.0
# In formats whose clock may be set anew, a larger step ahead is that, too: FFmpeg's `dts_delta_threshold`.
LONGEST_STEP = 10.0
# Tracks beside the speech that belongs to the picture.
SECONDARY = (
    Disposition.comment
    | Disposition.karaoke
    | Disposition.visual_impaired
    | Disposition.clean_effects
    | Disposition.descriptions
)


def decode(
    path: Path,
    file: BinaryIO,
    tracks: Sequence[ResampledTrack],
    number: int | None = None,
    max_seconds: float = MAX_SECONDS,
) -> None:
    """Decode a sound track of a file once, into every one of `tracks`.

    Args:
        path: the file, for messages.
        file: the open file.
        tracks: what to fill.
        number: see `choose`.
        max_seconds: limit of the length.

    Raises:
        MediaTooLarge: longer than `max_seconds`.
        MediaError: no sound, no such track, damaged, or unusable samples.
    """
    try:
        # Playlists may name further files; only this one may be opened.
        options, seconds = {"protocol_whitelist": "file"}, Fraction(0)
        for part in links(file):
            with av.open(part, "r", options=options, metadata_errors="replace") as container:
                stream = choose(container, path, number)
                timeline = Timeline(container, stream, path, tracks, seconds, max_seconds)
                _decode_packets(container, stream, timeline, path)
                timeline.finish()
                seconds = timeline.seconds
    except (av.error.FFmpegError, ValueError) as error:
        raise MediaError(
            f"the recording cannot be read ({getattr(error, 'strerror', None) or error})",
            received=str(path),
            allowed="sound or video files such as wav, flac, mp3, m4a, ogg, mp4, mkv",
            remedy="Check that the file plays, or convert it to wav.",
        ) from error
    if not seconds:
        raise _no_sound(path)


def choose(container: InputContainer, path: Path, number: int | None = None) -> AudioStream:
    """Choose a sound track.

    Args:
        container: the open file.
        path: its name, for messages.
        number: counts from 1. None: the track that is flagged as default; of several, or none, one without a
            flag such as commentary, then the one with the most channels, then the first.

    Raises:
        MediaError: there is no sound track, none of this number, or FFmpeg has no decoder for it.
    """
    streams = container.streams.audio
    if not streams:
        raise _no_sound(path)
    for stream in streams:
        _use_plain_layout(stream)
    if number is None:
        number = 1 + streams.index(max(streams, key=_rank))
    if number > len(streams):
        raise MediaError(
            "the file has no such sound track",
            received=f"{path}, track {number}",
            allowed=", ".join(f"{i} ({_described(stream)})" for i, stream in enumerate(streams, start=1)),
            remedy="Set audio_track to one of these.",
        )
    if streams[number - 1].codec_context is None:
        raise MediaError(
            "the recording's codec is unknown",
            received=f"{path}, track {number}",
            allowed="what FFmpeg decodes, such as AAC, MP3, Opus, FLAC or PCM",
            remedy="Convert it to wav with the program that made it.",
        )
    return streams[number - 1]


class Timeline:
    """Places decoded frames by their timestamps, as FFmpeg's `aresample=async=1:first_pts=0` does.

    Time starts with the first of all streams: sound that starts later than the picture is preceded by
    silence, and gaps are filled with silence. No sound is cut: where timestamps overlap or step back, it goes
    on without a break. A step ahead counts only if the next frame does not step back again. Formats of bare
    frames, as AAC in ADTS, have no timestamps: FFmpeg counts them at the first sample rate. Such a count only
    tells how much a damaged packet lacks.

    Args:
        container: the open file.
        stream: the sound track that is decoded.
        path: the file, for messages.
        tracks: what the frames are added to.
        seconds: of sound that they hold already.
        max_seconds: limit of the length.
    """

    def __init__(
        self,
        container: InputContainer,
        stream: AudioStream,
        path: Path,
        tracks: Sequence[ResampledTrack],
        seconds: Fraction = Fraction(0),
        max_seconds: float = MAX_SECONDS,
    ) -> None:
        self.seconds, self._max_seconds = seconds, max_seconds
        self._path, self._tracks = path, tracks
        flags = container.format.flags
        self._clock_restarts = bool(flags & cast(int, Flags.ts_discont.value))
        self._counted = not self._clock_restarts and bool(flags & cast(int, Flags.generic_index.value))
        self._first = min(stream_starts((*container.streams.audio, *container.streams.video)), default=None)
        self._origin: float | None = None  # timestamp of time 0
        self._waiting: tuple[AudioFrame, bool] | None = None
        self._lost = False

    def add(self, frame: AudioFrame) -> None:
        """Add the next frame of the stream."""
        if frame.samples and frame.sample_rate > 0:
            self._place_waiting(frame)
            self._waiting, self._lost = (frame, self._lost), False

    def lose(self) -> None:
        """Note that a packet could not be decoded: its duration is kept."""
        self._lost = True

    def finish(self) -> None:
        """Place the last frame."""
        self._place_waiting(None)

    def _place_waiting(self, following: AudioFrame | None) -> None:
        if self._waiting is None:
            return
        frame, after_loss = self._waiting
        duration, time = frame.samples / frame.sample_rate, frame.time
        if time is not None and following is not None:
            step = duration if following.time is None else following.time - time
            if self._counted and not after_loss:
                self._origin = time - float(self.seconds)
            self._follow(time, duration, step, duration / 2 if after_loss else GAP_TOLERANCE)
        for track in self._tracks:
            track.add(frame, self.seconds, self._path)
        self.seconds += Fraction(frame.samples, frame.sample_rate)
        self._check_length()

    def _follow(self, time: float, duration: float, step: float, tolerance: float) -> None:
        """Move on to the timestamp of a frame, if it is plausible.

        Args:
            time: the timestamp.
            duration: of the frame.
            step: from this timestamp to the next.
            tolerance: the smallest gap.
        """
        seconds = float(self.seconds)
        if self._origin is None and step >= 0:
            first = time - seconds
            self._origin = first if self._first is None else min(first, self._first)
            tolerance = START_TOLERANCE
        if self._origin is None:
            return
        ahead = time - self._origin - seconds
        if ahead < -RESTART or (self._clock_restarts and ahead > LONGEST_STEP):
            if abs(step - duration) <= duration / 2:
                self._origin = time - seconds
        elif ahead > tolerance and step >= 0:
            self.seconds += Fraction(round(ahead * 1e6), 10**6)
            self._check_length()

    def _check_length(self) -> None:
        if self.seconds > self._max_seconds:
            raise MediaTooLarge(
                "the recording is too long",
                received=f"{self._path}, {float(self.seconds):.2f} s by its samples and timestamps",
                allowed=f"up to {self._max_seconds:g} s",
                remedy="Split it into parts, or convert it to wav if it is shorter than that.",
            )


def _decode_packets(container: InputContainer, stream: AudioStream, timeline: Timeline, path: Path) -> None:
    """Decode like a media player: skip damaged packets; too many of them are an error."""
    packets = damaged = 0
    for packet in demux(container, stream):
        packets += 1
        try:
            frames = packet.decode()
        except av.error.FFmpegError:
            damaged += 1
            timeline.lose()
            continue
        for frame in frames:
            timeline.add(frame)
    if damaged > max(1, MAX_DAMAGE * packets):
        raise MediaError(
            "the recording is damaged",
            received=f"{path}, {damaged} of {packets} packets unreadable",
            allowed=f"up to {MAX_DAMAGE:.0%}",
            remedy="Download or export the file again.",
        )


def stream_starts(streams: Iterable[AudioStream | VideoStream]) -> list[float]:
    """The first timestamps, in seconds of the file, of streams that have any; cover art has none."""
    starts = []
    for stream in streams:
        cover = stream.disposition & Disposition.attached_pic
        if not cover and stream.start_time is not None and stream.time_base:
            start = float(stream.start_time * stream.time_base)
            # Sound before 0 is the delay of its encoder, which decoders drop.
            starts.append(max(start, 0.0) if isinstance(stream, AudioStream) else start)
    return starts


def _use_plain_layout(stream: AudioStream) -> None:
    """Replace a layout that lists its channels one by one, as of 7.1 in AIFF and CAF, before it is decoded.

    PyAV shares the list between the stream, its frames and their layouts, and frees it for each of them: the
    process ends. The order in the list is given up. A layout that only counts its channels becomes the usual
    one up to 7.1; more channels are separate microphones.
    """
    context = stream.codec_context
    if not context or context.is_open:
        return
    layout = context.layout  # only once: the list is freed with it
    count, name = layout.nb_channels, layout.name
    counted = f"{count} channels"
    if name == counted and 1 <= count <= 8:
        context.layout = f"{count}c"
    elif name.startswith(counted):
        context.layout = counted
    elif count:
        context.layout = name  # a list in the usual order has the usual name


def _rank(stream: AudioStream) -> tuple[bool, bool, bool, int]:
    context = stream.codec_context  # None: FFmpeg has no decoder
    channels, flags = context.channels if context else 0, stream.disposition
    return channels > 0, bool(flags & Disposition.default), not flags & SECONDARY, channels


def _described(stream: AudioStream) -> str:
    named = (stream.language, stream.metadata.get("title"))
    return ", ".join(name for name in named if name) or "unnamed"


def _no_sound(path: Path) -> MediaError:
    return MediaError(
        "the file contains no sound",
        received=str(path),
        remedy="Choose a recording, or a video with a sound track.",
    )
