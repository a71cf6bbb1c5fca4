"""Read recordings: 16 kHz speech at −23 LUFS for the speech encoder, 48 kHz sound for the video."""

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

SAMPLE_RATE = 16_000  # the training rate of the released wav2vec2
SOUNDTRACK_RATE = 48_000
SPEECH_LOUDNESS = -23.0  # LUFS, EBU R 128; the level of speech in the released pipeline
MAX_SECONDS = 2 * 60 * 60
# Share of packets. Media players skip a few damaged ones; noise that is mistaken for a format has many.
MAX_DAMAGE = 0.1

Wave = NDArray[np.float32]
Mix = Literal["para", "add"]


def read_speech(path: str | Path) -> Wave:
    """Read a recording, or the sound track of a video, for the speech encoder.

    Channels are averaged and resampled with soxr HQ, as in `librosa.load`. The file is decoded once, in
    blocks, so only the result is in memory. As in a media player, a truncated file yields what is left and a
    few damaged packets are skipped.

    Returns:
        [samples] at 16 kHz, normalised to −23 LUFS.

    Raises:
        MediaError: not a recording, no sound, too long, damaged, or NaN or infinite samples.
    """
    mono = ((rate, block.mean(axis=0, keepdims=True)) for rate, block in _decode(Path(path)))
    return normalize_loudness(_resample(mono, SAMPLE_RATE)[0]).astype(np.float32)


def read_soundtrack(path: str | Path) -> Wave:
    """Read a recording for the video: original level, mono or stereo (more channels are mixed down).

    Returns:
        [channels, samples] at 48 kHz.

    Raises:
        MediaError: as `read_speech`.
    """
    return _resample(_decode(Path(path), max_channels=2), SOUNDTRACK_RATE)


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


def _resample(blocks: Iterator[tuple[int, Wave]], rate: int) -> Wave:
    """Resample to [channels, ceil(duration · rate)], the same length as librosa."""
    source_rate, first = next(blocks)
    stream = soxr.ResampleStream(source_rate, rate, len(first), dtype="float32", quality="HQ")
    samples, resampled = 0, deque[Wave]()
    for _, block in itertools.chain([(source_rate, first)], blocks):
        samples += block.shape[1]
        resampled.append(stream.resample_chunk(np.ascontiguousarray(block.T)))
    resampled.append(stream.resample_chunk(resampled[0][:0], last=True))
    wave, start = np.zeros((len(first), -(-samples * rate // source_rate)), np.float32), 0
    while resampled:  # frees every part after copying it, to limit memory
        part = resampled.popleft().T[:, : wave.shape[1] - start]
        wave[:, start : start + part.shape[1]] = part
        start += part.shape[1]
    return wave


def _decode(path: Path, max_channels: int | None = None) -> Iterator[tuple[int, Wave]]:
    """Yield (rate, [channels, samples]) blocks of a file's first sound track, full scale ±1."""
    samples = 0
    try:
        # A playlist may name further sources; only this file is opened.
        options = {"protocol_whitelist": "file"}
        with av.open(str(path), "r", options=options, metadata_errors="replace") as container:
            stream = next(iter(container.streams.audio), None)
            if stream is None:
                raise _no_sound(path)
            layout = "stereo" if max_channels and stream.channels > max_channels else None
            planes = AudioResampler(format="fltp", layout=layout)
            for frame in _frames(container, path):
                for part in planes.resample(frame):
                    block = cast(Wave, part.to_ndarray())
                    samples += block.shape[1]
                    _check(block, samples / part.sample_rate, path)
                    yield part.sample_rate, block
    except (av.error.FFmpegError, ValueError) as error:
        raise MediaError(
            f"the recording cannot be read ({getattr(error, 'strerror', None) or error})",
            received=str(path),
            allowed="sound or video files such as wav, flac, mp3, m4a, ogg, mp4, mkv",
            remedy="Check that the file plays, or convert it to wav.",
        ) from error
    if not samples:
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
