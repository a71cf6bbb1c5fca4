"""A player for several videos side by side: synchronised, with the sound of one of them."""

from pathlib import Path
from typing import TypedDict

import anywidget
import traitlets

from talkinghead_lab.params import GenerationParams
from talkinghead_lab.runs.history import PastRun, chunks, growing_video, in_a_line
from talkinghead_lab.runs.record import read_own_file, size_of_own_file
from talkinghead_lab.runs.result import LARGEST_INLINE_VIDEO

FOLDER = Path(__file__).parent


class Clip(TypedDict):
    """One video or picture in the player.

    `key` identifies the run. If the first clip keeps its key when the clips change, playback continues.
    """

    key: str
    title: str
    note: str
    kind: str
    content: bytes


class Player(anywidget.AnyWidget):
    """Plays its clips in sync; without clips it shows `hint`."""

    _esm = FOLDER / "player.js"
    _css = FOLDER / "panel.css"
    clips: traitlets.List[Clip] = traitlets.List().tag(sync=True)
    hint = traitlets.Unicode().tag(sync=True)


def clip_of_run(run: PastRun, name: str) -> Clip:
    """The video of a finished run, or its contact sheet if the video is too large to send to a browser.

    Raises:
        OutputError: the file is gone, or a link.
    """
    path, kind = run.result.video_path, "video/mp4"
    if size_of_own_file(path) > LARGEST_INLINE_VIDEO:
        path, kind = run.result.contact_sheet_path, "image/png"
    note = in_a_line(run.params)
    return Clip(key=str(run.folder), title=name, note=note, kind=kind, content=read_own_file(path))


def clip_of_growing_video(folder: Path, params: GenerationParams, finished: int) -> Clip | None:
    """The video of an unfinished run with some finished chunks; None: there are no frames yet.

    Raises:
        MediaError: it cannot be read.
    """
    content = growing_video(folder)
    if content is None:
        return None
    title = f"under way: {chunks(finished) if finished else 'first frames'}"
    return Clip(key=str(folder), title=title, note=in_a_line(params), kind="video/mp4", content=content)
