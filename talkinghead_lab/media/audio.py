"""Read recordings: 16 kHz speech at −23 LUFS for the speech encoder, 48 kHz sound for the video."""

import hashlib
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, cast

import av
import numpy as np
import soxr
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.container import InputContainer
from numpy.typing import NDArray

from talkinghead_lab.errors import MediaError
from talkinghead_lab.foundation.latent_grid import FRAMES_PER_SECOND

SAMPLE_RATE = 16_000  # the training rate of the released wav2vec2
SOUNDTRACK_RATE = 48_000
SPEECH_LOUDNESS = -23.0  # LUFS, EBU R 128; the level of speech in the released pipeline
MAX_SECONDS = 2 * 60 * 60
# Share of packets. Media players skip a few damaged ones; noise that is mistaken for a format has many.
MAX_DAMAGE = 0.1

Wave = NDArray[np.float32]
Mix = Literal["para", "add"]


@dataclass(frozen=True)
class Recording:
    """A recording, read in one decoding pass.

    Args:
        speech: [samples] at 16 kHz, mono, normalised to −23 LUFS: the input of the speech encoder.
        soundtrack: [1 or 2 channels, samples] at 48 kHz at its own level: the sound of the video.
        sha256: digest of the file.
    """

    speech: Wave
    soundtrack: Wave
    sha256: str


def read_recording(path: str | Path) -> Recording:
    """Open a recording, or a video with a sound track, once, and read everything that a run needs of it.

    Channels are averaged for the speech encoder and resampled with soxr HQ, as `librosa.load` does. Only the
    results are held in memory. A truncated file gives what is there; a few damaged packets are skipped.

    Raises:
        MediaError: not a recording, no sound in it, too long, damaged, or samples that are NaN or infinity.
    """
    path = Path(path)
    speech, sound = ResampledTrack(SAMPLE_RATE, mono=True), ResampledTrack(SOUNDTRACK_RATE)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        _fill(path, file, speech, sound)
    normalized = normalize_loudness(speech.wave()[0]).astype(np.float32)
    return Recording(normalized, sound.wave(), digest)


def read_soundtrack(path: str | Path) -> Wave:
    """Read only the `soundtrack` of a `Recording`; errors as for `read_recording`."""
    sound = ResampledTrack(SOUNDTRACK_RATE)
    _fill(Path(path), str(path), sound)
    return sound.wave()


def normalize_loudness(wave: NDArray[np.floating], lufs: float = SPEECH_LOUDNESS) -> NDArray[np.float64]:
    """Scale a 16 kHz mono recording to an integrated loudness (ITU-R BS.1770-4, gated).

    A recording shorter than the meter's block of 0.4 s is measured on a repeated copy. A recording below the
    meter's gate (−70 LUFS), such as silence, is returned unchanged: it contains no speech.
    """
    import pyloudnorm  # imports scipy, which takes a second; loading the networks imports it earlier

    meter = pyloudnorm.Meter(SAMPLE_RATE)
    block = math.ceil(meter.block_size * SAMPLE_RATE)
    samples = np.asarray(wave, dtype=np.float64)
    loudness = meter.integrated_loudness(samples if len(samples) >= block else np.resize(samples, block))
    return samples * 10 ** ((lufs - loudness) / 20) if math.isfinite(loudness) else samples


