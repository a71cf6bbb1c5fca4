"""Intervals, tests and distances between sets, for clips of people who appear several times.

Clips of one person resemble each other, so people are resampled, not clips.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]

CONFIDENCE_LEVEL = 0.95
RESAMPLES = 2000
FEWEST_IDENTITIES = 10  # below, no interval is given
FEW_IDENTITIES = 50  # below, the Fréchet distance is visibly biased upwards


@dataclass(frozen=True)
class Interval:
    """An estimate with the ends of its 95 % interval, which are None if too few people are seen."""

    value: float
    low: float | None
    high: float | None
    identities: int


@dataclass(frozen=True)
class Difference:
    """How far a system lies from another on the same clips; `p` is the chance to differ as much by luck."""

    interval: Interval
    p: float


def clip_mean(values: Floats, identities: Sequence[str]) -> Interval:
    """Mean over clips, with an interval by the symmetric studentised bootstrap over people (Hall 1988).

    Percentile intervals, corrected for bias and skew or not, are too narrow for 40 people.

    Args:
        values: one for each clip.
        identities: who is seen in each.
    """
    sums, counts = _by_identity(values, identities)
    people = len(sums)
    drawn = np.ones((1, people))
    mean, error = (float(found[0]) for found in _means_with_errors(drawn, sums, counts))
    if people < FEWEST_IDENTITIES:
        return Interval(mean, None, None, people)
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(people, np.full(people, 1 / people), RESAMPLES).astype(float)
    means, errors = _means_with_errors(drawn, sums, counts)
    varied = errors > 1e-9 * error  # draws of people with equal values have no error to divide by
    if error == 0 or not varied.any():
        return Interval(mean, mean, mean, people)
    distances = np.abs(means - mean)[varied] / errors[varied]
    half = float(np.quantile(distances, CONFIDENCE_LEVEL)) * error
    return Interval(mean, mean - half, mean + half, people)


def _means_with_errors(drawn: Floats, sums: Floats, counts: Floats) -> tuple[Floats, Floats]:
    """Mean over clips and its standard error, for each row of how often every person was drawn."""
    people, size = len(sums), drawn @ counts
    means = drawn @ sums / size
    residuals = np.square(sums - means[:, None] * counts)
    errors = np.sqrt(people / max(1, people - 1) * (drawn * residuals).sum(1)) / size
    return means, errors


def paired_difference(values: Floats, base: Floats, identities: Sequence[str]) -> Difference:
    """Mean difference from a base on the same clips, and how likely it is by luck.

    `p` is that of a permutation test, which swaps both systems for all clips of a person at once; 1 for one
    person.
    """
    differences = values - base
    sums, _ = _by_identity(differences, identities)
    if len(sums) < 2 or not sums.any():
        return Difference(clip_mean(differences, identities), 1.0)
    test = stats.permutation_test(
        (sums, np.zeros_like(sums)),
        lambda x, y, axis: (x - y).sum(axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        rng=np.random.default_rng(0),
    )
    return Difference(clip_mean(differences, identities), float(test.pvalue))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust the p values of several comparisons (Holm 1979): below 0.05, one false finding in 20 tables."""
    order = np.argsort(p_values)
    steps = np.asarray(p_values)[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.minimum(np.maximum.accumulate(steps), 1.0)
    return [float(value) for value in adjusted[np.argsort(order)]]


@dataclass(frozen=True)
class FrameSets:
    """Features of two sets of frames, by person.

    Args:
        first, second: for each person an array [frames, channels]; empty where a set lacks the person.
    """

    first: Sequence[Floats]
    second: Sequence[Floats]

    def frechet_distance(self) -> Interval:
        """Squared Fréchet distance of two normal distributions with the sets' means and covariances.

        The formula of FID (Heusel et al. 2017). It is biased upwards by small sets, the more, the fewer
        people; a distance that is not, is `kernel_distance`. The interval is the jackknife's over people and
        leaves the bias out.
        """
        one, other = _Moments.of(self.first), _Moments.of(self.second)
        value = _frechet(one.total(), other.total())
        people = len(self.first)
        if people < FEWEST_IDENTITIES:  # a set may be left with nobody
            return Interval(value, None, None, people)
        return _jackknife(value, [_frechet(one.total(i), other.total(i)) for i in range(people)])

    def kernel_distance(self) -> Interval:
        """Squared maximum mean discrepancy under the kernel (x·y / channels + 1)³, without bias.

        The formula of KID (Bińkowski et al. 2018), over all pairs of frames of different people: frames of
        one person are not independent. It may be negative by chance. The interval is the jackknife's.
        """
        pairs = ((self.first, self.first), (self.second, self.second), (self.first, self.second))
        within, within_other, between = (_mean_kernels(one, other) for one, other in pairs)
        found = within + within_other - 2 * between
        return _jackknife(float(found[0]), found[1:])


@dataclass(frozen=True)
class _Moments:
    """Number, sum and sum of outer products of each person's features."""

    counts: Floats
    sums: Floats
    products: Floats

    @classmethod
    def of(cls, groups: Sequence[Floats]) -> "_Moments":
        channels = max(group.shape[1] for group in groups)
        groups = [group.reshape(-1, channels) for group in groups]
        return cls(
            np.array([len(group) for group in groups], float),
            np.stack([group.sum(0) for group in groups]),
            np.stack([group.T @ group for group in groups]),
        )

    def total(self, without: int | None = None) -> tuple[Floats, Floats]:
        """Mean and covariance of all people's features, or of all but one's."""
        parts = (self.counts, self.sums, self.products)
        count, summed, product = (part.sum(0) - (0 if without is None else part[without]) for part in parts)
        mean = summed / count
        return mean, (product - count * np.outer(mean, mean)) / (count - 1)


class StreamedMoments:
    """Mean and covariance of features that come in parts, in memory that does not grow with their number."""

    def __init__(self, channels: int) -> None:
        self.count = 0
        self._mean, self._scatter = np.zeros(channels), np.zeros((channels, channels))

    def add(self, features: NDArray[np.floating]) -> None:
        """Add features [N, channels] (Chan, Golub & LeVeque 1979)."""
        if not len(features):
            return
        features = features.astype(np.float64)
        count, mean = len(features), features.mean(0)
        away, gap = features - mean, mean - self._mean
        total = self.count + count
        self._scatter += away.T @ away + np.outer(gap, gap) * (self.count * count / total)
        self._mean += gap * (count / total)
        self.count = total

    def frechet_distance(self, other: "StreamedMoments") -> float:
        """Squared Fréchet distance, the formula of FID. Each set needs two features or more."""
        moments = ((each._mean, each._scatter / (each.count - 1)) for each in (self, other))
        return _frechet(*moments)


def _frechet(one: tuple[Floats, Floats], other: tuple[Floats, Floats]) -> float:
    (mean, covariance), (other_mean, other_covariance) = one, other
    values, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ other_covariance @ root).clip(0)).sum()
    gap = np.square(mean - other_mean).sum()
    return float(gap + np.trace(covariance) + np.trace(other_covariance) - 2 * cross)


