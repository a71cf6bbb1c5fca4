"""Which difference a sweep will be able to see, from the spread of finished runs."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from talkinghead_lab.errors import InvalidRequest, OutputError
from talkinghead_lab.foundation.paths import local_file, project_folder
from talkinghead_lab.sweeps.definition import Sweep, Target
from talkinghead_lab.sweeps.statistics import (
    FEWEST_VALUES,
    PAIRED_BY,
    FirstStage,
    by_seed,
    compared,
    whole_seeds,
)
from talkinghead_lab.sweeps.two_stage import allocated

POWER = 0.8
SIMULATED = 10_000  # comparisons, which give the power to 0.4 %


@dataclass(frozen=True)
class Foreseen:
    """What a sweep will know of a comparison whose differences have this spread and skew.

    Args:
        spread: standard deviation of a difference.
        skew: of a difference.
        runs: of the sweep, if all its comparisons are such.
        half_width: of the 95 % interval.
        rise: the positive difference whose interval excludes zero in 80 % of sweeps.
        fall: the same of a negative one, without its sign.
    """

    spread: float
    skew: float
    runs: int
    half_width: float
    rise: float
    fall: float


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
                f"  {name}: differences are known to ±{each.half_width:.3g} after {each.runs} runs; a rise "
                f"of {each.rise:.2g} or a fall of {each.fall:.2g} is seen with 80 % power at 95 % confidence"
            )
        return "\n".join(lines)


def plan_sweep(sweep: Sweep, runs: Path | None = None, measure: str = Target.measure) -> SweepPlan:
    """Plan a sweep.

    Args:
        sweep: what is to run.
        runs: folder of a finished sweep of the same kind, with its `results.parquet`; None: no figures.
        measure: the measure of a sweep that is not adaptive.

    Raises:
        MediaError: a picture or recording of the sweep is missing.
        OutputError: the folder has no table of results.
        InvalidRequest: its runs give no spread.
    """
    measure = sweep.target.measure if sweep.target else measure
    cells = sweep.cells()
    for path in {path: None for cell in cells for path in cell.params.media.values()}:
        local_file(path)
    count = len(cells)
    combinations = len(sweep.combinations())
    plan = SweepPlan(combinations, count, sweep.target.max_runs if sweep.target else count, measure)
    if runs is None:
        return plan
    if combinations < 2 or count < 2 * combinations:
        raise InvalidRequest("the sweep has no pairs to compare", received=f"{count} runs")
    found = sorted(_finished(project_folder() / runs, sweep, measure))
    typical, noisiest = (_foreseen(sweep, *each) for each in (found[(len(found) - 1) // 2], found[-1]))
    return replace(plan, comparisons=len(found), typical=typical, noisiest=noisiest)


def _finished(folder: Path, sweep: Sweep, measure: str) -> list[tuple[float, float]]:
    """Standard deviation and skew of the values that the sweep averages, of each finished comparison.

    Those are differences of pairs; in an adaptive sweep the means of a seed, whose spread and skew are scaled
    by the root of the number of portraits and recordings, as if these were independent.
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
            scale = float(np.sqrt(theirs / ours)) if sweep.target else 1.0
            stage = FirstStage.of(values)
            found.append((scale * float(stage.spread), scale * float(stage.skew)))
    if not found:
        problem = f"no comparison of {measure} has {FEWEST_VALUES} values"
        raise InvalidRequest(problem, received=str(folder))
    return found


def _foreseen(sweep: Sweep, spread: float, skew: float) -> Foreseen:
    """Simulate the sweep; differences have a shifted gamma distribution (Pearson's type III)."""
    generator = np.random.default_rng(0)

    def means(count: ArrayLike, size: tuple[int, ...]) -> NDArray[np.float64]:
        """Means of `count` differences, which have the same kind of distribution."""
        root = np.sqrt(count)
        return np.asarray(stats.pearson3.rvs(skew / root, 0, spread / root, size, random_state=generator))

    comparisons = len(sweep.combinations()) - 1
    size = (-(-SIMULATED // comparisons), comparisons)
    listed = len(sweep.seeds) if sweep.target else len(sweep.cells()) // (comparisons + 1)
    values = means(1, (*size, listed))
    first, counts, runs = FirstStage.of(values), np.full(size, listed), float(len(sweep.cells()))
    if sweep.target:
        counts = allocated(first, listed, sweep.runs_per_seed, sweep.target)
        runs = sweep.runs_per_seed * float((counts.sum(axis=1) + counts.max(axis=1)).mean())
    else:
        first.skew[:] = 0  # Student's t
    added = counts - listed
    error = (listed * values.mean(axis=-1) + added * means(np.maximum(added, 1), size)) / counts
    low, high = first.ends(counts)
    half_width = float(np.median(first.half_width(counts)))
    rise, fall = (float(np.quantile(each, POWER)) for each in (-error - low, error + high))
    return Foreseen(spread, skew, round(runs), half_width, rise, fall)
