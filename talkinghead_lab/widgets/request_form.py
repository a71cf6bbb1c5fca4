"""A form with every field of the request, in groups, that shows and returns `GenerationParams`."""

import html
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from talkinghead_lab.errors import InvalidRequest, TalkingHeadError
from talkinghead_lab.figures.labels import title
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.pipeline.people import propose_boxes
from talkinghead_lab.request_fields import RELEASED_ONLY
from talkinghead_lab.widgets.box_editor import BoxEditor
from talkinghead_lab.widgets.fields import SHOWN_WITH, Control, OnChange, grouped_fields
from talkinghead_lab.widgets.frame_preview import FramePreview
from talkinghead_lab.widgets.media_picker import MediaKind, MediaPicker

FILE_FIELDS: dict[str, MediaKind] = {
    "image_path": "picture",
    "audio_path": "sound",
    "second_audio_path": "sound",
    "continue_video": "picture",
    "lips_mask": "picture",
}
OPEN_GROUPS = ("Inputs", "Guidance", "Sampling")


class RequestForm(widgets.VBox):  # type: ignore[misc]  # ipywidgets is untyped
    """One control per field of the request.

    Args:
        params: the request shown first.
        on_change: called after a value has changed.
        media_folder: folder of the files on offer and of uploads; default: `shared/` of the project.
    """

    def __init__(
        self, params: GenerationParams, on_change: OnChange, media_folder: Path | None = None
    ) -> None:
        self._on_change: OnChange | None = None
        self._loading, self._showing = True, False
        self.loaded, self._checkpoint = params, params.checkpoint
        self.controls: dict[str, Control] = {}
        self.preview = FramePreview()
        sections = []
        for group, names in grouped_fields().items():
            for name in names:
                kind = FILE_FIELDS.get(name)
                picker = MediaPicker(kind, media_folder, title(name)) if kind else None
                self.controls[name] = Control(name, self._changed, picker)
            section = widgets.VBox([self.controls[name] for name in names])
            section.add_class("thl-group")
            opened = 0 if group in OPEN_GROUPS else None
            sections.append(widgets.Accordion([section], titles=(group,), selected_index=opened))
        self.controls["image_path"].children += (self.preview,)
        find, self.people = widgets.Button(description="Find people"), widgets.HTML()
        find.tooltip = "proposes a box for each person in the picture, which can be changed"
        find.on_click(self._find_people)
        self.boxes = BoxEditor()
        self.boxes.observe(self._drag, "boxes")
        self.controls["speaker_boxes"].children += (find, self.people, self.boxes)
        super().__init__(sections)
        self.add_class("thl-settings")
        self.load(params)
        self._on_change = on_change

    @property
    def params(self) -> GenerationParams:
        """The request with the values of the form.

        Raises:
            InvalidRequest: a value is not valid, or values contradict each other.
        """
        values = {name: control.value for name, control in self.controls.items()}
        if values["checkpoint"] == "embedded":  # controls for other weights are hidden
            values |= dict.fromkeys(RELEASED_ONLY)
        return GenerationParams(**values)

    def load(self, params: GenerationParams) -> None:
        """Show a request; fields that differ from it are marked as changed."""
        self._loading, self.loaded = True, params
        for name, value in params.model_dump().items():
            self.controls[name].value = value
        self._loading, self._checkpoint = False, params.checkpoint
        self._changed()

    def _find_people(self, button: object) -> None:
        """Propose a box for each person in the picture; the preview shows them."""
        try:
            media = {"image_path": self["image_path"].value, "audio_path": "none"}
            request = GenerationParams(**media, speaker_boxes=((0, 0, 1, 1),))  # boxes need a single picture
            boxes = propose_boxes(request.pictures[0].file)
        except TalkingHeadError as error:
            self.people.value = f'<span class="thl-error">{html.escape(str(error))}</span>'
            return
        people = f"{len(boxes)} {'person' if len(boxes) == 1 else 'people'}"
        self.people.value = f"<span>{people} found, from left to right; the first speaks first</span>"
        self["speaker_boxes"].value = boxes

    def _drag(self, change: dict[str, Any]) -> None:
        """Take over boxes that were moved on the picture."""
        if change["new"] and not self._showing:
            self["speaker_boxes"].value = change["new"]

    def _follow_checkpoint(self) -> None:
        """Fields at the defaults of the earlier checkpoint take those of the one now chosen."""
        before, now = map(GenerationParams.defaults_of, (self._checkpoint, self["checkpoint"].value))
        self._loading, self._checkpoint = True, self["checkpoint"].value
        for name, value in now.items():
            if value != before[name] == self.controls[name].value:
                self.controls[name].value = value
        self._loading = False

    def mark(self) -> str:
        """Mark changed fields and the invalid one; return the error message, empty if all is valid."""
        params: GenerationParams | None = None
        try:
            params = self.params
            self.preview.show(params)
            self._showing = True
            self.boxes.show(params)
            self._showing = False
            message, invalid = str(self.preview.error or ""), self.preview.invalid_field
        except InvalidRequest as error:
            message, invalid = str(error), error.field
        for name, control in self.controls.items():
            control.mark("wrong", name == invalid)
            if params is not None:
                control.mark("changed", getattr(params, name) != getattr(self.loaded, name))
        return message

    def _changed(self) -> None:
        if self._loading:
            return
        if self["checkpoint"].value != self._checkpoint:
            self._follow_checkpoint()
        for name, (condition, values) in SHOWN_WITH.items():
            value = self.controls[condition].value
            shown = value in values if values else bool(value)
            self.controls[name].layout.display = None if shown else "none"
        if self._on_change is not None:
            self._on_change()

    def __getitem__(self, name: str) -> Any:
        """The control of a field."""
        return self.controls[name]
