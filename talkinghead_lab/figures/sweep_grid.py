"""A sweep's videos side by side in one."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars
from PIL import Image, ImageDraw, ImageFont

from talkinghead_lab.errors import InvalidRequest
from talkinghead_lab.figures.labels import axis_values, described
from talkinghead_lab.figures.runs import INK
from talkinghead_lab.media import audio, video
from talkinghead_lab.sweeps.statistics import PAIRED_BY

LABEL_HEIGHT = 22  # pixels above each video


def grid_video(
    table: polars.DataFrame, folder: str | Path, x: str, y: str | None = None, width: int = 160
) -> Path:
    """One labelled video of a sweep's videos side by side, `grid.mp4`, with the sound of the first.

    Of several seeds, portraits or recordings the first of the table is shown. A video that ends before the
    others keeps its last frame.

    Args:
        table: of `sweeps.results`.
        folder: of the sweep; a grid that is there is replaced.
        x, y: axes of the sweep: what differs from left to right, and from bottom to top.
        width: of each video in pixels, even.

    Raises:
        InvalidRequest: no run is finished.
    """
    folder = Path(folder)
    finished = table.filter(polars.col("state") == "finished")
    if finished.is_empty():
        raise InvalidRequest("no run is finished")
    repeats = [name for name in PAIRED_BY if name in table.columns]
    first = finished.row(0, named=True)
    for name in repeats:
        finished = finished.filter(polars.col(name).eq_missing(first[name]))
    axes = [axis for axis in (x, y) if axis]
    columns, rows = axis_values(finished, x), axis_values(finished, y) if y else [None]
    shown = {(cell[x], cell[y] if y else None): cell for cell in finished.iter_rows(named=True)}
    facts = [video.probe(folder / cell["video_path"]) for cell in shown.values()]
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
    video.write_video(path, frames, audio.read_soundtrack(folder / first["video_path"]), count, {})
    return path


def _tile(
    cell: dict[str, Any] | None, folder: Path, axes: list[str], size: tuple[int, int]
) -> Iterator[Image.Image]:
    """Frames of one video with its label above, the last one for ever; grey where there is no video."""
    blank = Image.new("RGB", (size[0], size[1] + LABEL_HEIGHT), "white")
    if cell is None:
        blank.paste("#cbd5e0", (0, LABEL_HEIGHT, size[0], size[1] + LABEL_HEIGHT))
        yield from itertools.repeat(blank)
        return
    label = described(cell, axes)
    ImageDraw.Draw(blank).text((4, 4), label, fill=INK, font=_font(label, size[0] - 8))
    picture = blank
    for pixels in video.read_frames(folder / cell["video_path"]):
        picture = blank.copy()
        picture.paste(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS), (0, LABEL_HEIGHT))
        yield picture
    yield from itertools.repeat(picture)


def _font(label: str, width: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The largest font of at most 12 pixels in which a label is no wider; 6 at the least."""
    fonts = [ImageFont.load_default(size=size) for size in range(12, 5, -1)]
    return next((font for font in fonts if font.getlength(label) <= width), fonts[-1])


def _composed(tiles: list[Iterator[Image.Image]], columns: int, count: int) -> Iterator[video.Frames]:
    for _ in range(count):
        pictures = [np.asarray(next(tile)) for tile in tiles]
        rows = [np.concatenate(pictures[k : k + columns], axis=1) for k in range(0, len(pictures), columns)]
        yield np.concatenate(rows)[None]
