"""Choosing a portrait or a recording, with a look at it: a sample, a file in `shared/`, a path, an upload."""

import base64
import html
import io
import mimetypes
from pathlib import Path
from typing import Any, Literal

import ipywidgets as widgets
import numpy as np
from PIL import Image
from traitlets import Unicode

from talkinghead_lab.errors import TalkingHeadError
from talkinghead_lab.foundation.files import atomic_path
from talkinghead_lab.foundation.paths import SAMPLE_PREFIX, SAMPLES_FOLDER, local_file, project_folder
from talkinghead_lab.media import audio
from talkinghead_lab.media.reference import is_video, open_reference

Kind = Literal["picture", "sound"]
VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi")
SUFFIXES: dict[Kind, tuple[str, ...]] = {
    "picture": (".png", ".jpg", ".jpeg", ".webp", ".bmp", *VIDEOS),
    "sound": (".wav", ".mp3", ".m4a", ".flac", ".ogg", ".opus", ".aac", *VIDEOS),
}
ACCEPTED: dict[Kind, str] = {"picture": "image/*,video/*", "sound": "audio/*,video/*"}
LARGEST_PLAYER = 10_000_000  # bytes of a file that is sent to the browser
THUMBNAIL = (320, 320)
WAVEFORM_BARS = 120


class MediaPicker(widgets.VBox):
    """Chooses one file; `value` is its path, or `sample:NAME`.

    Args:
        kind: what is chosen.
        folder: where uploads go, and whose files are offered; unset: `shared/` of the project.
    """

    value = Unicode()

    def __init__(self, kind: Kind, folder: Path | None = None) -> None:
        self.kind, self.folder = kind, folder or project_folder() / "shared"
        self.look = widgets.HTML()
        self.look.add_class(f"thl-{kind}")
        self.known = widgets.Dropdown(tooltip="files that ship with the package, and those in shared/")
        self.path = widgets.Text(placeholder="or the path of another file", continuous_update=False)
        self.upload = widgets.FileUpload(accept=ACCEPTED[kind], description="Upload")
        self.upload.tooltip = "goes into shared/; copy files of more than 10 MB there yourself"
        row = widgets.HBox([self.path, self.upload])
        row.add_class("thl-row")
        choice = widgets.VBox([self.known, row])
        choice.add_class("thl-choice")
        super().__init__([self.look, choice])
        self.add_class("thl-picker")
        self.known.observe(self._chosen, "value")
        self.path.observe(self._typed, "value")
        self.upload.observe(self._uploaded, "value")
        self.observe(self._show, "value")
        self._offer()

    def choose_first(self) -> None:
        """Choose the first file that is offered."""
        self.value = self.known.options[0][1]

    def _offer(self) -> None:
        """List what there is, the present choice among it."""
        offered = {path: _label(path) for path in offered_files(self.kind, self.folder)}
        if self.value:
            offered.setdefault(self.value, _label(self.value))
        self.known.unobserve(self._chosen, "value")  # new options choose their first one
        self.known.options = [(label, path) for path, label in offered.items()]
        self.known.value = self.value or None
        self.known.observe(self._chosen, "value")

    def _show(self, change: object) -> None:
        self._offer()
        try:
            file = local_file(self.value)
            self.look.value = picture_html(file) if self.kind == "picture" else sound_html(file)
        except TalkingHeadError as error:
            self.look.value = f'<span class="thl-error">{html.escape(error.problem)}</span>'

    def _chosen(self, change: Any) -> None:
        if change["new"]:
            self.value = change["new"]

    def _typed(self, change: Any) -> None:
        typed = change["new"].strip()
        if typed:
            self.value = (
                typed if typed.startswith(SAMPLE_PREFIX) else str(project_folder() / Path(typed).expanduser())
            )
            self.path.value = ""

    def _uploaded(self, change: Any) -> None:
        for file in change["new"]:
            try:
                self.value = str(keep_upload(self.folder, file["name"], bytes(file["content"])))
            except TalkingHeadError as error:
                self.look.value = f'<span class="thl-error">{html.escape(str(error))}</span>'