def _kernel_sums(first: Sequence[Floats], second: Sequence[Floats]) -> tuple[Floats, Floats]:
    """Sum of the kernel, and number of pairs, for each two people: [people, people]."""
    channels = max(group.shape[1] for group in first)
    sizes = [np.array([len(group) for group in groups], float) for groups in (first, second)]
    one, other = (np.concatenate([g.reshape(-1, channels) for g in groups]) for groups in (first, second))
    owners = [np.repeat(np.arange(len(counts)), counts.astype(int)) for counts in sizes]
    sums = np.zeros((len(first), len(second)))
    for start in range(0, len(one), 1024):  # rows at once, so that large sets fit into memory
        rows = slice(start, start + 1024)
        kernel = (one[rows] @ other.T / channels + 1) ** 3
        columns = np.stack([np.bincount(owners[1], row, len(second)) for row in kernel])
        np.add.at(sums, owners[0][rows], columns)
    return sums, np.outer(*sizes)


def _mean_kernels(first: Sequence[Floats], second: Sequence[Floats]) -> Floats:
    """Mean kernel over pairs of different people: of all people, then without each one of them.

    NaN where there is no such pair.
    """
    totals = []
    for matrix in _kernel_sums(first, second):
        apart = matrix - np.diag(np.diag(matrix))
        totals.append(apart.sum() - np.append(0.0, apart.sum(0) + apart.sum(1)))
    with np.errstate(invalid="ignore"):
        means: Floats = totals[0] / totals[1]
    return means


def _jackknife(value: float, without: Sequence[float] | Floats) -> Interval:
    count = len(without)
    if count < FEWEST_IDENTITIES:
        return Interval(value, None, None, count)
    error = np.sqrt((count - 1) * np.var(without))
    half = float(stats.t.ppf((1 + CONFIDENCE_LEVEL) / 2, count - 1) * error)
    return Interval(value, value - half, value + half, count)


def _by_identity(values: Floats, identities: Sequence[str]) -> tuple[Floats, Floats]:
    """Sum and number of each person's values."""
    _, owners = np.unique(np.asarray(identities), return_inverse=True)
    return np.bincount(owners, values).astype(float), np.bincount(owners).astype(float)
