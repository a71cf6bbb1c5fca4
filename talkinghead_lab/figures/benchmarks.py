"""Pictures of a benchmark: clips as dots, two measures against each other, and the worst and best clips."""

import itertools
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from PIL import Image, ImageDraw, ImageOps

from talkinghead_lab.errors import InvalidRequest, TalkingHeadError, nearest_name
from talkinghead_lab.evaluation.scoring import Score
from talkinghead_lab.evaluation.systems import REAL, WRONG, ShownVideo, shown_video
from talkinghead_lab.evaluation.table import Row
from talkinghead_lab.figures.fonts import font
from talkinghead_lab.figures.labels import axis_label, measure_title, readable_name
from talkinghead_lab.figures.runs import AXES_INK, INK, STYLE, NotebookFigure
from talkinghead_lab.figures.side_by_side import MUTED, side_by_side
from talkinghead_lab.figures.sweeps import GROUP_COLORS, PALE
from talkinghead_lab.foundation.latent_grid import FRAMES_PER_SECOND
from talkinghead_lab.media import audio, video
from talkinghead_lab.media.reference import DrivingVideo

JITTER = 0.26  # of a row's height, each way
TILE, GAP, TEXT = 168, 8, 14  # pixels
Scores = Mapping[str, Sequence[Score]]


def clip_values(scores: Sequence[Score], measure: str) -> dict[str, float]:
    """The values of a measure by clip, of the clips that have one."""
    found = {score.clip: score.measures[measure].value for score in scores if measure in score.measures}
    return {clip: value for clip, value in found.items() if value is not None}


def strips(scores: Scores, rows: Sequence[Row], measure: str) -> NotebookFigure:
    """Every clip of every system as a dot, with the mean and its 95 % interval.

    Args:
        scores: of every system, as `systems.stored_scores` gives them.
        rows: of `table.benchmark_table`.
        measure: one that clips have.

    Raises:
        InvalidRequest: no clip has the measure.
    """
    wanted = (measure, "excluded", None)
    of = {row.system: row for row in rows if (row.measure, row.rule, row.why_not) == wanted}
    if not of:
        raise InvalidRequest("no clip has the measure", received=measure)
    colors = system_colors(of)
    with matplotlib.rc_context(STYLE):
        figure = NotebookFigure(figsize=(6.8, 0.95 + 0.42 * len(of)), layout="constrained")
        axes = figure.add_subplot()
        for place, (system, row) in enumerate(of.items()):
            values = list(clip_values(scores[system], measure).values())
            away = np.random.default_rng(0).uniform(-JITTER, JITTER, len(values))
            axes.scatter(values, place + away, s=11, color=colors[system], alpha=0.45, linewidth=0)
            _draw_interval(axes, row, place)
        names = [f"{system} ({row.failed} failed)" if row.failed else system for system, row in of.items()]
        axes.set_yticks(range(len(of)), names)
        axes.set(ylim=(len(of) - 0.45, -0.55), xlabel=axis_label(measure))
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color=AXES_INK, alpha=0.2, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_title(measure_title(measure), x=0, loc="left")
    return figure


def _draw_interval(axes: Axes, row: Row, place: float) -> None:
    interval = row.interval
    if interval.low is not None and interval.high is not None:
        axes.hlines(place, interval.low, interval.high, color=INK, linewidth=2.2, zorder=3)
    axes.plot(interval.value, place, "D", color=INK, markersize=5, zorder=4)


