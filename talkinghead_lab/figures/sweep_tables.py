"""Tables of a sweep in words: what runs, how each combination differs from the base, and what failed."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars
from IPython.display import HTML

from talkinghead_lab.figures.labels import column_title, measure_title, unit_of, value_label
from talkinghead_lab.figures.records import machine_facts
from talkinghead_lab.figures.runs import table
from talkinghead_lab.foundation import environment
from talkinghead_lab.sweeps.definition import Sweep

FIELDS = {"portrait": "image_path", "recording": "audio_path"}  # of columns that are called otherwise
METHODS = {"t": "Student's t", "bootstrap": "BCa bootstrap", "two-stage": "Stein's two stages"}


def overview(sweep: Sweep, workers: int) -> HTML:
    """The axes of a sweep, what every combination is repeated for, the number of runs, and the machine."""
    repeated = {"seed": sweep.seeds, "image_path": sweep.portraits, "audio_path": sweep.recordings}
    return table(
        {
            **{column_title(name): values for name, values in sweep.values().items()},
            **{
                column_title(name): [value_label(value, name) for value in values]
                for name, values in repeated.items()
                if values
            },
            "Runs": len(sweep.cells()),
            **_target(sweep),
            "Processes": workers or "one per GPU, or a single one",
            **machine_facts(environment.describe(), ("cpu", "cpu_cores", "gpu", "gpu_count")),
        }
    )


def _target(sweep: Sweep) -> dict[str, str]:
    if sweep.target is None:
        return {}
    precise = f"seeds are added until differences of {measure_title(sweep.target.measure)} are known to "
    return {"Adaptive": f"{precise}±{sweep.target.precision:g}, or to {sweep.target.max_runs} runs"}


def progress(results: polars.DataFrame) -> HTML:
    """How many runs of a sweep are finished, failed or missing, and whether its table is complete.

    Args:
        results: from `sweeps.sweep.results`.
    """
    states = results["state"].to_list()
    counts = {state: states.count(state) for state in ("finished", "failed", "missing")}
    whole = "complete" if not counts["missing"] else "partial: run the sweep again to complete it"
    return table({**{state.capitalize(): count for state, count in counts.items()}, "Table": whole})


def differences_table(found: polars.DataFrame, measure: str) -> HTML:
    """Paired differences of a measure from the base, with interval and effect or the reason for neither.

    Args:
        found: from `sweeps.statistics.paired_differences`.
        measure: the measure that was compared.
    """
    statistics = ("mean", "low", "high", "count", "interval", "effect")
    axes = [name for name in found.columns if name not in statistics]
    return table([_difference_row(row, axes, measure) for row in found.to_dicts()])


def _difference_row(row: Mapping[str, Any], axes: Sequence[str], measure: str) -> dict[str, str]:
    unit = f" {unit_of(measure)}" if unit_of(measure) else ""
    pairs = "no pairs" if not row["count"] else f"none for {row['count']} pair{'s'[: row['count'] != 1]}"
    method, effect = METHODS.get(row["interval"], row["interval"]), row["effect"]
    return {
        **{column_title(name): value_label(row[name], name) for name in axes},
        f"{measure_title(measure)}: mean difference": "no pairs"
        if row["mean"] is None
        else f"{row['mean']:+.3g}{unit}",
        f"95 % interval ({method})": pairs
        if row["low"] is None
        else f"{row['low']:+.3g} to {row['high']:+.3g}",
        "Pairs": str(row["count"]),
        "Effect (Cohen's d_z)": f"{effect:+.2f}"
        if effect is not None
        else pairs
        if row["count"] < 2
        else "none: all differences are equal",
    }


def failures(results: polars.DataFrame) -> HTML:
    """The runs of a sweep that failed, with their errors, by their place on the axes.

    Args:
        results: from `sweeps.sweep.results`.
    """
    failed = results.filter(polars.col("state") == "failed")
    if failed.is_empty():
        return HTML("<p>No run failed.</p>")  # type: ignore[no-untyped-call]  # IPython is not annotated
    axes = results.columns[: results.columns.index("cell")]
    return table(
        [
            {column_title(name): value_label(row[name], FIELDS.get(name, name)) for name in axes}
            | {"Folder": f"cells/{row['cell']}", "Error": row["error"]}
            for row in failed.iter_rows(named=True)
        ]
    )