def offered_files(kind: Kind, folder: Path) -> list[str]:
    """Shipped samples of a kind, then files of that kind in the folder."""
    silent = VIDEOS if kind == "sound" else ()
    shipped = [file for file in _of_kind(SAMPLES_FOLDER, kind) if file.suffix not in silent]
    samples = [f"{SAMPLE_PREFIX}{file.stem}" for file in shipped]
    return samples + [str(file) for file in _of_kind(folder, kind)]


def _of_kind(folder: Path, kind: Kind) -> list[Path]:
    if not folder.is_dir():
        return []
    found = [file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES[kind]]
    return sorted(found, key=lambda file: file.stem)


def _label(path: str) -> str:
    if path.startswith(SAMPLE_PREFIX):
        return f"{path.removeprefix(SAMPLE_PREFIX)} (sample)"
    within = Path(path).is_relative_to(project_folder())
    return str(Path(path).relative_to(project_folder())) if within else path


def keep_upload(folder: Path, name: str, content: bytes) -> Path:
    """Write an uploaded file into the folder; the same file sent again is not written twice.

    Raises:
        OutputError: a file of this name with other content is there, or nothing can be written.
    """
    path = folder / Path(name).name
    if path.is_file() and path.read_bytes() == content:
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return path


def picture_html(file: Path) -> str:
    """A portrait's thumbnail, or a driving video in a player where it is small enough, with its size.

    Raises:
        MediaError: neither a picture nor a video.
    """
    source = open_reference(file)
    size = "{} × {}".format(*source.size)
    if is_video(file) and file.suffix == ".mp4" and file.stat().st_size <= LARGEST_PLAYER:
        content = data_url(file.read_bytes(), "video/mp4")
        return f'<video controls muted loop src="{content}"></video><span>{size}</span>'
    picture = source.frame_at(0.0).convert("RGB")
    return f'<img alt="the portrait" src="{jpeg_url(picture)}"><span>{size}</span>'


def jpeg_url(picture: Image.Image) -> str:
    """A small copy of a picture, as a data URL."""
    small, file = picture.copy(), io.BytesIO()
    small.thumbnail(THUMBNAIL)
    small.save(file, "jpeg", quality=88)
    return data_url(file.getvalue(), "image/jpeg")


def data_url(content: bytes, kind: str) -> str:
    """A file's content as a URL."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def sound_html(file: Path) -> str:
    """A recording's waveform, length and player; of a large file its size alone.

    Raises:
        MediaError: not a recording.
    """
    if file.stat().st_size > LARGEST_PLAYER:
        return f"<span>{file.stat().st_size / 1e6:.0f} MB: too large to be played here</span>"
    wave = audio.read_soundtrack(file)
    kind = mimetypes.guess_type(file.name)[0] or "audio/mp4"
    player = f'<audio controls src="{data_url(file.read_bytes(), kind)}"></audio>'
    return f"{_waveform(wave)}<span>{wave.shape[1] / audio.SOUNDTRACK_RATE:.1f} s</span>{player}"


def _waveform(wave: audio.Wave) -> str:
    """The loudest samples of equally long stretches, as bars in the colour of the text around them."""
    stretches = np.array_split(np.abs(wave).max(axis=0), WAVEFORM_BARS)
    peaks = np.array([stretch.max() if len(stretch) else 0.0 for stretch in stretches])
    heights = np.maximum(1.0, 38 * peaks / max(1e-6, peaks.max()))
    bars = "".join(
        f'<rect x="{3 * place}" y="{20 - height / 2:.1f}" width="2" height="{height:.1f}" rx="1"/>'
        for place, height in enumerate(heights)
    )
    box = f"0 0 {3 * WAVEFORM_BARS} 40"
    return f'<svg viewBox="{box}" preserveAspectRatio="none" aria-hidden="true">{bars}</svg>'
