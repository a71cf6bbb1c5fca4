"""How well lips and sound go together."""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation

from talkinghead_lab.foundation.latent_grid import FRAMES_PER_SECOND
from talkinghead_lab.measures.measure import Measure
from talkinghead_lab.media import audio
from talkinghead_lab.media.resampled_track import to_mono

LARGEST_LAG = 3  # frames; beyond an eighth of a second, viewers notice that lips and sound part

SILENCE = 0.03  # of the loudest frame's level, 30 dB below it
AROUND_SPEECH = 5  # frames, 0.2 s: lips part before a word and close after it

Openings = NDArray[np.float64]
NO_TRUTH = "the true opening of the mouth is known only for the recordings that ship with the package"


def lip_correlation(openings: Openings, truth: Openings | None) -> Measure:
    """Pearson's correlation of the mouth's opening with the truth, frame by frame (unit 1, higher is better).

    The truth is what the synthesiser of the shipped recordings spoke. This package's own measure.
    """
    if truth is None:
        return Measure.of("lip_correlation", None, NO_TRUTH)
    value = _correlation(openings, truth)
    return Measure.of("lip_correlation", value, "the mouth does not move" if value is None else None)


def lip_error(openings: Openings, truth: Openings | None) -> Measure:
    """Mean absolute difference of the cartoon mouth's opening from the truth (lower is better).

    Unit: opening, 0 shut … 1 wide. This package's own measure.
    """
    if truth is None:
        return Measure.of("lip_error", None, NO_TRUTH)
    length = min(len(openings), len(truth))
    return Measure.of("lip_error", float(np.abs(openings[:length] - truth[:length]).mean()))


def mouth_follows_sound(openings: Openings, soundtrack: audio.Wave) -> Measure:
    """Pearson's correlation of the mouth's opening with the loudness (unit 1, higher is better).

    Works for any recording. Takes the best of the lags of up to 3 frames. After Chandrasekaran et al. 2009,
    who find the two correlated in filmed speech. Loudness says nothing about the shape of a mouth, so this
    detects lips that do not follow the sound; it does not rank good ones.
    """
    value = correlation_with_loudness(
        openings, to_mono(soundtrack, audio.SOUNDTRACK_RATE), audio.SOUNDTRACK_RATE
    )
    reason = "the mouth does not move, or the loudness does not change" if value is None else None
    return Measure.of("mouth_follows_sound", value, reason)


def silent_lip_motion(openings: Openings, soundtrack: audio.Wave) -> Measure:
    """Mean absolute change of the mouth's opening from frame to frame while nobody speaks (lower is better).

    Silent are frames 30 dB below the loudest one, at least 0.2 s away from others. After THEval's stability
    of silent lips (arXiv 2511.04520), which takes another reader of lips. Unit: opening, as its reader's.
    """
    silent = silent_frames(to_mono(soundtrack, audio.SOUNDTRACK_RATE), audio.SOUNDTRACK_RATE, len(openings))
    changes = np.abs(np.diff(openings))[silent[1:] & silent[:-1]]
    value = float(changes.mean()) if len(changes) else None
    return Measure.of("silent_lip_motion", value, "the sound has no silence" if value is None else None)


def silent_frames(wave: NDArray[np.float32], rate: int, frames: int) -> NDArray[np.bool_]:
    """Frames 30 dB below the loudest one of a mono sound, at least 0.2 s away from others: [frames]."""
    level = _level(wave, rate, frames)
    heard = level > SILENCE * level.max(initial=0.0)
    spoken = binary_dilation(heard, np.ones(2 * AROUND_SPEECH + 1)) if heard.any() else heard
    return ~np.asarray(spoken, dtype=bool)


def correlation_with_loudness(openings: Openings, wave: NDArray[np.float32], rate: int) -> float | None:
    """Correlate a mouth's opening [F] with the loudness of a mono sound, at the best lag.

    None where one of them does not change.
    """
    loudness = _level(wave, rate, len(openings))
    lags = range(-LARGEST_LAG, LARGEST_LAG + 1)
    found = [_correlation(openings[max(lag, 0) :], loudness[max(-lag, 0) :]) for lag in lags]
    return max((value for value in found if value is not None), default=None)


def _level(wave: NDArray[np.float32], rate: int, frames: int) -> NDArray[np.float64]:
    """Root mean square of a mono sound in each video frame, [F]."""
    samples = rate // FRAMES_PER_SECOND
    padded = np.pad(wave, (0, max(0, frames * samples - len(wave))))[: frames * samples]
    level: NDArray[np.float64] = np.sqrt(
        np.square(padded.reshape(-1, samples), dtype=np.float64).mean(axis=1)
    )
    return level


def _correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float | None:
    length = min(len(first), len(second))
    first, second = first[:length], second[:length]
    if length < 2 or min(first.std(), second.std()) < 1e-6:
        return None
    return float(np.corrcoef(first, second)[0, 1])
