"""Statistics of a sweep's table with confidence intervals: means and paired differences.

Runs with the same seed, portrait and recording form pairs. A paired difference cancels how hard a portrait or
seed is, so an effect shows with far fewer runs than in a comparison of two means.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import polars
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from talkinghead_lab.errors import InvalidRequest, nearest_name
from talkinghead_lab.measures.measure import CORRELATIONS

CONFIDENCE_LEVEL = 0.95
PAIRED_BY = ("seed", "portrait", "recording")
RESAMPLES = 9999

FEWEST_VALUES = 3  # two give an interval of 12 times their distance

Interval = Literal["t", "fisher", "bootstrap", "two-stage"]


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % confidence interval, which is None for fewer than three values.

    `interval` is the method. `t`: Student's t, exact for normally distributed values. `fisher`: the same of
    Fisher's z, for means of correlations, whose intervals it keeps between −1 and 1. `bootstrap`: 9999
    resamples with a fixed seed, corrected for bias and skew (BCa, Efron 1987); it assumes no distribution,
    but is too narrow for fewer than about ten values. `two-stage`: of an adaptive sweep; see `FirstStage`.
    """

    mean: float | None
    low: float | None
    high: float | None
    count: int
    interval: Interval = "t"

    @classmethod
    def of(cls, values: ArrayLike, interval: Interval = "t") -> "Estimate":
        """Estimate from independent values."""
        numbers = np.asarray(values, dtype=float)
        if not len(numbers):
            return cls(None, None, None, 0, interval)
        mean = float(numbers.mean())
        if len(numbers) < FEWEST_VALUES:
            return cls(mean, None, None, len(numbers), interval)
        low, high = _interval_ends(numbers, mean, interval)
        return cls(mean, low, high, len(numbers), interval)


