"""Figures of a profile: memory over time, and predicted against measured peaks."""

import matplotlib
import numpy as np
import polars
from matplotlib.axes import Axes

from talkinghead_lab.errors import InvalidRequest
from talkinghead_lab.figures.runs import AXES_INK, STYLE, NotebookFigure
from talkinghead_lab.profiling.profile import peak_column

STAGE_COLORS = {
    "read": "#a0aec0", "load": "#718096", "text": "#6b46c1", "audio": "#b83280", "image": "#d69e2e",
    "vae_encode": "#c05621", "sampling": "#2b6cb0", "decode": "#2f855a", "mux": "#4a5568",
    "measure": "#cbd5e0",
}  # fmt: skip
STAGE_NAMES = {"vae_encode": "VAE encode"}  # the others are shown as they are
UNKNOWN_STAGE_COLOR = "#e2e8f0"


def timeline(table: polars.DataFrame, run: int = 0) -> NotebookFigure:
    """Peak memory over the time of a run, one bar per stage; the darker part is weights.

    Args:
        table: from `profiling.profile.profile`.
        run: number of the run in the table.

    Raises:
        InvalidRequest: the run is not in the table, or it failed.
    """
    column = peak_column(table)
    stages = table.filter(polars.col("run") == run).drop_nulls([column]).sort("started")
    if stages.is_empty():
        raise InvalidRequest("no finished run with this number", received=run)
    with matplotlib.rc_context(STYLE):
        figure = NotebookFigure(figsize=(10, 3.2), layout="constrained")
        axes = figure.add_subplot()
        shown: dict[str, str] = {}
        for stage in stages.iter_rows(named=True):
            color = shown.setdefault(stage["stage"], STAGE_COLORS.get(stage["stage"], UNKNOWN_STAGE_COLOR))
            bar = {"x": stage["started"], "width": stage["seconds"], "align": "edge", "color": color}
            axes.bar(height=stage[column], alpha=0.55, linewidth=0, **bar)
            axes.bar(height=stage["held_gib"] or 0, linewidth=0, **bar)
        _finish(axes, stages, shown, column)
    return figure


def _finish(axes: Axes, stages: polars.DataFrame, shown: dict[str, str], column: str) -> None:
    kind = "GPU memory, allocated" if column == "peak_gpu_gib" else "host memory of the process"
    axes.set(xlabel="time (s)", ylabel=f"{kind} (GiB)", xlim=(0, None), title=stages["setting"][0])
    handles = [
        matplotlib.patches.Patch(color=color, label=STAGE_NAMES.get(name, name))
        for name, color in shown.items()
    ]
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8.5)


def predicted_against_measured(peaks: polars.DataFrame) -> NotebookFigure:
    """Predicted against measured peak memory, a point per run.

    Args:
        peaks: from `profiling.profile.predicted_peaks` or `cross_validated_peaks`.
    """
    measured, predicted = peaks["measured_gib"].to_numpy(), peaks["predicted_gib"].to_numpy()
    with matplotlib.rc_context(STYLE):
        figure = NotebookFigure(figsize=(5.6, 4.6), layout="constrained")
        axes = figure.add_subplot()
        ends = np.array([0, 1.08 * max(measured.max(), predicted.max())])
        axes.plot(ends, ends, color=AXES_INK, lw=0.8)
        axes.fill_between(
            ends, 0.9 * ends, 1.1 * ends, color=AXES_INK, alpha=0.2, linewidth=0, label="± 10 %"
        )
        axes.plot(measured, predicted, "o", color="#2b6cb0", ms=5, label="runs")
        axes.set(
            xlabel="measured peak (GiB)",
            ylabel="predicted peak (GiB)",
            xlim=ends,
            ylim=ends,
            title="Peak memory, predicted and measured",
        )
        axes.legend(loc="upper left")
    return figure
