"""Loss curves of a training."""

import json
from pathlib import Path

from matplotlib.figure import Figure

STAGES = ("speech", "vae", "dit", "lora")


def plot_curves(folder: Path) -> Figure:
    """Plot loss against step for every stage with a curve file in the folder."""
    curves = {stage: folder / f"curve-{stage}.json" for stage in STAGES}
    known = {stage: json.loads(path.read_text()) for stage, path in curves.items() if path.is_file()}
    figure = Figure(figsize=(4 * max(1, len(known)), 3), layout="constrained")
    for place, (stage, rows) in enumerate(known.items(), start=1):
        axes = figure.add_subplot(1, len(known), place)
        noted = [row for row in rows if "loss" in row]
        axes.plot([row["step"] for row in noted], [row["loss"] for row in noted], marker=".")
        axes.set(title=stage, xlabel="step", ylabel="loss", yscale="log")
    return figure
