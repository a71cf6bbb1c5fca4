"""Loss curves of a training."""

import json
from pathlib import Path

import matplotlib
from matplotlib.ticker import NullFormatter

from talkinghead_lab.figures.runs import STYLE, NotebookFigure

TITLES = {
    "speech": "speech encoder",
    "vae": "autoencoder",
    "dit": "transformer",
    "lora": "fast LoRA",
    "pairs": "two speakers",
}


def plot_curves(folder: Path) -> NotebookFigure:
    """Plot loss against step for every stage with a curve file in the folder."""
    curves = {stage: folder / f"curve-{stage}.json" for stage in TITLES}
    known = {stage: json.loads(path.read_text()) for stage, path in curves.items() if path.is_file()}
    with matplotlib.rc_context(STYLE):
        figure = NotebookFigure(figsize=(4 * max(1, len(known)), 3), layout="constrained")
        for place, (stage, rows) in enumerate(known.items(), start=1):
            axes = figure.add_subplot(1, len(known), place)
            noted = [row for row in rows if "loss" in row]
            axes.plot([row["step"] for row in noted], [row["loss"] for row in noted], marker=".")
            axes.set(title=TITLES[stage], xlabel="training step", ylabel="loss", yscale="log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
    return figure
