"""All fields of the request in their groups, as one widget that gives and takes `GenerationParams`."""

import re
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from talkinghead_lab.errors import InvalidRequest
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.widgets.fields import SHOWN_WITH, Changed, Control, groups
from talkinghead_lab.widgets.media import Kind, MediaPicker

PICKED: dict[str, Kind] = {"image_path": "picture", "audio_path": "sound", "second_audio_path": "sound"}
OPEN_AT_FIRST = ("Inputs", "Guidance", "Sampling")


class Settings(widgets.VBox):
    """Every field of the request.

    Args:
        params: what is shown at first.
        changed: called after a value changed.
        media_folder: whose files are offered, and where uploads go; unset: `shared/` of the project.
    """

    def __init__(self, params: GenerationParams, changed: Changed, media_folder: Path | None = None) -> None:
        self._changed: Changed | None = None
        self._loading = True
        self.loaded = params
        self.controls: dict[str, Control] = {}
        sections = []
        for title, names in groups().items():
            for name in names:
                picker = MediaPicker(PICKED[name], media_folder) if name in PICKED else None
                self.controls[name] = Control(name, self._after_change, picker)
            section = widgets.VBox([self.controls[name] for name in names])
            section.add_class("thl-group")
            opened = 0 if title in OPEN_AT_FIRST else None
            sections.append(widgets.Accordion([section], titles=(title,), selected_index=opened))
        super().__init__(sections)
        self.add_class("thl-settings")
        self.load(params)
        self._changed = changed

    @property
    def params(self) -> GenerationParams:
        """The request as it is set.

        Raises:
            InvalidRequest: a value that cannot be, or values that contradict each other.
        """
        return GenerationParams(**{name: control.value for name, control in self.controls.items()})

    def load(self, params: GenerationParams) -> None:
        """Show a request; fields that are changed from now on are marked."""
        self._loading, self.loaded = True, params
        for name, value in params.model_dump().items():
            self.controls[name].value = value
        self._loading = False
        self._after_change()

    def mark(self) -> str:
        """Mark what was changed and what is wrong; the complaint in words, empty where all is well."""
        try:
            params, complaint, wrong = self.params, "", ""
        except InvalidRequest as error:
            params, complaint = None, str(error)
            wrong = next(iter(re.findall(r"`?(\w+)", error.problem)), "")
        for name, control in self.controls.items():
            control.mark("wrong", name == wrong)
            if params is not None:
                control.mark("changed", getattr(params, name) != getattr(self.loaded, name))
        return complaint

    def _after_change(self) -> None:
        if self._loading:
            return
        for name, (other, values) in SHOWN_WITH.items():
            value = self.controls[other].value
            shown = value in values if values else bool(value)
            self.controls[name].layout.display = None if shown else "none"
        if self._changed is not None:
            self._changed()

    def __getitem__(self, name: str) -> Any:
        """The control of a field."""
        return self.controls[name]
