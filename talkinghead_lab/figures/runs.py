"""Figures and tables of a run: its inputs and its video."""

import html
import io
import math
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import matplotlib
import numpy as np
from IPython.display import HTML, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from PIL import Image

from talkinghead_lab.figures.labels import column_title, value_label
from talkinghead_lab.foundation.html_media import video_html
from talkinghead_lab.foundation.latent_grid import FRAMES_PER_SECOND, first_frame
from talkinghead_lab.foundation.paths import local_file
from talkinghead_lab.media import audio
from talkinghead_lab.media.frame_size import Box, fit_image
from talkinghead_lab.media.reference import open_reference
from talkinghead_lab.media.resampled_track import to_mono
from talkinghead_lab.media.timeline import lay_out
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.pipeline.portrait import FramedPicture, frame_picture
from talkinghead_lab.pipeline.request import chunks_of
from talkinghead_lab.runs.history import growing_video
from talkinghead_lab.runs.result import GenerationResult

INK = "#1f2933"  # on white
AXES_INK = "#6e7681"  # read on light and on dark pages: figures have no background of their own
SPEAKER_COLORS = ("#2b6cb0", "#c05621")
CROP_COLOR = "#d53f8c"
STYLE: dict[Any, Any] = {
    "font.size": 9.5, "axes.titlesize": 10.5, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": AXES_INK,
    "axes.labelcolor": AXES_INK, "axes.titlecolor": AXES_INK, "text.color": AXES_INK,
    "xtick.color": AXES_INK, "ytick.color": AXES_INK,
    "axes.linewidth": 0.7, "xtick.major.width": 0.7, "ytick.major.width": 0.7, "legend.frameon": False,
    "figure.facecolor": "none", "axes.facecolor": "none", "svg.fonttype": "none",
    "text.parse_math": False,  # a dollar sign in a prompt or a file's name is no formula
}  # fmt: skip
SCREEN_DPI = 96
WAVEFORM_COLUMNS = 1500  # of a waveform; more than a printed page resolves


