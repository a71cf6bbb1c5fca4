"""The speakers' boxes over the picture, dragged with the mouse or moved by arrow keys."""

from contextlib import suppress
from pathlib import Path

import anywidget
import traitlets

from talkinghead_lab.errors import TalkingHeadError
from talkinghead_lab.foundation.paths import local_file
from talkinghead_lab.media.reference import open_reference
from talkinghead_lab.params import GenerationParams
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

    _shown: object = None

    def show(self, params: GenerationParams) -> None:
        """Show the boxes of a request over its first picture, also where they do not fit the frame.

        Nothing is read again unless one of the two has changed.
        """
        wanted = params.image_path, params.speaker_boxes
        if wanted == self._shown:
            return
        self._shown, picture = wanted, None
        if params.speaker_boxes:
            with suppress(TalkingHeadError):  # the preview of the frame says why there is none
                picture = open_reference(local_file(params.pictures[0].file)).frame_at(0.0)
        with self.hold_sync():
            self.size = list(picture.size) if picture else []
            self.picture = jpeg_url(picture) if picture else ""
            self.boxes = [list(box) for box in params.speaker_boxes or ()]
