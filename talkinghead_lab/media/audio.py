"""Read recordings: 16 kHz speech at −23 LUFS for the speech encoder, 48 kHz sound for the video."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from talkinghead_lab.errors import MediaError
from talkinghead_lab.foundation.latent_grid import FRAMES_PER_SECOND
from talkinghead_lab.media.resampled_track import MonoTrack, ResampledTrack
from talkinghead_lab.media.resampled_track import Wave as Wave
from talkinghead_lab.media.sound_track import MAX_SECONDS, decode

SAMPLE_RATE = 16_000  # the training rate of the released wav2vec2
SOUNDTRACK_RATE = 48_000
SPEECH_LOUDNESS = -23.0  # LUFS, EBU R 128; the level of speech in the released pipeline

Mix = Literal["para", "add", "timeline"]


@dataclass(frozen=True)
class Recording:
    """A recording, read in one decoding pass.

    Args:
        speech: [samples] at 16 kHz, mono, normalised to −23 LUFS: the input of the speech encoder.
        soundtrack: [1 or 2 channels, samples] at 48 kHz at its own level: the sound of the video.
    """

    speech: Wave
    soundtrack: Wave


def read_recording(
    path: str | Path, track: int | None = None, start: float = 0.0, max_seconds: float = MAX_SECONDS
) -> Recording:
    """Open a recording, or a video with a sound track, once, and read everything that a run needs of it.

    Timestamps are followed: gaps become silence, and sound that starts later than the picture stays late.
    Channels are averaged for the speech encoder; if they cancel each other, as in opposite phase, the loudest
    one is taken. Only the results are held in memory. A truncated file gives what is there; a few damaged
    packets are skipped.

    Args:
        path: the file.
        track: number of the sound track, from 1; None: the default one (`sound_track.choose`).
        start: seconds to skip.
        max_seconds: limit of the length, before anything is skipped.

    Raises:
        MediaTooLarge: longer than `max_seconds`.
        MediaError: not a recording, no sound in it, no such track, less than a video frame of sound after
            `start`, damaged, or samples that are NaN or infinity.
    """
    path = Path(path)
    speech, sound = MonoTrack(SAMPLE_RATE), ResampledTrack(SOUNDTRACK_RATE)
    with path.open("rb") as file:
        decode(path, file, (speech, sound), track, max_seconds)
        if speech.loudest:
            speech = MonoTrack(SAMPLE_RATE, speech.loudest)
            decode(path, file, (speech,), track, max_seconds)
    normalized = normalize_loudness(_after(speech.wave(), SAMPLE_RATE, start, path)[0]).astype(np.float32)
    return Recording(normalized, _after(sound.wave(), SOUNDTRACK_RATE, start, path))


def read_soundtrack(path: str | Path, track: int | None = None, start: float = 0.0) -> Wave:
    """Read only the `soundtrack` of a `Recording`; arguments and errors as for `read_recording`."""
    path, sound = Path(path), ResampledTrack(SOUNDTRACK_RATE)
    with path.open("rb") as file:
        decode(path, file, (sound,), track)
    return _after(sound.wave(), SOUNDTRACK_RATE, start, path)


def _after(wave: Wave, rate: int, start: float, path: Path) -> Wave:
    """The samples from `start` on, enough for one video frame."""
    seconds = wave.shape[1] / rate
    if seconds < start:
        raise MediaError(
            "audio_start is beyond the end of the recording",
            received=f"{start:g} s, {path} lasts {seconds:.2f} s",
            remedy="Choose an earlier start.",
        )
    rest = wave[:, round(start * rate) :]
    if rest.shape[1] < rate / FRAMES_PER_SECOND:
        raise MediaError(
            "the recording is shorter than one video frame",
            received=f"{path}, {rest.shape[1] / rate:.4f} s" + (f" after {start:g} s" if start else ""),
            allowed=f"{1 / FRAMES_PER_SECOND:g} s or more",
        )
    return rest


def normalize_loudness(wave: NDArray[np.floating], lufs: float = SPEECH_LOUDNESS) -> NDArray[np.float64]:
    """Scale a 16 kHz mono recording to an integrated loudness (ITU-R BS.1770-4, gated).

    A recording shorter than the meter's block of 0.4 s is measured on a repeated copy. A recording below the
    meter's gate (−70 LUFS), such as silence, is returned unchanged: it contains no speech.
    """
    samples = np.asarray(wave, dtype=np.float64)
    return samples * loudness_gain(samples, SAMPLE_RATE, lufs)


def loudness_gain(samples: NDArray[np.floating], rate: int, lufs: float) -> float:
    """The factor that brings [samples] or [samples, channels] to a loudness, as `normalize_loudness` does."""
    import pyloudnorm  # imports scipy, which takes a second; loading the networks imports it earlier

    meter = pyloudnorm.Meter(rate)
    block = math.ceil(meter.block_size * rate)
    if len(samples) < block:
        samples = np.resize(samples, (block, *samples.shape[1:]))
    loudness = meter.integrated_loudness(np.asarray(samples, dtype=np.float64))
    return float(10 ** ((lufs - loudness) / 20)) if math.isfinite(loudness) else 1.0


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


def limited(total: Wave, parts: Sequence[Wave]) -> Wave:
    """A sum of waves, scaled down if it clips but none of its parts does."""
    loudest_part = max([1.0, *(np.abs(part).max(initial=0) for part in parts)])
    return total * np.float32(min(1.0, loudest_part / max(np.abs(total).max(initial=0), 1e-9)))


def _pad(wave: Wave, before: int, after: int) -> Wave:
    return np.pad(wave, [(0, 0)] * (wave.ndim - 1) + [(before, after)])
