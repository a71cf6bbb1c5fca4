"""The videos of a sweep as one grid video."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars
from PIL import Image, ImageDraw, ImageFont

from talkinghead_lab.errors import InvalidRequest, MediaError
from talkinghead_lab.figures.fonts import font
from talkinghead_lab.figures.labels import axis_values, cell_label
from talkinghead_lab.figures.runs import INK
from talkinghead_lab.media import audio, video
from talkinghead_lab.sweeps.statistics import PAIRED_BY

LABEL_HEIGHT = 22  # pixels above each video


def grid_video(
    table: polars.DataFrame, folder: str | Path, x: str, y: str | None = None, width: int = 160
) -> Path:
    """Write `grid.mp4`: the sweep's videos side by side with labels, and the sound of the first.

    Only the first seed, portrait and recording of the table are shown. A shorter video holds its last
    frame.

    Args:
        table: from `sweeps.sweep.results`.
        folder: folder of the sweep; an existing grid is replaced.
        x: axis of the sweep from left to right.
        y: axis of the sweep from bottom to top.
        width: of each video in pixels, even.

    Raises:
        InvalidRequest: no run is finished, or no video can be read.
    """
    folder = Path(folder)
    finished = table.filter(polars.col("state") == "finished")
    if finished.is_empty():
        raise InvalidRequest("no run is finished")
    first = finished.row(0, named=True)
    for name in set(PAIRED_BY).intersection(table.columns):
        finished = finished.filter(polars.col(name).eq_missing(first[name]))
    axes = [axis for axis in (x, y) if axis]
    columns, rows = axis_values(finished, x), axis_values(finished, y) if y else [None]
    shown = {(cell[x], cell[y] if y else None): cell for cell in finished.iter_rows(named=True)}
    known = {place: _facts(folder / cell["video_path"]) for place, cell in shown.items()}
    shown = {place: cell for place, cell in shown.items() if known[place] is not None}
    facts = [found for found in known.values() if found is not None]
    if not facts:
        raise InvalidRequest("no video can be read")
    height = 2 * round(width * facts[0].height / facts[0].width / 2)
    tiles = [
        _tile(shown.get((column, row)), folder, axes, (width, height))
        for row in reversed(rows)
        for column in columns
    ]
    count = max(found.frame_count for found in facts)
    frames = _composed(tiles, len(columns), count)
    path = folder / "grid.mp4"
    path.unlink(missing_ok=True)
    sound = audio.read_soundtrack(folder / next(iter(shown.values()))["video_path"])
    video.write_video(path, frames, sound, count, {})
    return path


def _facts(path: Path) -> video.VideoFacts | None:
    """Properties of a video; None if it is damaged, which leaves its place in the grid grey."""
    try:
        return video.probe(path)
    except MediaError:
        return None


def _tile(
    cell: dict[str, Any] | None, folder: Path, axes: list[str], size: tuple[int, int]
) -> Iterator[Image.Image]:
    """Frames of one video below its label, the last one repeated forever; grey if there is no video."""
    blank = Image.new("RGB", (size[0], size[1] + LABEL_HEIGHT), "white")
    if cell is None:
        blank.paste("#cbd5e0", (0, LABEL_HEIGHT, size[0], size[1] + LABEL_HEIGHT))
        yield from itertools.repeat(blank)
        return
    label = cell_label(cell, axes)
    ImageDraw.Draw(blank).text((4, 4), label, fill=INK, font=_font(label, size[0] - 8))
    picture = blank
    for pixels in video.read_frames(folder / cell["video_path"]):
        picture = blank.copy()
        picture.paste(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS), (0, LABEL_HEIGHT))
        yield picture
    yield from itertools.repeat(picture)


def _font(label: str, width: int) -> ImageFont.FreeTypeFont:
    """The largest font, 12 to 6 pixels, in which a label fits the width."""
    fonts = [font(size) for size in range(12, 5, -1)]
    return next((each for each in fonts if each.getlength(label) <= width), fonts[-1])


def _composed(tiles: list[Iterator[Image.Image]], columns: int, count: int) -> Iterator[video.Frames]:
    for _ in range(count):
        pictures = [np.asarray(next(tile)) for tile in tiles]
        rows = [np.concatenate(pictures[k : k + columns], axis=1) for k in range(0, len(pictures), columns)]
        yield np.concatenate(rows)[None]
