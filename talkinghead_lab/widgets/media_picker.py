"""Widget to choose a portrait or recording (sample, file in `shared/`, path or upload), with a preview."""

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
from talkinghead_lab.foundation.html_media import data_url, video_html
from talkinghead_lab.foundation.paths import SAMPLE_PREFIX, SAMPLES_FOLDER, local_file, project_folder
from talkinghead_lab.media import audio
from talkinghead_lab.media.reference import Portrait, open_reference

MediaKind = Literal["picture", "sound"]
VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi")
SUFFIXES: dict[MediaKind, tuple[str, ...]] = {
    "picture": (".png", ".jpg", ".jpeg", ".webp", ".bmp", *VIDEOS),
    "sound": (".wav", ".mp3", ".m4a", ".flac", ".ogg", ".opus", ".aac", *VIDEOS),
}
ACCEPTED: dict[MediaKind, str] = {"picture": "image/*,video/*", "sound": "audio/*,video/*"}
LARGEST_PREVIEW = 10_000_000  # bytes of a file that is sent to the browser
THUMBNAIL_SIZE = (320, 320)  # pixels
WAVEFORM_BARS = 120


class MediaPicker(widgets.VBox):  # type: ignore[misc]  # ipywidgets is untyped
    """Chooses one file; `value` is its path or `sample:NAME`.

    Args:
        kind: picture (portraits and driving videos) or sound.
        folder: folder of the files on offer and of uploads; default: `shared/` of the project.
        name: what is chosen, for screen readers.
    """

    value = Unicode()

    def __init__(self, kind: MediaKind, folder: Path | None = None, name: str = "File") -> None:
        self.kind, self.folder = kind, folder or project_folder() / "shared"
        self.preview = widgets.HTML()
        self.preview.add_class(f"thl-{kind}")
        self.known = widgets.Dropdown(description=name, tooltip="samples of the package and files in shared/")
        self.path = widgets.Text(
            description=f"{name}: path",
            placeholder="or the path of another file",
            continuous_update=False,
        )
        self.upload = widgets.FileUpload(accept=ACCEPTED[kind], description="Upload")
        self.upload.tooltip = "saved to shared/; copy files larger than 10 MB there yourself"
        row = widgets.HBox([self.path, self.upload])
        row.add_class("thl-row")
        choice = widgets.VBox([self.known, row])
        choice.add_class("thl-choice")
        super().__init__([self.preview, choice])
        self.add_class("thl-picker")
        self.known.observe(self._chosen, "value")
        self.path.observe(self._typed, "value")
        self.upload.observe(self._uploaded, "value")
        self.observe(self._show, "value")
        self._offer()

    def choose_first(self) -> None:
        """Choose the first file on offer."""
        self.value = self.known.options[0][1]

    def _offer(self) -> None:
        """List the files on offer, including the current choice."""
        offered = {path: _label(path) for path in offered_files(self.kind, self.folder)}
        if self.value:
            offered.setdefault(self.value, _label(self.value))
        self.known.unobserve(self._chosen, "value")  # setting options selects the first one
        self.known.options = [(label, path) for path, label in offered.items()]
        self.known.value = self.value or None
        self.known.observe(self._chosen, "value")

    def _show(self, change: object) -> None:
        self._offer()
        try:
            file = local_file(self.value)
            self.preview.value = picture_html(file) if self.kind == "picture" else sound_html(file)
        except TalkingHeadError as error:
            self.preview.value = f'<span class="thl-error">{html.escape(error.problem)}</span>'

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
                self.value = str(save_upload(self.folder, file["name"], bytes(file["content"])))
            except TalkingHeadError as error:
                self.preview.value = f'<span class="thl-error">{html.escape(str(error))}</span>'


def offered_files(kind: MediaKind, folder: Path) -> list[str]:
    """The package's samples of a kind, then the folder's files of that kind."""
    silent = VIDEOS if kind == "sound" else ()  # the sample videos have no sound
    shipped = [file for file in _of_kind(SAMPLES_FOLDER, kind) if file.suffix not in silent]
    samples = [f"{SAMPLE_PREFIX}{file.stem}" for file in shipped]
    return samples + [str(file) for file in _of_kind(folder, kind)]


def _of_kind(folder: Path, kind: MediaKind) -> list[Path]:
    if not folder.is_dir():
        return []
    found = [file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES[kind]]
    return sorted(found, key=lambda file: file.stem)


def _label(path: str) -> str:
    if path.startswith(SAMPLE_PREFIX):
        return f"{path.removeprefix(SAMPLE_PREFIX)} (sample)"
    within = Path(path).is_relative_to(project_folder())
    return str(Path(path).relative_to(project_folder())) if within else path


def save_upload(folder: Path, name: str, content: bytes) -> Path:
    """Save an uploaded file in the folder, unless the same file is already there.

    Raises:
        OutputError: the folder has a different file of this name, or cannot be written.
    """
    path = folder / Path(name).name
    if path.is_file() and path.read_bytes() == content:
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return path


def picture_html(file: Path) -> str:
    """Size and thumbnail of a portrait, or a player for a driving video that is not too large.

    Raises:
        MediaError: the file is neither a picture nor a video.
    """
    source = open_reference(file)
    size = "{} × {}".format(*source.size)
    if not isinstance(source, Portrait) and file.suffix == ".mp4" and file.stat().st_size <= LARGEST_PREVIEW:
        return f"{video_html(file.read_bytes(), 'controls muted loop')}<span>{size}</span>"
    picture = source.frame_at(0.0).convert("RGB")
    return f'<img alt="the portrait" src="{jpeg_url(picture)}"><span>{size}</span>'


def jpeg_url(picture: Image.Image) -> str:
    """A thumbnail of a picture as a data URL."""
    small, file = picture.copy(), io.BytesIO()
    small.thumbnail(THUMBNAIL_SIZE)
    small.save(file, "jpeg", quality=88)
    return data_url(file.getvalue(), "image/jpeg")


def sound_html(file: Path) -> str:
    """Waveform, length and player of a recording; only the size of a large file.

    Raises:
        MediaError: the file has no sound that can be read.
    """
    if file.stat().st_size > LARGEST_PREVIEW:
        return f"<span>{file.stat().st_size / 1e6:.0f} MB: too large to play here</span>"
    wave = audio.read_soundtrack(file)
    mime_type = mimetypes.guess_type(file.name)[0] or "audio/mp4"
    player = f'<audio controls src="{data_url(file.read_bytes(), mime_type)}"></audio>'
    return f"{_waveform(wave)}<span>{wave.shape[1] / audio.SOUNDTRACK_RATE:.1f} s</span>{player}"


def _waveform(wave: audio.Wave) -> str:
    """The peak of each of WAVEFORM_BARS equal segments as SVG bars in the text colour."""
    segments = np.array_split(np.abs(wave).max(axis=0), WAVEFORM_BARS)
    peaks = np.array([segment.max() if len(segment) else 0.0 for segment in segments])
    heights = np.maximum(1.0, 38 * peaks / max(1e-6, peaks.max()))
    bars = "".join(
        f'<rect x="{3 * index}" y="{20 - height / 2:.1f}" width="2" height="{height:.1f}" rx="1"/>'
        for index, height in enumerate(heights)
    )
    box = f"0 0 {3 * WAVEFORM_BARS} 40"
    return f'<svg viewBox="{box}" preserveAspectRatio="none" aria-hidden="true">{bars}</svg>'
