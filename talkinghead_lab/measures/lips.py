"""How good a video is, measured on its pixels and its sound, and what it cost.

`measure_video` takes every measure that a video allows; of the others it says why not. The readers see the
drawn presenter of the embedded checkpoint: a small network, trained on renderings whose truth is known, reads
the opening of the mouth and the pose of the head from single frames. Mouths of photographed people are read
where the user has the models (`faces`, `sync_distance`). Units and directions are in `measures.KINDS`.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from talkinghead_lab.errors import TalkingHeadError
from talkinghead_lab.foundation import digests
from talkinghead_lab.foundation.latent_grid import FRAMES_PER_SECOND
from talkinghead_lab.foundation.paths import local_file
from talkinghead_lab.measures import photographed_faces, syncnet_scores
from talkinghead_lab.measures.drawn_faces import mouth_truth, read_openings
from talkinghead_lab.measures.measure import Measure
from talkinghead_lab.media import audio
from talkinghead_lab.params import GenerationParams

LONGEST_READ = 2000  # frames whose mouths are read; longer videos are read at their start
LARGEST_LAG = 3  # frames; beyond an eighth of a second, lips and sound are seen to part
Opening = NDArray[np.float64] | None


def lip_measures(path: str | Path, params: GenerationParams) -> list[Measure]:
    """Every measure of how lips and sound go together.

    The drawn presenter's mouth is read by this package's own reader, a photographed one's by `faces`.
    """
    seen: photographed_faces.Faces | None = None
    no_face = "two people speak, and the readers see one"
    if params.speakers == 1:
        try:
            seen = photographed_faces.see_faces(path, LONGEST_READ)
        except TalkingHeadError as error:
            no_face = f"no reader of photographed faces: {error}"
    drawn = params.checkpoint == "embedded" and params.speakers == 1
    opening: Opening = None
    why: str | None = no_face
    if drawn:
        opening, why = read_openings(path, LONGEST_READ), None
    elif seen is not None:
        opening, why = seen.opening, None
    return [
        lip_correlation(opening, params, why),
        lip_error(
            opening if drawn else None, params, why or "only the drawn mouth's opening has a true size"
        ),
        mouth_follows_sound(opening, path, why),
        *_syncnet(path, seen, no_face),
    ]


def lip_correlation(opening: Opening, params: GenerationParams, why_not: str | None = None) -> Measure:
    """How the mouth follows the truth: Pearson's correlation of the mouth's opening in each frame and of what
    the shipped recordings' synthesiser said (unit 1, higher is better). This package's own measure.
    """
    wanted, why_not = _truth(opening, params, why_not)
    if opening is None or wanted is None:
        return Measure.of("lip_correlation", None, why_not)
    if min(opening[: len(wanted)].std(), wanted.std()) < 1e-6:
        return Measure.of("lip_correlation", None, "the mouth does not move")
    return Measure.of("lip_correlation", float(np.corrcoef(opening[: len(wanted)], wanted)[0, 1]))


def lip_error(opening: Opening, params: GenerationParams, why_not: str | None = None) -> Measure:
    """How far the drawn mouth is from the truth: mean absolute difference of the openings (unit: opening,
    0 shut … 1 wide; lower is better). This package's own measure.
    """
    wanted, why_not = _truth(opening, params, why_not)
    if opening is None or wanted is None:
        return Measure.of("lip_error", None, why_not)
    return Measure.of("lip_error", float(np.abs(opening[: len(wanted)] - wanted).mean()))


def mouth_follows_sound(opening: Opening, path: str | Path, why_not: str | None = None) -> Measure:
    """How the mouth goes with the sound, for any recording: Pearson's correlation of the opening and of the
    loudness under each frame, at the best of the lags of at most 3 frames (unit 1, higher is better; after
    Chandrasekaran et al. 2009, who find the two correlated in filmed speech). Loudness tells nothing of a
    mouth's shape, so this finds lips that do not go with the sound rather than ranking good ones.
    """
    if opening is None:
        return Measure.of("mouth_follows_sound", None, why_not)
    wave = audio.read_soundtrack(path).mean(axis=0)
    value = correlation_with_loudness(opening, wave, audio.SOUNDTRACK_RATE)
    still = "mouth or loudness do not change" if value is None else None
    return Measure.of("mouth_follows_sound", value, still)


def correlation_with_loudness(opening: Opening, wave: NDArray[np.float32], rate: int) -> float | None:
    """Pearson's correlation of a mouth's opening [F] and the loudness of a mono sound, at the best lag; None
    where one of them does not change."""
    if opening is None:
        return None
    samples = rate // FRAMES_PER_SECOND
    padded = np.pad(wave, (0, max(0, len(opening) * samples - len(wave))))[: len(opening) * samples]
    loudness = np.sqrt(np.square(padded.reshape(-1, samples), dtype=np.float64).mean(axis=1))
    lags = range(-LARGEST_LAG, LARGEST_LAG + 1)
    found = [_correlation(opening[max(lag, 0) :], loudness[max(-lag, 0) :]) for lag in lags]
    return max((value for value in found if value is not None), default=None)


def _correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float | None:
    length = min(len(first), len(second))
    first, second = first[:length], second[:length]
    if length < 2 or min(first.std(), second.std()) < 1e-6:
        return None
    return float(np.corrcoef(first, second)[0, 1])


def _syncnet(path: str | Path, seen: photographed_faces.Faces | None, no_face: str) -> list[Measure]:
    """LSE-C and LSE-D; their source is in `sync_distance`."""
    scores = None
    try:
        scores = syncnet_scores.sync_scores(path, seen) if seen is not None else None
    except TalkingHeadError as error:
        no_face = str(error)
    if scores is None:
        return [Measure.of(name, None, no_face) for name in ("lse_c", "lse_d")]
    return [Measure.of("lse_c", scores.confidence), Measure.of("lse_d", scores.distance)]


def _truth(
    opening: Opening, params: GenerationParams, why_not: str | None
) -> tuple[NDArray[np.float64] | None, str | None]:
    """(how the mouth should be open, no longer than what was read; why that is not known)."""
    if opening is None:
        return None, why_not
    truth = mouth_truth().get(digests.known_sha256(local_file(params.audio_path)))
    if truth is None:
        return None, "how the mouth should move is known only for the recordings that ship with the package"
    return np.asarray(truth[: len(opening)]), None
