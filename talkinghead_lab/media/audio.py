"""Recordings in: 16 kHz speech at −23 LUFS for the speech encoder, 48 kHz sound for the video."""

import itertools
import math
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, cast

import av
import numpy as np
import soxr
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.container import InputContainer
from numpy.typing import NDArray

from talkinghead_lab.errors import MediaError
from talkinghead_lab.foundation.latent_grid import FRAMES_PER_SECOND

SAMPLE_RATE = 16_000  # the rate that the released wav2vec2 was trained at
SOUNDTRACK_RATE = 48_000
SPEECH_LOUDNESS = -23.0  # LUFS, EBU R 128; the level at which the released pipeline embeds speech
LONGEST_SECONDS = 2 * 60 * 60
LARGEST_DAMAGE = 0.1  # of all packets; players skip a few damaged ones, noise taken for a format has many

Wave = NDArray[np.float32]
Mix = Literal["para", "add"]


def read_speech(path: str | Path) -> Wave:
    """Read a recording, or the sound track of a video, as the speech encoder takes it.

    Channels are averaged and resampled with soxr HQ, as `librosa.load` does. The file is decoded once and in
    blocks: only the result is held. As in a player, a file that was cut short gives what is there and
    a few damaged packets are skipped.

    Returns:
        [samples] at 16 kHz, normalised to −23 LUFS.

    Raises:
        MediaError: not a recording, no sound in it, too long, damaged, or samples that are not finite.
    """
    mono = ((rate, block.mean(axis=0, keepdims=True)) for rate, block in _decode(Path(path)))
    return normalize_loudness(_resample(mono, SAMPLE_RATE)[0]).astype(np.float32)


def read_soundtrack(path: str | Path) -> Wave:
    """Read a recording as it is to be heard: its own level, mono or stereo (more channels are mixed down).

    Returns:
        [channels, samples] at 48 kHz.

    Raises:
        MediaError: as `read_speech`.
    """
    return _resample(_decode(Path(path), most_channels=2), SOUNDTRACK_RATE)


def normalize_loudness(wave: NDArray, lufs: float = SPEECH_LOUDNESS) -> NDArray[np.float64]:
    """Scale a 16 kHz mono recording to an integrated loudness (ITU-R BS.1770-4, gated).

    Recordings shorter than the meter's block of 0.4 s are measured on a repeated copy. What lies below the
    meter's gate (−70 LUFS), silence above all, is returned unchanged: there is no speech to bring to a level.
    """
    import pyloudnorm  # brings scipy's filters, which take a second; it is there once networks are loaded

    meter = pyloudnorm.Meter(SAMPLE_RATE)
    block = math.ceil(meter.block_size * SAMPLE_RATE)
    wave = np.asarray(wave, dtype=np.float64)
    loudness = meter.integrated_loudness(wave if len(wave) >= block else np.resize(wave, block))
    return wave * 10 ** ((lufs - loudness) / 20) if math.isfinite(loudness) else wave