def scatter(scores: Scores, x: str, y: str) -> NotebookFigure:
    """Two measures against each other: a small dot for each clip, a large one for each system's mean.

    Raises:
        InvalidRequest: no clip has both measures.
    """
    both = {
        system: [(values[clip], others[clip]) for clip in values if clip in others]
        for system, found in scores.items()
        if (values := clip_values(found, x)) and (others := clip_values(found, y))
    }
    both = {system: pairs for system, pairs in both.items() if pairs}
    if not both:
        raise InvalidRequest("no clip has both measures", received=f"{x}, {y}")
    colors = system_colors(both)
    with matplotlib.rc_context(STYLE):
        figure = NotebookFigure(figsize=(6.8, 4.0), layout="constrained")
        axes = figure.add_subplot()
        for system, pairs in both.items():
            points = np.array(pairs).T
            axes.scatter(points[0], points[1], s=13, color=colors[system], alpha=0.4, linewidth=0)
            axes.plot(
                *points.mean(1), "o", color=colors[system], markersize=9, markeredgecolor="white",
                label=system, zorder=3,
            )  # fmt: skip
        axes.set(xlabel=axis_label(x), ylabel=axis_label(y))
        axes.grid(color=AXES_INK, alpha=0.2, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_title(f"{measure_title(y)} against {readable_name(x)}")
        figure.legend(loc="outside right center", fontsize=8)
    return figure


def system_colors(systems: Mapping[str, object]) -> dict[str, str]:
    """A colour for each system; the bounds are grey."""
    cycle = itertools.cycle(GROUP_COLORS)
    grey = {REAL: AXES_INK, WRONG: PALE}
    return {system: grey.get(system) or next(cycle) for system in systems}


def ranked_clips(scores: Sequence[Score], measure: str, better: str) -> list[str]:
    """The clips of a system from the worst to the best.

    Raises:
        InvalidRequest: no clip has the measure, or it has no direction.
    """
    values = clip_values(scores, measure)
    if not values or better == "neither":
        known = sorted({name for score in scores for name in score.measures})
        raise InvalidRequest(
            "clips cannot be ranked by the measure", received=measure, remedy=nearest_name(measure, known)
        )
    return sorted(values, key=lambda clip: (values[clip] if better == "higher" else -values[clip], clip))


def contact_sheet(folder: Path, scores: Scores, measure: str, clips: Sequence[str]) -> Image.Image:
    """The middle frame of clips, a row for each, by the real video and every system, with their values.

    Args:
        folder: of the benchmark.
        scores: of every system.
        measure: whose values are written below the frames.
        clips: their ids.
    """
    systems = [name for name in scores if name != WRONG]
    values = {name: clip_values(scores[name], measure) for name in systems}
    size = GAP + len(systems) * (TILE + GAP), GAP + TEXT + len(clips) * (TILE + 2 * TEXT + 2 * GAP)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for column, system in enumerate(systems):
        left = GAP + column * (TILE + GAP)
        draw.text((left, GAP), _fitting(system), fill=INK, font=font(12))
        for number, clip in enumerate(clips):
            top = GAP + TEXT + number * (TILE + 2 * TEXT + 2 * GAP)
            if column == 0:
                draw.text((left, top + GAP - 2), _fitting(clip), fill=MUTED, font=font(11))
            picture = _middle_frame(shown_video(folder, system, clip))
            sheet.paste(picture, (left, top + TEXT + GAP))
            value = values[system].get(clip)
            words = "failed or not taken" if value is None else f"{value:.3g}".replace("-", "−")
            draw.text((left, top + TEXT + GAP + TILE + 1), words, fill=INK, font=font(11))
    return sheet


def _middle_frame(shown: ShownVideo | None) -> Image.Image:
    """A square tile; grey where there is no frame."""
    tile = Image.new("RGB", (TILE, TILE), "#d7dbe0")
    if shown is None:
        return tile
    try:
        source = DrivingVideo(shown.video)
        picture = source.frame_at(shown.start + shown.frames / 2 / FRAMES_PER_SECOND)
    except TalkingHeadError:
        return tile
    picture = ImageOps.contain(picture, (TILE, TILE), Image.Resampling.LANCZOS)
    tile.paste(picture, ((TILE - picture.width) // 2, (TILE - picture.height) // 2))
    return tile


def _fitting(text: str) -> str:
    while font(12).getlength(text) > TILE:
        text = text[:-2] + "…"
    return text


def clip_video(folder: Path, systems: Sequence[str], clip: str, path: Path) -> Path | None:
    """Write a clip's videos side by side, in step, with the real recording; the real one comes first.

    Args:
        folder: of the benchmark.
        systems: others than the real one.
        clip: its id.
        path: the mp4 file to write; an earlier one is replaced.

    Returns:
        The path; None if fewer than two videos of the clip are still where they were, the real one among
        them.

    Raises:
        OutputError: the file cannot be written.
    """
    shown = {name: shown_video(folder, name, clip) for name in (REAL, *systems)}
    present = {name: found for name, found in shown.items() if found is not None}
    if len(present) < 2 or REAL not in present:
        return None
    path.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        real = _excerpt(present[REAL], Path(scratch) / "real.mp4")
        videos = [real, *(found.video for name, found in present.items() if name != REAL)]
        return side_by_side(path, videos, list(present), heard=0)


def _excerpt(shown: ShownVideo, path: Path) -> Path:
    """Write the span of a real video that was scored, as it is heard."""
    source = DrivingVideo(shown.video)
    width, height = (side - side % 2 for side in source.size)
    frames = (
        np.asarray(picture)[None, :height, :width] for picture in source.frames(shown.start, shown.frames)
    )
    sound = audio.read_recording(shown.video, start=shown.start).soundtrack
    length = shown.frames * audio.SOUNDTRACK_RATE // FRAMES_PER_SECOND
    pictures = list(frames)
    video.write_video(path, pictures, sound[:, :length], len(pictures), {})
    return path