class NotebookFigure(Figure):
    """A figure that a notebook shows at twice the screen resolution, without pyplot."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        picture = io.BytesIO()
        self.savefig(picture, format="png", dpi=2 * SCREEN_DPI)
        width, height = (round(SCREEN_DPI * inches) for inches in self.get_size_inches())
        return picture.getvalue(), {"width": width, "height": height}


class GrowingPlayer:
    """Plays a run's video in a notebook while it is made: a context manager that shows nothing afterwards.

    Call it with the run's folder whenever the video has grown, as `generate(on_growth=...)` does. Playback
    goes on where it was.
    """

    def __init__(self) -> None:
        self._place = f"growing-{secrets.token_hex(4)}"
        self._shown: Any = None

    def __enter__(self) -> Self:
        """Take a place among the outputs of the cell."""
        self._shown = display(HTML(""), display_id=self._place)  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        """Clear it, so that the notebook does not keep the video twice."""
        self._update("")

    def __call__(self, folder: Path) -> None:
        """Show what is finished of the run in a folder."""
        content = growing_video(folder)
        if content is not None:
            time = f"window['{self._place}']"
            follow = f'ontimeupdate="{time} = this.currentTime" '
            begin = f'onloadedmetadata="this.currentTime = {time} || 0"'
            self._update(video_html(content, f"controls autoplay {follow}{begin}"))

    def _update(self, text: str) -> None:
        if self._shown is not None:  # None: not in a notebook
            self._shown.update(HTML(text))  # type: ignore[no-untyped-call]


def video_player(path: Path) -> HTML:
    """A player of a video for a notebook, which keeps the video and plays it in any folder."""
    return HTML(video_html(path.read_bytes()))  # type: ignore[no-untyped-call]


def portrait_and_waveform(params: GenerationParams) -> NotebookFigure:
    """The picture with the part in the frame, the frame, and each speaker's waveform with the chunk borders.

    Raises:
        MediaError: the picture or a recording cannot be read.
        InvalidRequest: the request's crop, padding or speaker boxes cannot be used with the picture.
    """
    picture = frame_picture(params)
    voices = _voices(params)
    with matplotlib.rc_context(STYLE):
        figure = NotebookFigure(figsize=(10, 2.9), layout="constrained")
        columns = figure.add_gridspec(1, 3, width_ratios=(1, 1, 2.6))
        _draw_picture(figure.add_subplot(columns[0]), picture, params.speaker_boxes or ())
        _draw_frame(figure.add_subplot(columns[1]), picture)
        rows = columns[2].subgridspec(len(voices), 1)
        first = None
        for number, wave in enumerate(voices):
            axes = figure.add_subplot(rows[number], sharex=first)
            first = first or axes
            _draw_waveform(axes, wave, SPEAKER_COLORS[number])
            if len(voices) == 2:
                axes.set(title=("First speaker", "Second speaker")[number], ylabel="amplitude")
        _mark_chunks(figure.axes[2:], params, len(voices[0]) / audio.SOUNDTRACK_RATE)
        figure.axes[-1].set_xlabel("time (s)")
    return figure


def frames_with_sound(result: GenerationResult, frames: int = 9) -> NotebookFigure:
    """Frames of a finished video above the loudness of its sound, on a shared time axis."""
    duration = result.duration_seconds
    video = open_reference(result.video_path)
    frames = min(frames, result.frame_count)
    seconds = (np.arange(frames) + 0.5) * duration / frames
    pictures = [video.frame_at(time) for time in seconds]
    strip_inches = 9.2 / frames * pictures[0].height / pictures[0].width
    with matplotlib.rc_context(STYLE):
        figure = NotebookFigure(figsize=(10, strip_inches + 2.1))
        above, below = _stacked_axes(figure, (strip_inches, 1.2))
        _draw_strip(above, pictures, duration)
        above.set_title(f"{result.frame_count} frames, {result.resolution} pixels, {duration:.2f} s")
        _draw_loudness(below, to_mono(audio.read_soundtrack(result.video_path), audio.SOUNDTRACK_RATE))
        below.vlines(
            seconds, 0, 1, transform=below.get_xaxis_transform(), color=AXES_INK, alpha=0.6, linewidth=0.8
        )
        below.set(xlim=(0, duration), xlabel="time (s)")
    return figure


def table(rows: Sequence[Mapping[str, Any]] | Mapping[str, Any]) -> HTML:
    """Rows with equal keys as an HTML table, in words.

    A mapping becomes a table of two columns; its keys are written out where they are names of the package.
    """
    if isinstance(rows, Mapping):
        rows = [
            {"": column_title(name) if "_" in name else name, "value": value} for name, value in rows.items()
        ]
    names = [column_title(name) for name in rows[0]] if rows else []
    head = "".join(f"<th style='text-align:left'>{_escaped(name)}</th>" for name in names)
    cells = [
        "".join(f"<td style='text-align:left'>{_escaped(row[name])}</td>" for name in rows[0]) for row in rows
    ]
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    document = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return HTML(document)  # type: ignore[no-untyped-call]  # IPython is not annotated


def _escaped(value: object) -> str:
    if value is None or value == "":
        return "—" if value is None else ""
    return html.escape(f"{value:.4g}" if isinstance(value, float) else value_label(value))


def _voices(params: GenerationParams) -> list[NDArray[np.float32]]:
    """What each speaker says on the time axis of the video, as it is heard: [samples] at 48 kHz."""
    own = {"audio_path": (params.audio_track, params.audio_start)}
    sounds = [
        audio.read_recording(local_file(path), *own.get(field, ()))
        for field, path in params.recordings.items()
    ]
    speakers = [part.speaker for part in params.segments or ()] or range(1, 1 + len(sounds))
    found = []
    for number in range(1, 1 + params.voices):
        heard = [
            sound if speaker == number else replace(sound, soundtrack=np.zeros_like(sound.soundtrack))
            for sound, speaker in zip(sounds, speakers, strict=True)
        ]
        _, track, _ = lay_out(heard, params.audio_mix, params.segments or (), params.speaker_loudness or ())
        found.append(to_mono(track, audio.SOUNDTRACK_RATE))
    return found


def marked_people(image_path: str, boxes: Sequence[Box]) -> NotebookFigure:
    """A picture with speaker boxes in the colours of the first speaker and of all others.

    Raises:
        MediaError: the picture cannot be read.
    """
    picture = open_reference(local_file(image_path)).frame_at(0.0)
    with matplotlib.rc_context(STYLE):
        figure = NotebookFigure(figsize=(6, 6 * picture.height / picture.width + 0.4), layout="constrained")
        axes = figure.add_subplot()
        axes.imshow(picture)
        _draw_boxes(axes, zip(boxes, region_colors(len(boxes)), strict=True))
        _without_ticks(axes, picture.size)
    return figure


def _draw_boxes(axes: Axes, marked: Iterable[tuple[Box, str]]) -> None:
    for (left, top, right, bottom), color in marked:
        corner = left - 0.5, top - 0.5
        axes.add_patch(Rectangle(corner, right - left, bottom - top, fill=False, ec=color, lw=2))


def region_colors(count: int) -> tuple[str, ...]:
    """The colours of the speakers' regions; those after the first two belong to silent people."""
    return (SPEAKER_COLORS + SPEAKER_COLORS[1:] * count)[:count]


