"""What a sweep's table says, with its uncertainty: means, and differences within pairs.

Runs that share seed, portrait and recording are pairs. Their differences leave out what makes one portrait or
seed harder than another, so far fewer runs show an effect than a comparison of two means would need.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from talkinghead_lab.errors import InvalidRequest, nearest_name

CONFIDENCE = 0.95
PAIRED_BY = ("seed", "portrait", "recording")
RESAMPLES = 9999

Interval = Literal["t", "bootstrap"]


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % interval; no interval for fewer than two values.

    `interval` says how it was made. `t` is Student's, exact for normal values. `bootstrap` resamples the
    values 9999 times from a fixed seed and corrects for bias and skew (BCa, Efron 1987): it asks for no
    distribution, but is too narrow for fewer than about ten values.
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
        if len(numbers) < 2:
            return cls(mean, None, None, 1, interval)
        low, high = _ends(numbers, mean, interval)
        return cls(mean, low, high, len(numbers), interval)


def _ends(numbers: NDArray[np.float64], mean: float, interval: Interval) -> tuple[float, float]:
    if interval == "t":
        reach = stats.t.ppf((1 + CONFIDENCE) / 2, len(numbers) - 1) * stats.sem(numbers)
        return float(mean - reach), float(mean + reach)
    if np.ptp(numbers) == 0:  # nothing to resample
        return mean, mean
    generator = np.random.default_rng(0)
    found = stats.bootstrap(
        (numbers,), np.mean, confidence_level=CONFIDENCE, n_resamples=RESAMPLES, rng=generator
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def means(
    table: polars.DataFrame, axes: Sequence[str], measure: str, interval: Interval = "t"
) -> polars.DataFrame:
    """For each combination of the axes: mean, low and high end of the 95 % interval, count, kind of interval.

    Raises:
        InvalidRequest: the table has no such column.
    """
    rows = []
    for place, group in _finished(table, axes, measure).group_by(list(axes), maintain_order=True):
        estimate = Estimate.of(group[measure], interval)
        rows.append(dict(zip(axes, place, strict=True)) | vars(estimate))
    return polars.DataFrame(rows, infer_schema_length=None)


def paired_differences(
    table: polars.DataFrame,
    axes: Sequence[str],
    measure: str,
    base: Mapping[str, Any],
    interval: Interval = "t",
) -> polars.DataFrame:
    """For each combination of the axes, how a measure differs from the base within pairs.

    Args:
        table: of `sweeps.results`.
        axes: what varies.
        measure: the column to compare.
        base: the value on each axis that all others are compared with.
        interval: how the intervals are made; see `Estimate`.

    Returns:
        A row per combination but the base: mean difference, 95 % interval, count of pairs, kind of interval,
        and `effect`, Cohen's d_z: the mean difference over the differences' standard deviation (Lakens 2013);
        null where the differences do not vary. Runs without a partner are left out.

    Raises:
        InvalidRequest: no such column, or no run at the base.
    """
    finished = _finished(table, axes, measure)
    at_base = finished
    for axis in axes:
        at_base = at_base.filter(polars.col(axis).eq_missing(base[axis]))
    if at_base.is_empty():
        raise InvalidRequest("no finished run at the base", received=dict(base))
    keys = [key for key in PAIRED_BY if key in table.columns]
    reference = at_base.select(*keys, polars.col(measure).alias("reference"))
    rows = []
    for place, group in finished.group_by(list(axes), maintain_order=True):
        if place == tuple(base[axis] for axis in axes):
            continue
        pairs = group.join(reference, on=keys, nulls_equal=True)
        differences = (pairs[measure] - pairs["reference"]).to_numpy()
        spread = float(np.std(differences, ddof=1)) if len(differences) > 1 else 0.0
        effect = float(differences.mean()) / spread if spread > 0 else None
        estimate = Estimate.of(differences, interval)
        rows.append(dict(zip(axes, place, strict=True)) | vars(estimate) | {"effect": effect})
    return polars.DataFrame(rows, infer_schema_length=None)


def pareto_front(
    table: polars.DataFrame, quality: str, cost: str, higher_is_better: bool = True
) -> polars.DataFrame:
    """The rows that no other row beats in both quality and cost, by rising cost."""
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
