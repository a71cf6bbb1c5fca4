"""Which difference a sweep will be able to see, from the spread of finished runs."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars
from scipy import stats

from talkinghead_lab.errors import InvalidRequest, OutputError
from talkinghead_lab.foundation.paths import project_folder
from talkinghead_lab.sweeps.definition import Sweep, Target
from talkinghead_lab.sweeps.statistics import (
    CONFIDENCE_LEVEL,
    FEWEST_VALUES,
    PAIRED_BY,
    FirstStage,
    by_seed,
    compared,
    whole_seeds,
)
from talkinghead_lab.sweeps.two_stage import allocated

POWER = 0.8


@dataclass(frozen=True)
class Foreseen:
    """What a sweep will know of a comparison whose differences spread as those of finished runs.

    Args:
        spread: standard deviation of a difference.
        runs: of the sweep, if all its comparisons spread so.
        half_width: of the 95 % interval.
        visible: the difference whose interval excludes zero in 80 % of sweeps.
    """

    spread: float
    runs: int
    half_width: float
    visible: float


@dataclass(frozen=True)
class SweepPlan:
    """A sweep's size, and what it will know of a typical and of the noisiest comparison of finished runs."""

    combinations: int
    runs: int
    max_runs: int
    measure: str
    comparisons: int = 0
    typical: Foreseen | None = None
    noisiest: Foreseen | None = None

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON's types."""
        return asdict(self)

    def __str__(self) -> str:
        upto = f", up to {self.max_runs}" if self.max_runs > self.runs else ""
        lines = [f"{self.runs} runs of {self.combinations} combinations{upto}"]
        if self.typical is None or self.noisiest is None:
            return lines[0] + "\nWhich difference it will see: --runs FOLDER takes that from a finished sweep"
        lines.append(f"{self.measure}, from {self.comparisons} finished comparisons:")
        for name, each in (("typical", self.typical), ("noisiest", self.noisiest)):
            lines.append(
                f"  {name}: differences are known to ±{each.half_width:.3g} after {each.runs} runs; one of "
                f"{each.visible:.3g} is seen with 80 % power at 95 % confidence"
            )
        return "\n".join(lines)


def plan_sweep(sweep: Sweep, runs: Path | None = None, measure: str = Target.measure) -> SweepPlan:
    """Plan a sweep.

    Args:
        sweep: what is to run.
        runs: folder of a finished sweep of the same kind, with its `results.parquet`; None: no figures.
        measure: the measure of a sweep that is not adaptive.

    Raises:
        OutputError: the folder has no table of results.
        InvalidRequest: its runs give no spread.
    """
    measure = sweep.target.measure if sweep.target else measure
    count = len(sweep.cells())
    combinations = len(sweep.combinations())
    plan = SweepPlan(combinations, count, sweep.target.max_runs if sweep.target else count, measure)
    if runs is None:
        return plan
    if combinations < 2 or count < 2 * combinations:
        raise InvalidRequest("the sweep has no pairs to compare", received=f"{count} runs")
    spreads = _spreads(project_folder() / runs, sweep, measure)
    typical, noisiest = (_foreseen(sweep, float(spread)) for spread in (np.median(spreads), max(spreads)))
    return replace(plan, comparisons=len(spreads), typical=typical, noisiest=noisiest)


def _spreads(folder: Path, sweep: Sweep, measure: str) -> list[float]:
    """Standard deviation of the values that the sweep averages, one of each finished comparison.

    Those are differences of pairs; in an adaptive sweep the means of a seed, whose spread is scaled by the
    root of the number of portraits and recordings, as if these were independent.
    """
    try:
        table = polars.read_parquet(folder / "results.parquet")
    except (OSError, polars.exceptions.PolarsError) as error:
        raise OutputError(
            f"the table of results cannot be read ({error})", received=str(folder),
            remedy="Name the folder of a finished sweep.",
        ) from None  # fmt: skip
    axes = table.columns[: table.columns.index(PAIRED_BY[0])]
    found = []
    for _, pairs in compared(table, axes, measure, table.row(0, named=True)):
        whole = whole_seeds(pairs)
        values = by_seed(whole) if sweep.target else pairs["difference"].to_numpy()
        if len(values) >= FEWEST_VALUES:
            theirs, ours = len(whole) / len(by_seed(whole)), sweep.runs_per_seed
            found.append(float(np.std(values, ddof=1)) * (np.sqrt(theirs / ours) if sweep.target else 1))
    if not found:
        problem = f"no comparison of {measure} has {FEWEST_VALUES} values"
        raise InvalidRequest(problem, received=str(folder))
    return found


def _foreseen(sweep: Sweep, spread: float) -> Foreseen:
    reference, *others = combinations = sweep.combinations()
    runs = len(sweep.cells())
    first = len(sweep.seeds) if sweep.target else runs // len(combinations)
    stage = FirstStage(spread, 0.0, first)
    half = stage.half_width(first)
    if sweep.target:
        listed = dict.fromkeys(combinations, first)
        counts = allocated(dict.fromkeys(others, stage), reference, listed, sweep.runs_per_seed, sweep.target)
        runs = sweep.runs_per_seed * sum(counts.values())
        half = stage.half_width(min(counts.values()))
    confidence, power = stats.t.ppf([(1 + CONFIDENCE_LEVEL) / 2, POWER], first - 1)
    return Foreseen(spread, runs, half, float(half * (1 + power / confidence)))