def frame_count(wave: NDArray[np.floating]) -> int:
    """Complete video frames in a 16 kHz recording, at least one."""
    return max(1, len(wave) * FRAMES_PER_SECOND // SAMPLE_RATE)


def mix_speakers(first: Wave, second: Wave, mix: Mix) -> tuple[Wave, Wave]:
    """Place two recordings [..., samples] on one timeline, padded with silence to equal length.

    Args:
        first: the first speaker.
        second: the second speaker.
        mix: `para`: both start at 0; `add`: the second starts when the first ends.
    """
    samples_first, samples_second = first.shape[-1], second.shape[-1]
    if mix == "add":
        return _pad(first, 0, samples_second), _pad(second, samples_first, 0)
    longest = max(samples_first, samples_second)
    return _pad(first, 0, longest - samples_first), _pad(second, 0, longest - samples_second)


def mix_soundtracks(first: Wave, second: Wave, mix: Mix) -> Wave:
    """Sum two sound tracks [channels, samples]; scaled down if the sum clips but neither part did."""
    first, second = mix_speakers(first, second, mix)
    total = first + second  # broadcasts mono to both channels of stereo
    loudest_part = max(1.0, np.abs(first).max(initial=0), np.abs(second).max(initial=0))
    return total * np.float32(min(1.0, loudest_part / max(np.abs(total).max(initial=0), 1e-9)))


def _pad(wave: Wave, before: int, after: int) -> Wave:
    return np.pad(wave, [(0, 0)] * (wave.ndim - 1) + [(before, after)])


class ResampledTrack:
    """A sound track at another sample rate, filled frame by frame; more than two channels become stereo."""

    def __init__(self, rate: int, mono: bool = False):
        self.rate, self.mono, self.source_rate, self.samples = rate, mono, 0, 0
        self._packed: AudioResampler | None = None
        self._stream: soxr.ResampleStream | None = None
        self._parts = deque[Wave]()

    def add(self, frame: AudioFrame, channels: int, path: Path) -> None:
        """Add a decoded frame of a stream of so many channels."""
        if self._packed is None:
            layout = "stereo" if channels > 2 and not self.mono else None
            self._packed = AudioResampler(format="flt", layout=layout)
        for part in self._packed.resample(frame):
            # Packed samples: PyAV reads wild pointers behind the eighth plane of planar ones.
            samples = cast(Wave, part.to_ndarray()).reshape(-1, part.layout.nb_channels)
            block = np.ascontiguousarray(samples.T)
            self.samples += block.shape[1]
            _check(block, self.samples / part.sample_rate, path)
            if self.mono:
                block = block.mean(axis=0, keepdims=True)
            if self._stream is None:
                self.source_rate = part.sample_rate
                self._stream = soxr.ResampleStream(
                    self.source_rate, self.rate, len(block), dtype="float32", quality="HQ"
                )
            self._parts.append(self._stream.resample_chunk(np.ascontiguousarray(block.T)))

    def wave(self) -> Wave:
        """Finish: [channels, ceil(duration · rate)], the length that librosa gives too."""
        assert self._stream is not None
        self._parts.append(self._stream.resample_chunk(self._parts[0][:0], last=True))
        length = -(-self.samples * self.rate // self.source_rate)
        wave, start = np.zeros((self._parts[0].shape[1], length), np.float32), 0
        while self._parts:  # free every part after it is copied: hardly anything is in memory twice
            part = self._parts.popleft().T[:, : length - start]
            wave[:, start : start + part.shape[1]] = part
            start += part.shape[1]
        return wave


def _fill(path: Path, source: str | BinaryIO, *tracks: ResampledTrack) -> None:
    """Decode the first sound track of a file once, into every one of `tracks`."""
    try:
        # Playlists may name further files; only this one may be opened.
        options = {"protocol_whitelist": "file"}
        with av.open(source, "r", options=options, metadata_errors="replace") as container:
            stream = next(iter(container.streams.audio), None)
            if stream is None:
                raise _no_sound(path)
            for frame in _frames(container, path):
                for track in tracks:
                    track.add(frame, stream.channels, path)
    except (av.error.FFmpegError, ValueError) as error:
        raise MediaError(
            f"the recording cannot be read ({getattr(error, 'strerror', None) or error})",
            received=str(path),
            allowed="sound or video files such as wav, flac, mp3, m4a, ogg, mp4, mkv",
            remedy="Check that the file plays, or convert it to wav.",
        ) from error
    if not tracks[0].samples:
        raise _no_sound(path)


def _frames(container: InputContainer, path: Path) -> Iterator[AudioFrame]:
    """Decode like a media player: skip damaged packets; too many of them are an error."""
    packets = damaged = 0
    for packet in container.demux(container.streams.audio[0]):
        packets += 1
        try:
            yield from packet.decode()
        except av.error.FFmpegError:
            damaged += 1
    if damaged > max(1, MAX_DAMAGE * packets):
        raise MediaError(
            "the recording is damaged",
            received=f"{path}, {damaged} of {packets} packets unreadable",
            allowed=f"up to {MAX_DAMAGE:.0%}",
            remedy="Download or export the file again.",
        )


def _check(block: Wave, seconds: float, path: Path) -> None:
    if not np.isfinite(block).all():
        raise MediaError(
            f"the recording contains NaN or infinity before {seconds:.2f} s",
            received=str(path),
            remedy="Export it again, for example as 16-bit wav.",
        )
    if seconds > MAX_SECONDS:
        raise MediaError(
            "the recording is too long",
            received=str(path),
            allowed=f"up to {MAX_SECONDS // 3600} hours",
            remedy="Split it into parts.",
        )


def _no_sound(path: Path) -> MediaError:
    return MediaError(
        "the file contains no sound",
        received=str(path),
        remedy="Choose a recording, or a video with a sound track.",
    )
