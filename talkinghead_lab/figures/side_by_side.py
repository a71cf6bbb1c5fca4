"""Several videos as one: tiles of one height with labels, in step, with the sound of one of them."""

import contextlib
import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from talkinghead_lab.errors import InvalidRequest
from talkinghead_lab.figures.fonts import font
from talkinghead_lab.figures.runs import INK
from talkinghead_lab.foundation.latent_grid import FRAMES_PER_SECOND
from talkinghead_lab.media import audio, video
from talkinghead_lab.media.frame_colors import to_rgb
from talkinghead_lab.media.reference import open_video, timed_frames

LARGEST_SIZE = 1920, 2160  # (W, H) of the whole video in pixels; tiles shrink for it
MOST_TILES = 24
TILE_HEIGHTS = 96, 256, 720  # of the smallest tile, of the largest of small videos, and of large ones
TILES_IN_A_ROW = 4
GAP = 8  # pixels around tiles
FONT_SIZES = range(16, 9, -1)
LABEL_HEIGHT = 2 * GAP + 2 * (FONT_SIZES[0] + 4) + FONT_SIZES[0]  # of a name in two lines
MUTED, DIMMED = "#64748b", 0.35  # of the second line; brightness of a video that has ended


@dataclass(frozen=True)
class Tile:
    """One of the videos.

    Args:
        path: the video.
        name: written above it.
        size: (W, H) in which it is shown.
        facts: of the video.
        is_heard: whether its sound is that of the whole.
    """

    path: Path
    name: str
    size: tuple[int, int]
    facts: video.VideoFacts
    is_heard: bool

    @property
    def note(self) -> str:
        """The second line of the label."""
        size = f"{self.facts.width}×{self.facts.height}, {self.facts.duration_seconds:.2f} s"
        return f"{size}, ♪ its sound" if self.is_heard else size


