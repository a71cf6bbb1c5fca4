"""The seeds of each comparison of an adaptive sweep: Stein's two-stage design (1945), corrected for skew.

The listed seeds are the first stage. Its standard deviation and skew alone decide how many seeds are added,
and how far the ends of the interval lie from the mean of all seeds (`FirstStage`). As the mean has no say in
when to stop, looking at it does not make intervals too narrow, however many seeds are added. The same holds
where `max_runs` ends a sweep early: its intervals are wider.

Values are independent by seed: the mean difference over all portraits and recordings, which stay the same.
"""

import logging
from contextlib import suppress

import numpy as np
import polars
from numpy.typing import NDArray

from talkinghead_lab.errors import InvalidRequest
from talkinghead_lab.sweeps.definition import Combination, Sweep, Target
from talkinghead_lab.sweeps.statistics import (
    FEWEST_VALUES,
    FirstStage,
    by_seed,
    compared,
    paired_differences,
    whole_seeds,
)

logger = logging.getLogger(__name__)


def seeds_of_each(sweep: Sweep, table: polars.DataFrame) -> dict[Combination, int]:
    """How many seeds each combination gets, from the table of the finished first stage.

    A comparison with fewer than three whole seeds gets no more.
    """
    assert sweep.target
    listed = len(sweep.seeds)
    reference, *others = sweep.combinations()
    if not others:
        return {reference: listed}
    first = FirstStage(np.zeros(len(others)), np.zeros(len(others)), np.full(len(others), FEWEST_VALUES))
    with suppress(InvalidRequest):  # no run has the measure
        base = dict(zip(sweep.axes, reference, strict=True))
        for combination, pairs in compared(table, list(sweep.axes), sweep.target.measure, base):
            values = by_seed(whole_seeds(pairs))
            if len(values) >= FEWEST_VALUES:
                first[others.index(combination)] = FirstStage.of(values)
    (counts,) = allocated(first[None], listed, sweep.runs_per_seed, sweep.target).tolist()
    return {reference: max(counts), **dict(zip(others, counts, strict=True))}


def allocated(first: FirstStage, listed: int, runs_per_seed: int, target: Target) -> NDArray[np.int64]:
    """Add seeds to the comparison with the widest interval, until all are narrow or the runs are spent.

    The reference has as many seeds as the comparison with the most.

    Args:
        first: what the listed seeds tell of the comparisons of some sweeps: [sweeps, comparisons].
        listed: number of listed seeds.
        runs_per_seed: portraits times recordings.
        target: precision and budget.

    Returns:
        The number of seeds of each comparison: [sweeps, comparisons].
    """
    sweeps, comparisons = first.spread.shape
    counts = np.full((sweeps, comparisons), listed)
    left = np.full(sweeps, target.max_runs - runs_per_seed * listed * (1 + comparisons))
    widths = first.half_width(counts)
    while True:
        each, widest = np.arange(sweeps), widths.argmax(axis=1)
        cost = runs_per_seed * (1 + (counts[each, widest] == counts.max(axis=1)))
        goes_on = (widths[each, widest] > target.precision) & (cost <= left)
        if not goes_on.any():
            return counts
        left[goes_on] -= cost[goes_on]
        which = each[goes_on], widest[goes_on]
        counts[which] += 1
        widths[which] = first[which].half_width(counts[which])


def warn_of_wide_intervals(sweep: Sweep, table: polars.DataFrame) -> None:
    """Log how many comparisons of an adaptive sweep did not reach its precision."""
    if sweep.target is None or "missing" in table["state"]:
        return
    base = {axis: values[0] for axis, values in sweep.values().items()}
    try:
        found = paired_differences(
            table, list(sweep.axes), sweep.target.measure, base, first_stage=sweep.first_stage
        )
    except InvalidRequest as error:
        logger.warning("the sweep compared nothing: %s", error)
        return
    wide = [
        row for row in found.to_dicts()
        if row["low"] is None or row["high"] - row["low"] > 2 * sweep.target.precision * (1 + 1e-9)
    ]  # fmt: skip
    if wide:
        logger.warning(
            "%d of %d differences are not known to ±%g: max_runs is %d, and failed runs do not count",
            len(wide), len(found), sweep.target.precision, sweep.target.max_runs,
        )  # fmt: skip