def _draw_picture(axes: Axes, picture: FramedPicture, boxes: Sequence[Box]) -> None:
    """Draw the whole picture, the part of it that the frame shows, and the speakers' boxes or masks."""
    width, height = picture.reference.size
    axes.imshow(picture.reference.frame_at(0.0))
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    marked = [(picture.placement.kept, CROP_COLOR), *zip(boxes, region_colors(len(boxes)), strict=True)]
    _draw_boxes(axes, marked)
    for mask, color in zip(picture.masks, region_colors(len(picture.masks)), strict=True):
        axes.contour(mask, levels=[0.5], colors=[color], linewidths=2)
    axes.set_title("Picture and speakers" if len(boxes) or picture.masks else "Picture")
    _without_ticks(axes, (width, height))


def _draw_frame(axes: Axes, picture: FramedPicture) -> None:
    axes.imshow(fit_image(picture.reference.frame_at(0.0), picture.frame_size, picture.framing))
    axes.set_title("In the frame")
    _without_ticks(axes, picture.frame_size)


def _without_ticks(axes: Axes, size: tuple[int, int]) -> None:
    axes.set(xticks=[], yticks=[], xlabel="{} × {} pixels".format(*size))
    axes.spines[:].set_visible(False)


def _draw_waveform(axes: Axes, wave: NDArray[np.float32], color: str) -> None:
    """Draw minimum and maximum of the samples in each column of the plot, so that no peak is lost."""
    columns = np.array_split(wave, min(WAVEFORM_COLUMNS, len(wave)))
    seconds = np.linspace(0, len(wave) / audio.SOUNDTRACK_RATE, len(columns))
    low, high = (np.array([end(column) for column in columns]) for end in (np.min, np.max))
    axes.fill_between(seconds, low, high, color=color, linewidth=0.4)
    loudest = 1.08 * max(high.max(), -low.min(), 0.01)
    axes.set(
        title="Recording", ylabel="amplitude (of full scale)", xlim=(0, seconds[-1]), ylim=(-loudest, loudest)
    )


def _mark_chunks(panels: Sequence[Axes], params: GenerationParams, seconds: float) -> None:
    """Mark the first new frame of every chunk after the first; fade the audio beyond `max_frames`."""
    frames = max(1, math.floor(seconds * FRAMES_PER_SECOND))
    used = min(frames, params.max_frames or frames)
    starts = [first_frame(shot.start) for shot in params.pictures[1:]]
    chunks = chunks_of(params, used, [start for start in starts if start < used])
    for axes in panels:
        if used < frames:
            axes.axvspan(used / FRAMES_PER_SECOND, seconds, color=AXES_INK, alpha=0.45, linewidth=0, zorder=2)
        for chunk in chunks[1:]:
            axes.axvline(
                (chunk.start + chunk.repeated) / FRAMES_PER_SECOND, color=AXES_INK, lw=0.8, ls=(0, (4, 3))
            )
    if len(chunks) > 1:
        panels[0].set_title(f"{len(chunks)} chunks", loc="right", fontweight="normal", fontsize=9.5)


def _stacked_axes(figure: Figure, inches: tuple[float, float]) -> tuple[Axes, Axes]:
    """Two axes as wide as the figure, of exactly these heights, so that pictures keep their aspect ratio."""
    width, height = figure.get_size_inches()
    left, right, bottom, gap = 0.65, 0.15, 0.5, 0.1
    lower = (left / width, bottom / height, (width - left - right) / width, inches[1] / height)
    upper = (lower[0], (bottom + inches[1] + gap) / height, lower[2], inches[0] / height)
    return figure.add_axes(upper), figure.add_axes(lower)


def _draw_strip(axes: Axes, pictures: Sequence[Image.Image], duration: float) -> None:
    """Draw pictures side by side, each centred on its time."""
    step = duration / len(pictures)
    for number, picture in enumerate(pictures):
        extent = ((number + 0.01) * step, (number + 0.99) * step, 0, 1)
        axes.imshow(picture, extent=extent, aspect="auto", interpolation="lanczos")
    axes.set(xlim=(0, duration), ylim=(0, 1), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _draw_loudness(axes: Axes, wave: NDArray[np.float32]) -> None:
    """Draw the RMS level of the sound during each video frame, in dBFS."""
    samples = audio.SOUNDTRACK_RATE // FRAMES_PER_SECOND
    used = len(wave) // samples * samples
    power = np.square(wave[:used].reshape(-1, samples)).mean(axis=1)
    level = 10 * np.log10(np.maximum(power, 1e-6))
    seconds = (np.arange(len(level)) + 0.5) / FRAMES_PER_SECOND
    axes.fill_between(seconds, -60, level, color=SPEAKER_COLORS[0], alpha=0.85, linewidth=0)
    axes.set(ylim=(-60, 0), yticks=[-60, -40, -20, 0], ylabel="sound (dBFS)")