def side_by_side(path: str | Path, videos: Sequence[Path], names: Sequence[str], heard: int) -> Path:
    """Write a video with other videos in tiles of one height, each under its name.

    All start together and are shown at 25 frames a second by their own times, whatever their rate. One that
    ends before the others stays on its last frame, darkened, and its label says so.

    Args:
        path: the mp4 file to write; its folder exists.
        videos: two or more.
        names: of the videos.
        heard: place of the video whose sound is heard; after its end there is silence.

    Raises:
        InvalidRequest: the name does not end in `.mp4`, or there are too many videos.
        MediaError: a video cannot be read, or the one to be heard has no sound.
        OutputError: the file exists, or cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".mp4":
        raise InvalidRequest("the video is an mp4 file", received=str(path), allowed="a name with .mp4")
    if len(videos) > MOST_TILES:
        raise InvalidRequest("too many videos", received=len(videos), allowed=f"up to {MOST_TILES}")
    facts = [video.probe(each) for each in videos]
    rows = _rows(len(videos))
    height = _tile_height([facts[row.start : row.stop] for row in rows])
    tiles = [
        Tile(each, name, (_tile_width(found, height), height), found, place == heard)
        for place, (each, name, found) in enumerate(zip(videos, names, facts, strict=True))
    ]
    sound = audio.read_soundtrack(videos[heard])
    count = max(_frame_count(found) for found in facts)
    title = f"{' | '.join(names)}; sound: {names[heard]}"
    frames = _composed([tiles[row.start : row.stop] for row in rows], count)
    video.write_video(path, frames, sound, count, {"title": title})
    return path


def _rows(count: int) -> list[range]:
    """Places of the videos in each row; rows are as equal as they can be."""
    columns = math.ceil(count / math.ceil(count / TILES_IN_A_ROW))
    return [range(start, min(start + columns, count)) for start in range(0, count, columns)]


def _tile_height(rows: Sequence[Sequence[video.VideoFacts]]) -> int:
    """The height of all tiles: that of the tallest video, within bounds and as the width allows."""
    smallest, small, large = TILE_HEIGHTS
    height = min(large, max(small, *(found.height for row in rows for found in row)))
    height = min(height, LARGEST_SIZE[1] // len(rows) - LABEL_HEIGHT)
    for row in rows:
        room = LARGEST_SIZE[0] - GAP * (len(row) + 1)
        height = min(height, int(room / sum(found.width / found.height for found in row)))
    return max(smallest, _even(height))


def _tile_width(found: video.VideoFacts, height: int) -> int:
    return max(2, _even(height * found.width / found.height))


def _even(length: float) -> int:
    return 2 * round(length / 2)


def _frame_count(found: video.VideoFacts) -> int:
    return max(1, math.ceil(round(found.duration_seconds * FRAMES_PER_SECOND, 3)))


def _composed(rows: Sequence[Sequence[Tile]], count: int) -> Iterator[video.Frames]:
    """The frames of the whole."""
    labels = [_label_height(row) for row in rows]
    width = max(sum(tile.size[0] for tile in row) + GAP * (len(row) + 1) for row in rows)
    heights = [label + row[0].size[1] + GAP for row, label in zip(rows, labels, strict=True)]
    blank = Image.new("RGB", (_even(width + 1), _even(sum(heights) + 1)), "white")
    places, top = [], 0
    for row, label, height in zip(rows, labels, heights, strict=True):
        left = GAP
        for tile in row:
            places.append((tile, left, top + label))
            _draw_label(blank, tile, (left, top), tile.note)
            left += tile.size[0] + GAP
        top += height
    with contextlib.ExitStack() as ending:
        shown = [_shown(tile) for tile, _, _ in places]
        for each in shown:
            ending.callback(each.close)
        for _ in range(count):
            picture = blank.copy()
            for (tile, left, above), frames in zip(places, shown, strict=True):
                content, has_ended = next(frames)
                picture.paste(content, (left, above))
                if has_ended:
                    label_top = above - _label_height(next(row for row in rows if tile in row))
                    _draw_label(picture, tile, (left, label_top), f"{tile.note}, ended")
            yield np.asarray(picture)[None]


def _shown(tile: Tile) -> Generator[tuple[Image.Image, bool], None, None]:
    """(picture, whether the video has ended) of a tile at every frame of the whole, for ever."""
    picture = Image.new("RGB", tile.size, "black")
    number, last = 0, _frame_count(tile.facts)
    with open_video(tile.path) as (container, stream):
        pending = timed_frames(container, stream)
        following = next(pending, None)
        while number < last:
            newest = None
            while following and following[0] <= (number + 0.5) / FRAMES_PER_SECOND:
                newest, following = following[1], next(pending, None)
            if newest is not None:
                pixels = Image.fromarray(to_rgb(newest))
                picture = pixels.resize(tile.size, Image.Resampling.LANCZOS)
            yield picture, False
            number += 1
    dimmed = picture.point(lambda level: round(level * DIMMED))
    while True:
        yield dimmed, True


def _label_height(row: Sequence[Tile]) -> int:
    """Height of the labels above a row, with a gap above and below."""
    lines = max(len(_name_lines(tile)[1]) for tile in row)
    return 2 * GAP + lines * (FONT_SIZES[0] + 4) + FONT_SIZES[0]


def _draw_label(picture: Image.Image, tile: Tile, place: tuple[int, int], note: str) -> None:
    """Draw name and note of a tile, replacing what is there."""
    draw, (left, top) = ImageDraw.Draw(picture), place
    size, lines = _name_lines(tile)
    height = 2 * GAP + len(lines) * (FONT_SIZES[0] + 4) + FONT_SIZES[0]
    draw.rectangle((left, top, left + tile.size[0] - 1, top + height - 1), fill="white")
    for number, line in enumerate(lines):
        draw.text((left, top + GAP + number * (FONT_SIZES[0] + 4)), line, fill=INK, font=font(size))
    below = top + GAP + len(lines) * (FONT_SIZES[0] + 4)
    fitting = next((size for size in FONT_SIZES[3:] if _width(note, size) <= tile.size[0]), FONT_SIZES[-1])
    draw.text((left, below), note, fill=MUTED, font=font(fitting))


def _name_lines(tile: Tile) -> tuple[int, list[str]]:
    """(font size, one or two lines) of a name; what does not fit at the smallest size ends in `…`."""
    for size in FONT_SIZES:
        lines = _wrapped(tile.name, size, tile.size[0])
        if len(lines) <= 2:
            return size, lines
    return FONT_SIZES[-1], [lines[0], _cut(f"{lines[1]} {lines[2]}", FONT_SIZES[-1], tile.size[0])]


def _wrapped(text: str, size: int, width: int) -> list[str]:
    """Lines of a text that fit a width; broken within words only where a word alone is too long."""
    lines, line = [], ""
    for word in text.split():
        joined = f"{line} {word}".strip()
        if _width(joined, size) > width and line:
            lines.append(line)
            joined = word
        while _width(joined, size) > width and len(joined) > 1:
            fits = next(
                n for n in range(len(joined) - 1, 0, -1) if n == 1 or _width(joined[:n], size) <= width
            )
            lines.append(joined[:fits])
            joined = joined[fits:]
        line = joined
    return [*lines, line]


def _cut(text: str, size: int, width: int) -> str:
    while text and _width(text + "…", size) > width:
        text = text[:-1]
    return text + "…"


def _width(text: str, size: int) -> float:
    return font(size).getlength(text)
