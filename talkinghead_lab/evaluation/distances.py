"""Distances of a system's frames and windows from the real ones, in memory that does not grow with sets."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from talkinghead_lab.evaluation.scoring import Score
from talkinghead_lab.evaluation.set_features import FeatureKind, Features, stored_features
from talkinghead_lab.evaluation.statistics import FrameSets, Interval, StreamedMoments

KERNEL_SAMPLES = 10_000  # of a set that is larger, the kernel takes as many: its time grows with their square


@dataclass(frozen=True)
class SetDistances:
    """How far a system's features of one kind lie from the real ones.

    Args:
        frechet: Fréchet distance; of networks whose weights users supply, without an interval, as no
            resampling of people corrects the bias of small sets.
        kernel: kernel distance, with the jackknife's interval over people; NaN if a set has one person.
        samples: number in the smaller set.
    """

    frechet: Interval
    kernel: Interval
    samples: int


def set_distances(
    kind: FeatureKind, real: Sequence[Score], real_folder: Path, made: Sequence[Score], made_folder: Path
) -> SetDistances | None:
    """Distances of a system's features from the real ones, or of one half of the real people from the rest.

    Args:
        kind: of the features.
        real, made: scores of the real videos and of the system's; the same ones to compare two halves.
        real_folder, made_folder: where they are stored.

    Returns:
        None if a clip was scored without this kind, or a set has fewer than two features.
    """
    people = sorted({score.identity for score in real})
    halves = {person: number % 2 for number, person in enumerate(people)}
    split = real_folder == made_folder
    sets = []
    for half, (scores, folder) in enumerate(((real, real_folder), (made, made_folder))):
        chosen = [score for score in scores if not split or halves[score.identity] == half]
        read = _read(kind, chosen, folder)
        if read is None:
            return None
        sets.append(read)
    first, second = sets
    smaller = min(first.moments.count, second.moments.count)
    if smaller < 2:
        return None
    none = np.zeros((0, kind.channels))
    by_person = FrameSets(*([side.samples.get(person, none) for person in people] for side in sets))
    if kind.weights is None:
        frechet = by_person.frechet_distance()
    else:
        frechet = Interval(first.moments.frechet_distance(second.moments), None, None, len(people))
    some = FrameSets(_thinned(by_person.first), _thinned(by_person.second))
    return SetDistances(frechet, some.kernel_distance(), smaller)


def _thinned(groups: Sequence[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
    """At most KERNEL_SAMPLES of all features, evenly spaced."""
    step, before, found = max(1, -(-sum(map(len, groups)) // KERNEL_SAMPLES)), 0, []
    for group in groups:
        found.append(group[-before % step :: step])
        before += len(group)
    return found


@dataclass(frozen=True)
class _Set:
    """The moments of all features, and for the kernel some of them, by person."""

    moments: StreamedMoments
    samples: dict[str, NDArray[np.float64]]


def _read(kind: FeatureKind, scores: Sequence[Score], folder: Path) -> _Set | None:
    """None if a clip that did not fail lacks this kind."""
    moments, kept, count = StreamedMoments(kind.channels), dict[str, list[NDArray[np.float64]]](), 0
    for _, features in _features(kind, scores, folder):
        if features is None:
            return None
        count += len(features)
    step = max(1, -(-count // KERNEL_SAMPLES)) if kind.weights else 1
    for person, features in _features(kind, scores, folder):
        assert features is not None
        kept.setdefault(person, []).append(features[-moments.count % step :: step].astype(np.float64))
        moments.add(features)
    return _Set(moments, {person: np.concatenate(parts) for person, parts in kept.items()})


def _features(
    kind: FeatureKind, scores: Sequence[Score], folder: Path
) -> Iterator[tuple[str, Features | None]]:
    for score in scores:
        if score.failure is None:
            yield score.identity, stored_features(folder, score.clip, kind)