def _interval_ends(numbers: NDArray[np.float64], mean: float, interval: Interval) -> tuple[float, float]:
    if np.ptp(numbers) == 0:  # the bootstrap of equal values is undefined
        return mean, mean
    half_width = stats.t.ppf((1 + CONFIDENCE_LEVEL) / 2, len(numbers) - 1) * stats.sem(numbers)
    if interval == "t":
        return float(mean - half_width), float(mean + half_width)
    if interval == "fisher":  # the standard error of z follows from the mean's, as dz/dr = 1 / (1 − r²)
        half_width /= 1 - mean**2
        return float(np.tanh(np.arctanh(mean) - half_width)), float(np.tanh(np.arctanh(mean) + half_width))
    generator = np.random.default_rng(0)
    found = stats.bootstrap(
        (numbers,), np.mean, confidence_level=CONFIDENCE_LEVEL, n_resamples=RESAMPLES, rng=generator
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def means(
    table: polars.DataFrame, axes: Sequence[str], measure: str, interval: Interval = "t"
) -> polars.DataFrame:
    """Mean, ends of the 95 % interval, count and method of the interval for each combination of the axes.

    Where Student's t is asked for, means of correlations get intervals by Fisher's z.

    Raises:
        InvalidRequest: an axis or the measure is not a column of the table.
    """
    if interval == "t" and measure in CORRELATIONS:
        interval = "fisher"
    rows = []
    for values, group in _finished(table, axes, measure).group_by(list(axes), maintain_order=True):
        estimate = Estimate.of(group[measure], interval)
        rows.append(dict(zip(axes, values, strict=True)) | vars(estimate))
    return polars.DataFrame(rows, infer_schema_length=None)


def paired_differences(
    table: polars.DataFrame,
    axes: Sequence[str],
    measure: str,
    base: Mapping[str, Any],
    interval: Interval = "t",
    first_stage: Collection[int] = (),
) -> polars.DataFrame:
    """Paired difference of a measure from the base, for each combination of the axes.

    Args:
        table: from `sweep.results`.
        axes: all axes of the sweep.
        measure: the column to compare.
        base: a value for each axis; all other combinations are compared with this one.
        interval: method of the intervals; see `Estimate`.
        first_stage: `Sweep.first_stage`; if there is one, intervals are by `two-stage`.

    Returns:
        A row per combination except the base: mean difference, ends of the 95 % interval, number of pairs,
        method of the interval, and `effect`, Cohen's d_z: the mean of the differences divided by their
        standard deviation (Lakens 2013), null if they do not vary. Runs without a partner are ignored.

    Raises:
        InvalidRequest: a column does not exist, or no run at the base is finished.
    """
    rows = []
    for values, pairs in compared(table, axes, measure, base):
        pairs = whole_seeds(pairs) if first_stage else pairs
        differences = pairs["difference"].to_numpy()
        spread = float(np.std(differences, ddof=1)) if len(differences) > 1 else 0.0
        effect = float(differences.mean()) / spread if spread > 0 else None
        estimate = _two_stage(pairs, first_stage) if first_stage else Estimate.of(differences, interval)
        rows.append(dict(zip(axes, values, strict=True)) | vars(estimate) | {"effect": effect})
    return polars.DataFrame(rows, infer_schema_length=None)


def _two_stage(pairs: polars.DataFrame, first_stage: Collection[int]) -> Estimate:
    """The interval of an adaptive sweep from the pairs of whole seeds."""
    found, first = by_seed(pairs), by_seed(pairs.filter(polars.col("seed").is_in(list(first_stage))))
    mean = float(found.mean()) if len(found) else None
    if mean is None or len(first) < FEWEST_VALUES:
        return Estimate(mean, None, None, len(pairs), "two-stage")
    low, high = FirstStage.of(first).ends(len(found))
    return Estimate(mean, float(mean + low), float(mean + high), len(pairs), "two-stage")


@dataclass(frozen=True)
class FirstStage:
    """What the first stage of an adaptive sweep tells of comparisons: all of their intervals but the means.

    Args:
        spread: standard deviation of the differences of each comparison.
        skew: their third moment about the mean, divided by the 3/2 power of the second.
        count: number of their differences, at least two.
    """

    spread: NDArray[np.float64]
    skew: NDArray[np.float64]
    count: NDArray[np.int64]

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> Self:
        """The first stage with these differences: [..., count]."""
        deviations = values - values.mean(axis=-1, keepdims=True)
        variance = (deviations**2).mean(axis=-1)
        third = (deviations**3).mean(axis=-1)
        skew = np.divide(third, variance**1.5, out=np.zeros_like(third), where=variance > 0)
        return cls(np.std(values, axis=-1, ddof=1), skew, np.full(skew.shape, values.shape[-1]))

    def __getitem__(self, which: Any) -> Self:
        """Some of the comparisons."""
        return type(self)(self.spread[which], self.skew[which], self.count[which])

    def __setitem__(self, which: Any, comparisons: Self) -> None:
        """Replace some of the comparisons."""
        self.spread[which] = comparisons.spread
        self.skew[which] = comparisons.skew
        self.count[which] = comparisons.count

    def ends(self, counts: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """How far from the mean of `counts` values the ends of its 95 % interval are: below it, and above.

        Student's t, corrected for skew by Hall's cubic transformation (1992); without skew it is Student's t.
        """
        root = np.sqrt(np.asarray(counts))
        quantile = special.stdtrit(self.count - 1, (1 + CONFIDENCE_LEVEL) / 2)
        skew = self.skew / root

        def end(t: NDArray[np.float64]) -> NDArray[np.float64]:
            shifted = t - skew / 6
            cube_root = np.cbrt(1 + skew * shifted)
            # Hall's 3 (∛(1 + x) − 1) / skew, written so that the skew may be zero
            found: NDArray[np.float64] = -3 * self.spread / root * shifted / (cube_root**2 + cube_root + 1)
            return found

        return end(quantile), end(-quantile)

    def half_width(self, counts: ArrayLike) -> NDArray[np.float64]:
        """Half the width of the interval of the mean of `counts` values."""
        low, high = self.ends(counts)
        return (high - low) / 2


def whole_seeds(pairs: polars.DataFrame) -> polars.DataFrame:
    """The pairs, from `compared`, of the seeds that have all portraits and recordings."""
    counts = pairs.with_columns(polars.len().over("seed").alias("repeats"))
    return counts.filter(polars.col("repeats") == polars.col("repeats").max()).drop("repeats")


def by_seed(pairs: polars.DataFrame) -> NDArray[np.float64]:
    """The mean difference of each seed: [seeds]."""
    found: NDArray[np.float64] = (
        pairs.group_by("seed", maintain_order=True).agg(polars.col("difference").mean())["difference"]
    ).to_numpy()
    return found


def compared(
    table: polars.DataFrame, axes: Sequence[str], measure: str, base: Mapping[str, Any]
) -> Iterator[tuple[tuple[Any, ...], polars.DataFrame]]:
    """The pairs of each combination but the base, with the column `difference`.

    Arguments and errors are those of `paired_differences`.
    """
    finished = _finished(table, axes, measure)
    at_base = finished
    for axis in axes:
        at_base = at_base.filter(polars.col(axis).eq_missing(base[axis]))
    if at_base.is_empty():
        raise InvalidRequest("no finished run at the base", received=dict(base))
    keys = [key for key in PAIRED_BY if key in table.columns]
    reference = at_base.select(*keys, polars.col(measure).alias("reference"))
    for values, group in finished.group_by(list(axes), maintain_order=True):
        if values != tuple(base[axis] for axis in axes):
            pairs = group.join(reference, on=keys, nulls_equal=True)
            yield values, pairs.with_columns(difference=polars.col(measure) - polars.col("reference"))


def pareto_front(
    table: polars.DataFrame, quality: str, cost: str, higher_is_better: bool = True
) -> polars.DataFrame:
    """The rows that no other row beats in both quality and cost, sorted by cost."""
    ordered = table.drop_nulls([quality, cost]).sort(cost, quality, descending=[False, higher_is_better])
    sign = 1 if higher_is_better else -1
    best, kept = -np.inf, []
    for number, value in enumerate(ordered[quality]):
        if sign * value > best:
            best = sign * value
            kept.append(number)
    return ordered[kept]


def _finished(table: polars.DataFrame, axes: Sequence[str], measure: str) -> polars.DataFrame:
    for name in (*axes, measure):
        if name not in table.columns:
            raise InvalidRequest("no such column", received=name, remedy=nearest_name(name, table.columns))
    return table.filter(polars.col("state") == "finished").drop_nulls(measure)
