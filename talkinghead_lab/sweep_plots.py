"""Figures of a sweep's table: heat map, curves with bands, quality against time, videos side by side."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import polars
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from talkinghead_lab import audio, video
from talkinghead_lab.comparisons import PAIRED_BY, means, pareto_front
from talkinghead_lab.errors import InvalidRequest
from talkinghead_lab.files import atomic_path
from talkinghead_lab.plots import INK, STYLE, NotebookFigure

COLORS = ("#2b6cb0", "#c05621", "#2f855a", "#6b46c1", "#b83280", "#4a5568")
PAPER_DPI = 300
LABEL_HEIGHT = 22  # pixels above each video of a grid


def heat_map(table: polars.DataFrame, x: str, y: str, measure: str, unit: str = "") -> NotebookFigure:
    """Mean of a measure for each pair of axis values, with half the width of its 95 % interval (t) below.

    Args:
        table: of `sweeps.results`.
        x, y: axes of the sweep.
        measure: a column.
        unit: written behind the measure's name.

    Raises:
        InvalidRequest: no such column, or no finished run has the measure.
    """
    found = means(table, [y, x], measure)
    if found.is_empty():
        raise InvalidRequest("no finished run has the measure", received=measure)
    columns, rows = _values(found, x), _values(found, y)
    grid = np.full((len(rows), len(columns)), np.nan)
    with matplotlib.rc_context(STYLE):
        size = (1.9 + 0.95 * len(columns), 1.2 + 0.62 * len(rows))
        figure = NotebookFigure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        for cell in found.iter_rows(named=True):
            grid[rows.index(cell[y]), columns.index(cell[x])] = cell["mean"]
        image = axes.imshow(grid, cmap="viridis", origin="lower", aspect="auto")
        for cell in found.iter_rows(named=True):
            place = columns.index(cell[x]), rows.index(cell[y])
            light = cell["mean"] > 0.4 * np.nanmin(grid) + 0.6 * np.nanmax(grid)
            text = f"{cell['mean']:.3g}"
            if cell["high"] is not None:
                text += f"\n± {cell['high'] - cell['mean']:.2g}"
            axes.text(*place, text, ha="center", va="center", fontsize=8, color=INK if light else "white")
        axes.set_xticks(range(len(columns)), [_label(value) for value in columns])
        axes.set_yticks(range(len(rows)), [_label(value) for value in rows])
        axes.set(xlabel=_words(x), ylabel=_words(y), title=_title(measure, unit))
        axes.spines[:].set_visible(False)
        figure.colorbar(image, ax=axes, shrink=0.9).outline.set_visible(False)
    return figure


def curves(
    table: polars.DataFrame, x: str, measure: str, group: str | None = None, unit: str = ""
) -> NotebookFigure:
    """Mean of a measure along a numeric axis with a band of its 95 % interval (t), a line for each group.

    Args and errors as for `heat_map`; `group` is another axis.
    """
    found = means(table, [x] if group is None else [group, x], measure)
    if found.is_empty():
        raise InvalidRequest("no finished run has the measure", received=measure)
    with matplotlib.rc_context(STYLE):
        figure = NotebookFigure(figsize=(6.4, 3.6), layout="constrained")
        axes = figure.add_subplot()
        for number, value in enumerate(_values(found, group) if group else [None]):
            line = found if group is None else found.filter(polars.col(group).eq_missing(value))
            _draw_curve(axes, line.sort(x), x, COLORS[number % len(COLORS)], _label(value))
        if group is not None:
            axes.legend(title=_words(group), fontsize=8, title_fontsize=8)
        axes.set(xlabel=_words(x), ylabel=unit, title=_title(measure, unit))
    return figure


def _draw_curve(axes: Axes, line: polars.DataFrame, x: str, color: str, label: str) -> None:
    axes.plot(line[x], line["mean"], color=color, marker="o", markersize=4, linewidth=1.6, label=label)
    band = line.drop_nulls("low")
    axes.fill_between(band[x], band["low"], band["high"], color=color, alpha=0.18, linewidth=0)


def quality_against_time(
    table: polars.DataFrame,
    axes_of_sweep: list[str],
    quality: str,
    higher_is_better: bool = True,
    cost: str = "seconds_per_frame",
) -> NotebookFigure:
    """A point for each combination of the axes, means of both measures, and the line of those that no other
    one beats in both.

    Raises:
        InvalidRequest: no such column, or no finished run has both measures.
    """
    costs = means(table, axes_of_sweep, cost).select(*axes_of_sweep, polars.col("mean").alias("cost"))
    points = means(table, axes_of_sweep, quality)
    if points.is_empty() or costs.is_empty():
        raise InvalidRequest("no finished run has both measures", received=f"{quality}, {cost}")
    points = points.join(costs, on=axes_of_sweep, nulls_equal=True)
    front = pareto_front(points, "mean", "cost", higher_is_better)
    with matplotlib.rc_context(STYLE):
        figure = NotebookFigure(figsize=(6.4, 4.0), layout="constrained")
        axes = figure.add_subplot()
        reach = points.drop_nulls("low")
        arms = [reach["mean"] - reach["low"], reach["high"] - reach["mean"]]
        axes.errorbar(
            reach["cost"], reach["mean"], arms, fmt="none", ecolor="#a0aec0", linewidth=0.8, zorder=1
        )
        axes.scatter(points["cost"], points["mean"], s=22, color="#a0aec0", zorder=2)
        axes.plot(front["cost"], front["mean"], color=COLORS[1], marker="o", markersize=5, zorder=3)
        for number, point in enumerate(front.iter_rows(named=True)):
            text = ", ".join(f"{_short(axis)} {_label(point[axis])}" for axis in axes_of_sweep)
            above = 12 if number % 2 == 0 else -18
            axes.annotate(
                text, (point["cost"], point["mean"]), (0, above), textcoords="offset points",
                fontsize=7, ha="center",
            )  # fmt: skip
        axes.margins(x=0.18, y=0.16)
        axes.set(xlabel=_words(cost), ylabel=_words(quality), title=f"{_words(quality)} against time")
    return figure


def save_figure(figure: Figure, folder: str | Path, name: str) -> list[Path]:
    """Write a figure as PNG of 300 dpi and as SVG, replacing earlier ones; their paths."""
    paths = [Path(folder) / f"{name}.{suffix}" for suffix in ("png", "svg")]
    for path in paths:
        with atomic_path(path, overwrite=True) as temporary, matplotlib.rc_context(STYLE):
            figure.savefig(
                temporary, dpi=PAPER_DPI, metadata={"Date": None} if path.suffix == ".svg" else None
            )
    return paths


def grid_video(
    table: polars.DataFrame, path: str | Path, x: str, y: str | None = None, width: int = 160
) -> Path:
    """One labelled video of a sweep's videos side by side, with the sound of the first.

    Of several seeds, portraits or recordings the first of the table is shown. A video that ends before the
    others keeps its last frame.

    Args:
        table: of `sweeps.results`.
        path: where the video goes; one that is there is replaced.
        x, y: axes of the sweep: what differs from left to right, and from bottom to top.
        width: of each video in pixels, even.

    Raises:
        InvalidRequest: no run is finished.
    """
    finished = table.filter(polars.col("state") == "finished")
    if finished.is_empty():
        raise InvalidRequest("no run is finished")
    repeats = [name for name in PAIRED_BY if name in table.columns]
    first = finished.row(0, named=True)
    for name in repeats:
        finished = finished.filter(polars.col(name).eq_missing(first[name]))
    columns, rows = _values(finished, x), _values(finished, y) if y else [None]
    shown = {(cell[x], cell[y] if y else None): cell for cell in finished.iter_rows(named=True)}
    facts = [video.probe(cell["video_path"]) for cell in shown.values()]
    height = 2 * round(width * facts[0].height / facts[0].width / 2)
    tiles = [
        _tile(shown.get((column, row)), x, y, (width, height)) for row in reversed(rows) for column in columns
    ]
    count = max(found.frame_count for found in facts)
    frames = _composed(tiles, len(columns), count)
    path = Path(path)
    path.unlink(missing_ok=True)
    video.write_video(path, frames, audio.read_soundtrack(first["video_path"]), count, {})
    return path


def _tile(cell: dict[str, Any] | None, x: str, y: str | None, size: tuple[int, int]) -> Iterator[Image.Image]:
    """Frames of one video with its label above, the last one for ever; grey where there is no video."""
    blank = Image.new("RGB", (size[0], size[1] + LABEL_HEIGHT), "white")
    if cell is None:
        blank.paste("#cbd5e0", (0, LABEL_HEIGHT, size[0], size[1] + LABEL_HEIGHT))
        yield from itertools.repeat(blank)
        return
    label = ", ".join(f"{_short(axis)} {_label(cell[axis])}" for axis in (x, y) if axis)
    font = ImageFont.load_default(size=12)
    ImageDraw.Draw(blank).text((4, 4), label, fill=INK, font=font)
    picture = blank
    for pixels in video.read_frames(cell["video_path"]):
        picture = blank.copy()
        picture.paste(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS), (0, LABEL_HEIGHT))
        yield picture
    yield from itertools.repeat(picture)


def _composed(tiles: list[Iterator[Image.Image]], columns: int, count: int) -> Iterator[video.Frames]:
    for _ in range(count):
        pictures = [np.asarray(next(tile)) for tile in tiles]
        rows = [np.concatenate(pictures[k : k + columns], axis=1) for k in range(0, len(pictures), columns)]
        yield np.concatenate(rows)[None]


def _values(table: polars.DataFrame, axis: str) -> list[Any]:
    return table[axis].unique().sort().to_list()


def _label(value: Any) -> str:
    if value is None or value == "[]":
        return "none"
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _short(name: str) -> str:
    """An axis's name as it fits above a video or beside a point."""
    return _words(name.removesuffix("_guide_scale").removesuffix("_threshold").removeprefix("diffusion_"))


def _title(measure: str, unit: str) -> str:
    return _words(measure) + (f" ({unit})" if unit and unit != "1" else "")
