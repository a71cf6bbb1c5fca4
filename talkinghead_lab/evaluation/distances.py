"""FID and KID of a system's frames from the real ones, clip by clip, so that large sets fit into memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from talkinghead_lab.evaluation.scoring import Score, stored_inception
from talkinghead_lab.evaluation.statistics import FrameSets, Interval, StreamedMoments
from talkinghead_lab.models.judges.inception import CHANNELS

KERNEL_FRAMES = 10_000  # of a set that is larger, KID takes as many: its time grows with their square


@dataclass(frozen=True)
class InceptionDistances:
    """How far a system's frames lie from the real ones.

    Args:
        fid: without an interval: no resampling of people corrects the bias of small sets.
        kid: with the jackknife's interval over people.
        frames: number of frames in the smaller set.
    """

    fid: Interval
    kid: Interval
    frames: int


def inception_distances(
    real: Sequence[Score], real_folder: Path, made: Sequence[Score], made_folder: Path
) -> InceptionDistances | None:
    """Distances of a system's frames from the real ones, or of one half of the real people from the rest.

    Args:
        real, made: scores of the real videos and of the system's; the same ones to compare two halves.
        real_folder, made_folder: where they are stored.

    Returns:
        None if clips were scored without Inception's weights, or a set has fewer than two frames.
    """
    for scores, folder in ((real, real_folder), (made, made_folder)):
        if any(score.failure is None and not len(stored_inception(folder, score.clip)) for score in scores):
            return None
    people = sorted({score.identity for score in real})
    halves = {person: number % 2 for number, person in enumerate(people)}
    split = real_folder == made_folder

    first, second = (
        _read([score for score in scores if not split or halves[score.identity] == half], folder)
        for half, (scores, folder) in enumerate(((real, real_folder), (made, made_folder)))
    )
    smaller = min(first.moments.count, second.moments.count)
    if smaller < 2:
        return None
    none = np.zeros((0, CHANNELS))
    sets = FrameSets(*([side.frames.get(person, none) for person in people] for side in (first, second)))
    fid = Interval(first.moments.frechet_distance(second.moments), None, None, len(people))
    return InceptionDistances(fid, sets.kernel_distance(), smaller)


@dataclass(frozen=True)
class _Set:
    """All frames' moments, and for KID the features of some, by person."""

    moments: StreamedMoments
    frames: dict[str, NDArray[np.float64]]


def _read(scores: Sequence[Score], folder: Path) -> _Set:
    moments, kept = StreamedMoments(CHANNELS), dict[str, list[NDArray[np.float64]]]()
    count = sum(len(features) for _, features in _features(scores, folder))
    step = max(1, -(-count // KERNEL_FRAMES))
    for score, features in _features(scores, folder):
        moments.add(features)
        kept.setdefault(score.identity, []).append(features[::step].astype(np.float64))
    return _Set(moments, {person: np.concatenate(parts) for person, parts in kept.items()})


def _features(scores: Sequence[Score], folder: Path) -> Iterator[tuple[Score, NDArray[np.float32]]]:
    for score in scores:
        features = stored_inception(folder, score.clip)
        if len(features):
            yield score, features