def frame_count(wave: NDArray) -> int:
    """Whole video frames that a 16 kHz recording lasts, at least one."""
    return max(1, len(wave) * FRAMES_PER_SECOND // SAMPLE_RATE)


def mix_speakers(first: Wave, second: Wave, mix: Mix) -> tuple[Wave, Wave]:
    """Lay two recordings [..., samples] on one time line; both come back equally long.

    Args:
        mix: `para`: both from the start, the shorter followed by silence; `add`: the second after the first.
    """
    samples_first, samples_second = first.shape[-1], second.shape[-1]
    if mix == "add":
        return _pad(first, 0, samples_second), _pad(second, samples_first, 0)
    longest = max(samples_first, samples_second)
    return _pad(first, 0, longest - samples_first), _pad(second, 0, longest - samples_second)


def mix_soundtracks(first: Wave, second: Wave, mix: Mix) -> Wave:
    """Sum two sound tracks [channels, samples]; turned down where the sum would clip and neither part did."""
    first, second = mix_speakers(first, second, mix)
    total = first + second  # mono plays on both channels of stereo
    loudest_part = max(1.0, np.abs(first).max(initial=0), np.abs(second).max(initial=0))
    return total * np.float32(min(1.0, loudest_part / max(np.abs(total).max(initial=0), 1e-9)))


def _pad(wave: Wave, before: int, after: int) -> Wave:
    return np.pad(wave, [(0, 0)] * (wave.ndim - 1) + [(before, after)])


def _resample(blocks: Iterator[tuple[int, Wave]], rate: int) -> Wave:
    """[channels, ceil(duration · rate)]; the length that librosa gives too."""
    source_rate, first = next(blocks)
    stream = soxr.ResampleStream(source_rate, rate, len(first), dtype="float32", quality="HQ")
    samples, resampled = 0, deque[Wave]()
    for _, block in itertools.chain([(source_rate, first)], blocks):
        samples += block.shape[1]
        resampled.append(stream.resample_chunk(np.ascontiguousarray(block.T)))
    resampled.append(stream.resample_chunk(resampled[0][:0], last=True))
    wave, start = np.zeros((len(first), -(-samples * rate // source_rate)), np.float32), 0
    while resampled:  # every part is freed as it is copied, so that little is held twice
        part = resampled.popleft().T[:, : wave.shape[1] - start]
        wave[:, start : start + part.shape[1]] = part
        start += part.shape[1]
    return wave


def _decode(path: Path, most_channels: int | None = None) -> Iterator[tuple[int, Wave]]:
    """Yield (rate, [channels, samples]) blocks of a recording's first sound track, full scale ±1."""
    samples = 0
    try:
        # Playlists may name further files; none but this one is to be opened.
        options = {"protocol_whitelist": "file"}
        with av.open(str(path), "r", options=options, metadata_errors="replace") as container:
            stream = next(iter(container.streams.audio), None)
            if stream is None:
                raise _no_sound(path)
            layout = "stereo" if most_channels and stream.channels > most_channels else None
            planes = AudioResampler(format="fltp", layout=layout)
            for frame in _frames(container, path):
                for part in planes.resample(frame):
                    block = cast(Wave, part.to_ndarray())
                    samples += block.shape[1]
                    _check(block, samples / part.sample_rate, path)
                    yield part.sample_rate, block
    except (av.error.FFmpegError, ValueError) as error:
        raise MediaError(
            f"not a recording that can be read ({getattr(error, 'strerror', None) or error})",
            received=str(path),
            allowed="sound or video files such as wav, flac, mp3, m4a, ogg, mp4, mkv",
            remedy="Play the file to see whether it is whole, or convert it to wav.",
        ) from error
    if not samples:
        raise _no_sound(path)


def _frames(container: InputContainer, path: Path) -> Iterator[AudioFrame]:
    """Decode as a player does: a damaged packet is skipped, too many of them are an error."""
    packets = damaged = 0
    for packet in container.demux(container.streams.audio[0]):
        packets += 1
        try:
            yield from packet.decode()
        except av.error.FFmpegError:
            damaged += 1
    if damaged > max(1, LARGEST_DAMAGE * packets):
        raise MediaError(
            "the recording is damaged",
            received=f"{path}, {damaged} of {packets} packets unreadable",
            allowed=f"up to {LARGEST_DAMAGE:.0%}",
            remedy="Fetch or export the file again.",
        )


def _check(block: Wave, seconds: float, path: Path) -> None:
    if not np.isfinite(block).all():
        raise MediaError(
            f"the recording holds samples that are not numbers (NaN or infinity) before {seconds:.2f} s",
            received=str(path),
            remedy="Export it again, for example as 16-bit wav.",
        )
    if seconds > LONGEST_SECONDS:
        raise MediaError(
            "the recording is too long",
            received=str(path),
            allowed=f"up to {LONGEST_SECONDS // 3600} hours",
            remedy="Cut it into parts.",
        )


def _no_sound(path: Path) -> MediaError:
    return MediaError(
        "there is no sound in the file",
        received=str(path),
        remedy="Name a recording, or a video with a sound track.",
    )
