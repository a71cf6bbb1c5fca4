"""The result of a run: its video, and the player that shows it in a notebook."""

import html
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from talkinghead_lab.errors import OutputError
from talkinghead_lab.foundation.html_media import data_url, video_html
from talkinghead_lab.runs.folder import read_record
from talkinghead_lab.runs.record import read_own_file, size_of_own_file, video_of

LARGEST_INLINE_VIDEO = 50_000_000  # bytes; beyond it a notebook shows the contact sheet alone


@dataclass(frozen=True)
class GenerationResult:
    """A finished video. In a notebook it displays itself."""

    video_path: Path
    duration_seconds: float
    resolution: str
    frame_count: int
    metadata: dict[str, str] = field(repr=False)

    @property
    def run_dir(self) -> Path:
        """Folder of the run."""
        return self.video_path.parent

    @property
    def contact_sheet_path(self) -> Path:
        """Path of the contact sheet."""
        return self.run_dir / "contact_sheet.png"

    def to_json(self) -> dict[str, Any]:
        """Plain values, as the shell and the HTTP interface return them."""
        return asdict(self) | {"video_path": str(self.video_path)}

    @classmethod
    def from_run(cls, run_dir: str | Path) -> "GenerationResult":
        """Read the result of a finished run.

        Raises:
            OutputError: the folder holds no finished run.
        """
        run_dir = Path(run_dir)
        record = read_record(run_dir)
        known = {each.name: record["result"][each.name] for each in fields(cls)}
        return cls(**(known | {"video_path": video_of(run_dir, record)}))

    def _repr_html_(self) -> str:
        """The video in a notebook, embedded; the contact sheet, if the video is too large."""
        caption = f"{self.video_path.name} · {self.resolution} · {self.duration_seconds:.2f} s"
        try:
            shown = self._player()
        except OutputError as error:
            shown = f"<p>{html.escape(str(error))}</p>"
        return f"<figure>{shown}<figcaption>{html.escape(caption)}</figcaption></figure>"

    def _player(self) -> str:
        wide = self.resolution.partition("x")[0]
        width = min(640, max(320, int(wide) if wide.isdecimal() else 0))
        if size_of_own_file(self.video_path) > LARGEST_INLINE_VIDEO:
            sheet = data_url(read_own_file(self.contact_sheet_path), "image/png")
            return f'<img width="{width}" src="{sheet}">'
        return video_html(read_own_file(self.video_path), f'controls width="{width}"')
