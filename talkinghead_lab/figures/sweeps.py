"""Figures of a sweep's results: heat maps, curves, quality against time, paired differences."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import polars
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D

from talkinghead_lab.errors import InvalidRequest
from talkinghead_lab.figures.labels import (
    axis_label,
    axis_values,
    cell_label,
    measure_title,
    readable_name,
    setting_label,
    unit_of,
    value_label,
    value_labels,
)
from talkinghead_lab.figures.runs import AXES_INK, INK, STYLE, NotebookFigure
from talkinghead_lab.foundation.files import atomic_path
from talkinghead_lab.measures.measure import KINDS
from talkinghead_lab.sweeps.statistics import Interval, means, pareto_front

GROUP_COLORS = ("#2b6cb0", "#c05621", "#2f855a", "#6b46c1", "#b83280", "#4a5568")
PALE = "#a0aec0"
PRINT_DPI = 300
SHORT_LABEL = 9  # letters that fit below a column of a heat map
INCHES_PER_LETTER = 0.075


def heat_map(
    table: polars.DataFrame,
    x: str,
    y: str,
    measure: str,
    panels: str | None = None,
    interval: Interval = "t",
) -> NotebookFigure:
    """Mean of a measure for each pair of axis values, with half the width of its 95 % interval below it.

    Args:
        table: from `sweeps.sweep.results`.
        x, y: axes of the sweep.
        measure: a column of the table.
        panels: a third axis; one map per value.
        interval: method of the intervals; see `sweeps.statistics.Estimate`.

    Raises:
        InvalidRequest: the table has no such column, or no finished run has the measure.
    """
    found = _means(table, [*_given(panels), y, x], measure, interval)
    columns, rows = axis_values(found, x), axis_values(found, y)
    titles = axis_values(found, panels) if panels else [None]
    scale = Normalize(*np.quantile(found["mean"], (0, 1)))
    with matplotlib.rc_context(STYLE):
        size = (1.5 + (0.35 + 0.72 * len(columns)) * len(titles), 1.35 + 0.5 * len(rows))
        beside, below = _longest(value_labels(rows, y)), _longest(value_labels(columns, x))
        size = size[0] + INCHES_PER_LETTER * (beside + below / 2), size[1] + INCHES_PER_LETTER / 2 * below
        figure = NotebookFigure(figsize=size, layout="constrained")
        grid = figure.subplots(1, len(titles), sharey=True, squeeze=False)[0]
        for axes, title in zip(grid, titles, strict=True):
            cells = found.filter(polars.col(panels).eq_missing(title)) if panels else found
            image = _draw_map(axes, cells, (x, columns), (y, rows), scale)
            axes.set_title("" if panels is None else setting_label(panels, title), fontsize=9, loc="center")
            axes.set_xlabel(axis_label(x))
        grid[0].set_ylabel(axis_label(y))
        figure.suptitle(measure_title(measure), x=0.01, ha="left", fontsize=10.5, fontweight="bold")
        bar = figure.colorbar(image, ax=grid.tolist(), pad=0.02, aspect=14, label=axis_label(measure))
        bar.outline.set_visible(False)
        _add_note(figure, found, "± half the 95 % interval")
    return figure


def _draw_map(
    axes: Axes,
    cells: polars.DataFrame,
    across: tuple[str, list[Any]],
    up: tuple[str, list[Any]],
    scale: Normalize,
) -> AxesImage:
    (x, columns), (y, rows) = across, up
    grid = np.full((len(rows), len(columns)), np.nan)
    spread = np.ptp([scale.vmin, scale.vmax]) or 1.0
    decimals = int(np.clip(1 - np.floor(np.log10(spread)), 0, 6))  # two significant digits of the range
    for cell in cells.iter_rows(named=True):
        place = columns.index(cell[x]), rows.index(cell[y])
        grid[place[::-1]] = cell["mean"]
        text = f"{cell['mean']:.{decimals}f}".replace("-", "−")
        if cell["high"] is not None:
            text += f"\n±{(cell['high'] - cell['low']) / 2:.{decimals}f}"
        color = INK if scale(cell["mean"]) > 0.6 else "white"
        axes.text(*place, text, ha="center", va="center", fontsize=7.5, color=color, linespacing=1.3)
    image = axes.imshow(grid, cmap="viridis", norm=scale, origin="lower", aspect="auto")
    words = value_labels(columns, x)
    axes.set_xticks(range(len(columns)), words)
    for label in axes.get_xticklabels() if _longest(words) else ():
        label.set(rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), value_labels(rows, y))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return image


def _longest(words: list[str]) -> int:
    """Letters of the longest label by which a map grows; short ones have room."""
    return max(map(len, words)) if max(map(len, words)) > SHORT_LABEL else 0


def curves(
    table: polars.DataFrame,
    x: str,
    measure: str,
    group: str | None = None,
    panels: str | None = None,
    interval: Interval = "t",
) -> NotebookFigure:
    """Mean of a measure along a numeric axis, with its 95 % interval as a band.

    Arguments and errors are those of `heat_map`; `group` is another axis with one line per value.
    """
    found = _means(table, [*_given(panels), *_given(group), x], measure, interval)
    titles = axis_values(found, panels) if panels else [None]
    groups = axis_values(found, group) if group else [None]
    with matplotlib.rc_context(STYLE):
        figure = NotebookFigure(figsize=(2.0 + max(3.4, 2.1 * len(titles)), 3.1), layout="constrained")
        grid = figure.subplots(1, len(titles), sharey=True, squeeze=False)[0]
        for axes, title in zip(grid, titles, strict=True):
            inside = found.filter(polars.col(panels).eq_missing(title)) if panels else found
            for color, value in zip(itertools.cycle(GROUP_COLORS), groups, strict=False):
                line = inside.filter(polars.col(group).eq_missing(value)) if group else inside
                _draw_curve(axes, line.sort(x), x, color, value_label(value, group or ""))
            _mark_values(axes, axis_values(found, x))
            heading = "" if panels is None else f"{readable_name(panels)} {value_label(title, panels)}"
            axes.set_title(heading, fontsize=9, loc="center", fontweight="normal")
            axes.set_xlabel(axis_label(x))
        grid[0].set_ylabel(axis_label(measure))
        figure.suptitle(measure_title(measure), x=0.01, ha="left", fontsize=10.5, fontweight="bold")
        if group is not None:
            handles, names = grid[0].get_legend_handles_labels()
            figure.legend(handles, names, title=axis_label(group), loc="outside right center", fontsize=8)
        _add_note(figure, found, "band: 95 % interval")
    return figure


def _draw_curve(axes: Axes, line: polars.DataFrame, x: str, color: str, label: str) -> None:
    axes.plot(line[x], line["mean"], color=color, marker="o", markersize=3.5, linewidth=1.5, label=label)
    band = line.drop_nulls("low")
    axes.fill_between(band[x], band["low"], band["high"], color=color, alpha=0.13, linewidth=0)
    axes.grid(axis="y", color=AXES_INK, alpha=0.2, linewidth=0.6)
    axes.set_axisbelow(True)


def _mark_values(axes: Axes, values: list[Any]) -> None:
    """Put ticks at the values of the sweep; use a log scale if their ratios are equal."""
    ratios = {after / before for before, after in itertools.pairwise(values) if before > 0}
    if len(values) > 2 and len(ratios) == 1:
        axes.set_xscale("log")
    axes.set_xticks(values, [value_label(value) for value in values])
    axes.minorticks_off()


def quality_against_time(
    table: polars.DataFrame,
    axes_of_sweep: list[str],
    quality: str,
    group: str | None = None,
    cost: str = "seconds_per_frame",
    interval: Interval = "t",
) -> NotebookFigure:
    """Mean quality against mean cost, a point per combination of the axes, with the Pareto front.

    The legend names the points on the front. The measure itself defines whether higher quality is better.

    Args:
        table: from `sweeps.sweep.results`.
        axes_of_sweep: all axes of the sweep.
        quality, cost: columns of the table.
        group: the axis shown by colour.
        interval: method of the intervals; see `sweeps.statistics.Estimate`.

    Raises:
        InvalidRequest: the table has no such column, or no finished run has both measures.
    """
    costs = means(table, axes_of_sweep, cost).select(*axes_of_sweep, polars.col("mean").alias("cost"))
    points = _means(table, axes_of_sweep, quality, interval).join(costs, on=axes_of_sweep, nulls_equal=True)
    front = pareto_front(points, "mean", "cost", quality not in KINDS or KINDS[quality].better != "lower")
    groups = axis_values(points, group) if group else [None]
    with matplotlib.rc_context(STYLE):
        figure = NotebookFigure(figsize=(7.2, 3.6), layout="constrained")
        axes = figure.add_subplot()
        axes.step(front["cost"], front["mean"], where="post", color=AXES_INK, linewidth=0.9, zorder=1)
        for color, value in zip(itertools.cycle(GROUP_COLORS), groups, strict=False):
            inside = points.filter(polars.col(group).eq_missing(value)) if group else points
            _draw_points(axes, inside, color, value_label(value, group) if group else None)
        names = [_front_label(axes, point, n, axes_of_sweep) for n, point in enumerate(front.to_dicts(), 1)]
        axes.set(xlabel=axis_label(cost), ylabel=axis_label(quality), ylim=_span(points))
        axes.set_xlim(0, 1.08 * max(points["cost"]))
        axes.set_title(f"{measure_title(quality)} against {readable_name(cost)}")
        blank = [Line2D([], [], linestyle="none")] * len(names)
        shown, labels = axes.get_legend_handles_labels()
        figure.legend(
            [*shown, *blank], [*labels, *names], loc="outside right center", fontsize=7.5, labelspacing=0.7
        )
        _add_note(figure, points, "line: Pareto front; bar: 95 % interval")
    return figure


def _draw_points(axes: Axes, points: polars.DataFrame, color: str, label: str | None) -> None:
    known = points.drop_nulls("low")
    arms = [known["mean"] - known["low"], known["high"] - known["mean"]]
    axes.errorbar(known["cost"], known["mean"], arms, fmt="none", ecolor=color, alpha=0.35, linewidth=0.8)
    axes.scatter(points["cost"], points["mean"], s=20, color=color, label=label, zorder=3, linewidth=0)


def _front_label(axes: Axes, point: dict[str, Any], number: int, axes_of_sweep: list[str]) -> str:
    """Number a point of the front; return its entry for the legend."""
    axes.annotate(
        str(number), (point["cost"], point["mean"]), (5, 4), textcoords="offset points", fontsize=8,
        fontweight="bold",
    )  # fmt: skip
    return f"{number}  {cell_label(point, axes_of_sweep)}"


def differences(found: polars.DataFrame, measure: str, base: Mapping[str, Any]) -> NotebookFigure:
    """Paired difference of each combination from the base with its 95 % interval, pale if that spans zero.

    Args:
        found: from `sweeps.statistics.paired_differences`.
        measure: the measure that was compared.
        base: the base that was passed to `paired_differences`.

    Raises:
        InvalidRequest: `found` is empty.
    """
    rows = found.drop_nulls("mean").to_dicts()[::-1]
    if not rows:
        raise InvalidRequest("there is no pair of runs to compare", received=measure)
    with matplotlib.rc_context(STYLE):
        figure = NotebookFigure(figsize=(6.8, 1.2 + 0.17 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        for number, row in enumerate(rows):
            significant = row["low"] is not None and row["low"] * row["high"] > 0
            color = GROUP_COLORS[0] if significant else PALE
            if row["low"] is not None:
                axes.hlines(number, row["low"], row["high"], color=color, linewidth=1.6)
            axes.plot(row["mean"], number, "o", color=color, markersize=4)
        axes.axvline(0, color=AXES_INK, linewidth=0.8)
        unit = f" ({unit_of(measure)})" if unit_of(measure) else ""
        axes.set_yticks(range(len(rows)), [cell_label(row, [*base]) for row in rows], fontsize=7.5)
        axes.tick_params(axis="y", length=0)
        axes.set(
            ylim=(-0.7, len(rows) - 0.3),
            xlabel=f"difference from {cell_label(base, [*base])}{unit}",
        )
        axes.set_title(measure_title(measure) + ", paired", x=0, loc="left")
        axes.grid(axis="x", color=AXES_INK, alpha=0.2, linewidth=0.6)
        axes.set_axisbelow(True)
        _add_note(figure, found, "bar: 95 % interval", "pairs")
    return figure


def _means(
    table: polars.DataFrame, axes_of_sweep: list[str], measure: str, interval: Interval
) -> polars.DataFrame:
    found = means(table, axes_of_sweep, measure, interval)
    if found.is_empty():
        raise InvalidRequest("no finished run has the measure", received=measure)
    return found


def _add_note(figure: Figure, found: polars.DataFrame, meaning: str, counted: str = "runs each") -> None:
    """Write the method of the intervals and the number of runs below a figure."""
    methods = {
        "t": "Student's t",
        "fisher": "Fisher's z",
        "bootstrap": "BCa bootstrap",
        "two-stage": "Stein's two stages",
    }
    fewest, most = np.quantile(found["count"], (0, 1)).astype(int)
    counts = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    known = found["low"].drop_nulls()
    method = f"{meaning} ({methods[found['interval'][0]]})" if len(known) else "no interval of so few runs"
    text = f"{method}, {counts} {counted}"
    height = 0.17 / figure.get_size_inches()[1]
    figure.get_layout_engine().set(rect=(0, height, 1, 1 - height))  # type: ignore[union-attr, call-arg]
    figure.text(0.995, 0.005, text, ha="right", va="bottom", fontsize=6.5, color=AXES_INK)


def save_figure(figure: Figure, folder: str | Path, name: str) -> list[Path]:
    """Write a figure as NAME.png (300 dpi) and NAME.svg, replacing earlier ones, and return both paths."""
    paths = [Path(folder) / f"{name}.{suffix}" for suffix in ("png", "svg")]
    for path in paths:
        with atomic_path(path, overwrite=True) as temporary, matplotlib.rc_context(STYLE):
            figure.savefig(
                temporary, dpi=PRINT_DPI, metadata={"Date": None} if path.suffix == ".svg" else None
            )
    return paths


def _given(axis: str | None) -> list[str]:
    return [] if axis is None else [axis]


def _span(points: polars.DataFrame) -> tuple[float, float]:
    """Limits a little beyond the range of means and intervals."""
    ends = np.concatenate([points[name].drop_nulls().to_numpy() for name in ("mean", "low", "high")])
    low, high = ends.min(), ends.max()
    margin = 0.08 * (high - low) or 1.0
    return low - margin, high + margin
