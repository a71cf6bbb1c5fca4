"""The speakers' boxes over the picture, dragged with the mouse or moved by arrow keys."""

from collections.abc import Sequence
from pathlib import Path

import anywidget
import traitlets
from PIL import Image

from talkinghead_lab.media.frame_size import Box
from talkinghead_lab.widgets.media_picker import jpeg_url

FOLDER = Path(__file__).parent
BOXES = FOLDER.parent / "service" / "page" / "boxes.js"  # which the page of the HTTP service uses, too


class BoxEditor(anywidget.AnyWidget):
    """Shows a picture with boxes; without a picture it is empty. `boxes` changes when one is moved."""

    _esm = BOXES.read_text(encoding="utf-8") + (FOLDER / "box_editor.js").read_text(encoding="utf-8")
    _css = FOLDER / "panel.css"
    picture = traitlets.Unicode().tag(sync=True)
    size: traitlets.List[int] = traitlets.List().tag(sync=True)
    boxes: traitlets.List[list[int]] = traitlets.List().tag(sync=True)

    def show(self, picture: Image.Image | None, boxes: Sequence[Box] | None) -> None:
        """Show boxes, [left, top, right, bottom] in pixels of the picture; None: its halves."""
        with self.hold_sync():
            self.size = list(picture.size) if picture else []
            self.picture = jpeg_url(picture) if picture else ""
            self.boxes = [list(box) for box in boxes or ()]
