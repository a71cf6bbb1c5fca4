"""The seeds of each comparison of an adaptive sweep: Stein's two-stage design (1945), corrected for skew.

The listed seeds are the first stage. Its standard deviation and skew alone decide how many seeds are added,
and how far the ends of the interval lie from the mean of all seeds (`FirstStage`). As the mean has no say in
when to stop, looking at it does not make intervals too narrow, however many seeds are added. The same holds
where `max_runs` ends a sweep early: its intervals are wider.

Values are independent by seed: the mean difference over all portraits and recordings, which stay the same.
"""

import logging
from collections.abc import Mapping

import polars

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
    reference = sweep.combinations()[0]
    first = {}
    try:
        base = dict(zip(sweep.axes, reference, strict=True))
        for combination, pairs in compared(table, list(sweep.axes), sweep.target.measure, base):
            values = by_seed(whole_seeds(pairs))
            if len(values) >= FEWEST_VALUES:
                first[combination] = FirstStage.of(values)
    except InvalidRequest:  # no run has the measure
        pass
    counts = dict.fromkeys(sweep.combinations(), len(sweep.seeds))
    return counts | allocated(first, reference, counts, sweep.runs_per_seed, sweep.target)


def allocated(
    first: Mapping[Combination, FirstStage],
    reference: Combination,
    listed: Mapping[Combination, int],
    runs_per_seed: int,
    target: Target,
) -> dict[Combination, int]:
    """Add seeds to the comparison with the widest interval, until all are narrow or the runs are spent.

    Args:
        first: what the listed seeds tell of each comparison.
        reference: has the seeds of every comparison.
        listed: number of listed seeds of each combination.
        runs_per_seed: portraits times recordings.
        target: precision and budget.
    """
    counts = dict(listed)
    left = target.max_runs - runs_per_seed * sum(counts.values())
    widths = {each: stage.half_width(counts[each]) for each, stage in first.items()}
    while widths:
        widest = max(widths, key=lambda each: widths[each])
        cost = runs_per_seed * (1 + (counts[widest] == counts[reference]))
        if widths[widest] <= target.precision or cost > left:
            break
        left -= cost
        counts[widest] += 1
        counts[reference] = max(counts[reference], counts[widest])
        widths[widest] = first[widest].half_width(counts[widest])
    return counts


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
