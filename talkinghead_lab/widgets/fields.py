"""A control for every field of the request: its range, its choices and its tooltip come from the field."""

import json
import math
from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin

import ipywidgets as widgets
import yaml
from pydantic.fields import FieldInfo

from talkinghead_lab.foundation.latent_grid import FRAMES_PER_LATENT
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.widgets.media import MediaPicker

# Fields in no group here come with the last one, so that a new field is never missing from the panel.
GROUPS = {
    "Inputs": ("image_path", "audio_path", "prompt", "second_audio_path", "audio_mix", "speaker_boxes"),
    "Guidance": (
        "audio_guide_scale", "text_guide_scale", "negative_prompt",
        "use_apg", "apg_momentum", "apg_norm_threshold",
    ),
    "Sampling": (
        "diffusion_steps", "seed", "sample_shift", "step_cache_threshold",
        "chunk_frames", "motion_frame", "loras",
    ),
    "Output": (
        "resolution", "frame_size", "max_frames", "use_color_correction", "color_correction_strength",
        "seam_frames",
    ),
    "Model and memory": ("checkpoint", "precision", "attention", "device"),
}  # fmt: skip
# A field is shown where the other one has a value that is not false, or one of these values.
SHOWN_WITH: dict[str, tuple[str, tuple[object, ...]]] = {
    "apg_momentum": ("use_apg", ()),
    "apg_norm_threshold": ("use_apg", ()),
    "color_correction_strength": ("use_color_correction", ()),
    "audio_mix": ("second_audio_path", ()),
    "speaker_boxes": ("second_audio_path", ()),
    "ckpt_dir": ("checkpoint", ("released",)),
    "wav2vec_dir": ("checkpoint", ("released",)),
    "infinitetalk_dir": ("checkpoint", ("released",)),
}
WHOLE_CHUNKS = ("chunk_frames", "motion_frame")  # 4n + 1
LONG_TEXTS = ("prompt", "negative_prompt")
WIDEST_LINEAR_RANGE = 99  # of values, or of the ends' ratio; beyond, equal ratios lie equally far apart
WIDEST_RANGE = 10_000  # beyond, a slider could not be set by hand: a box for a number
SMALLEST = 0.01  # shown for a lower end of 0 that is itself excluded
SUGGESTIONS = {
    "frame_size": ("auto", "160x160", "1024x576", "576x1024", "1280x720", "720x1280"),
    "device": ("auto", "cpu", "cuda"),
}

Changed = Callable[[], None]


def groups() -> dict[str, list[str]]:
    """Every field of the request, by its group."""
    placed = {name: list(fields) for name, fields in GROUPS.items()}
    known = {field for fields in GROUPS.values() for field in fields}
    placed[list(GROUPS)[-1]] += [name for name in GenerationParams.model_fields if name not in known]
    return placed


def bounds(field: FieldInfo) -> tuple[float, float] | None:
    """The declared range of a number; None where it has no two ends."""
    limits = {
        kind: getattr(part, kind)
        for part in field.metadata
        for kind in ("ge", "gt", "le", "lt")
        if hasattr(part, kind)
    }
    low, high = limits.get("ge", limits.get("gt")), limits.get("le", limits.get("lt"))
    if low is None or high is None:
        return None
    return (SMALLEST if "gt" in limits and low == 0 else low, high)


class Control(widgets.VBox):
    """One field: its name, its widget, what it is for. Optional fields have a switch that sets them.

    Args:
        name: of the field.
        changed: called after the user, or code, changed the value.
        widget: instead of the one that the field's type asks for.
    """

    def __init__(self, name: str, changed: Changed, widget: Any = None) -> None:
        self.name, self.field = name, GenerationParams.model_fields[name]
        self.kind, self.optional = _kind(self.field)
        self._set_from_outside: tuple[Any, Any] | None = None  # (shown, value)
        self.widget = widget or _widget(name, self.field, self.kind)
        if not isinstance(self.widget, widgets.Box):  # the front end cannot give a box a tooltip
            self.widget.tooltip = self.tooltip
        self.switch = widgets.Checkbox(description=_words(name), indent=False, tooltip=self.tooltip)
        self.switch.add_class("thl-switch")
        heading: Any = widgets.Label(_words(name), tooltip=self.tooltip)
        if self.optional:
            heading = self.switch
            self.switch.observe(self._switched, "value")
            self._switched()
        heading.add_class("thl-name")
        note = widgets.Label(self.field.description or "")
        note.add_class("thl-note")
        children = [heading, self.widget, note]
        if self.kind is bool:
            self.widget.description = "on" if self.optional else _words(name)
            children = children if self.optional else [self.widget, note]
        super().__init__(children)
        self.add_class("thl-field").add_class(f"thl-{name.replace('_', '-')}")
        self.widget.observe(lambda change: changed(), "value")
        self.switch.observe(lambda change: changed(), "value")

    @property
    def tooltip(self) -> str:
        """Name, meaning and range."""
        span = bounds(self.field)
        allowed = f" ({span[0]:g} to {span[1]:g})" if span else ""
        return f"{self.name}: {self.field.description}{allowed}"

    @property
    def value(self) -> Any:
        """What the request is to get; a text that is no number stays one, for the request to refuse.

        What was set from outside comes back as it was until it is moved: a slider rounds what it shows.
        """
        if self.optional and not self.switch.value:
            return None
        shown = self.widget.value
        if self._set_from_outside and self._set_from_outside[0] == shown:
            return self._set_from_outside[1]
        if isinstance(self.widget, widgets.FloatLogSlider):
            return _snapped(self.name, shown) if self.kind is int else float(f"{shown:.3g}")
        if isinstance(shown, float):
            return round(shown, 6)  # a slider adds its steps up
        if self.name == "loras":
            return _loras(shown)
        if self.name == "speaker_boxes":
            return _boxes(shown)
        return shown

    @value.setter
    def value(self, value: Any) -> None:
        if self.optional:
            self.switch.value = value is not None
            if value is None:
                return
        self.widget.value = self._as_shown(value)
        self._set_from_outside = (self.widget.value, value)

    def _as_shown(self, value: Any) -> Any:
        if self.name == "loras":
            return "\n".join(f"{lora['path']} {lora['scale']:g}" for lora in value)
        if self.name == "speaker_boxes":
            return json.dumps([list(box) for box in value])
        return str(value) if isinstance(self.widget, widgets.Text) else value

    def mark(self, style: str, on: bool) -> None:
        """Add or remove one of the panel's styles."""
        (self.add_class if on else self.remove_class)(f"thl-{style}")

    def _switched(self, change: object = None) -> None:
        self.widget.layout.display = None if self.switch.value else "none"
        if self.switch.value and isinstance(self.widget, MediaPicker) and not self.widget.value:
            self.widget.choose_first()


def _kind(field: FieldInfo) -> tuple[Any, bool]:
    """(type, whether it may be unset) of a field."""
    options = get_args(field.annotation)
    if type(None) in options:
        return next(option for option in options if option is not type(None)), True
    return field.annotation, False


def _widget(name: str, field: FieldInfo, kind: Any) -> Any:
    if kind is bool:
        return widgets.Checkbox(indent=False)
    if get_origin(kind) is Literal:
        return widgets.ToggleButtons(options=get_args(kind))
    if name in LONG_TEXTS or name == "loras":
        return widgets.Textarea(rows=2, continuous_update=False, placeholder=_placeholder(name))
    if name in SUGGESTIONS:
        return widgets.Combobox(options=SUGGESTIONS[name], continuous_update=False)
    span = bounds(field)
    if kind in (int, float) and span and _steps(name, kind, span) <= WIDEST_RANGE:
        return _slider(name, kind, *span)
    return widgets.Text(continuous_update=False, placeholder=_placeholder(name))


def _steps(name: str, kind: type, span: tuple[float, float]) -> float:
    """How many values a number may take, or for fractions the ratio of the ends, where that is larger."""
    if kind is int:
        return span[1] - span[0]
    return max(span[1] - span[0], span[1] / span[0] if span[0] > 0 else 0)


def _slider(name: str, kind: type, low: float, high: float) -> Any:
    if _steps(name, kind, (low, high)) > WIDEST_LINEAR_RANGE:
        return widgets.FloatLogSlider(
            value=low, min=math.log10(low), max=math.log10(high), step=0.001,
            readout_format="d" if kind is int else ".4", continuous_update=False,
        )  # fmt: skip
    if kind is int:
        return widgets.IntSlider(min=low, max=high, continuous_update=False)
    step = 0.01 if high - low <= 1 else 0.05 if high - low <= 5 else 0.1
    return widgets.FloatSlider(
        value=low, min=low, max=high, step=step, readout_format=".4", continuous_update=False
    )


def _snapped(name: str, value: float) -> int:
    if name in WHOLE_CHUNKS:
        return FRAMES_PER_LATENT * round((value - 1) / FRAMES_PER_LATENT) + 1
    return round(value)


def _loras(text: str) -> list[dict[str, Any]]:
    """A LoRA per line: its path, and behind it its scale where that is not 1."""
    found = []
    for line in filter(None, map(str.strip, text.splitlines())):
        path, _, scale = line.rpartition(" ")
        try:
            found.append({"path": path.strip(), "scale": float(scale)} if path else {"path": line})
        except ValueError:
            found.append({"path": line})
    return found


def _boxes(text: str) -> Any:
    """What the text says; the text itself, for the request to refuse, where it says nothing."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _words(name: str) -> str:
    words = name.replace("_", " ").replace("apg", "APG").replace("loras", "LoRAs")
    return words[0].upper() + words[1:]


def _placeholder(name: str) -> str:
    """What a field of free form looks like."""
    return {
        "loras": "one path per line, then its scale",
        "speaker_boxes": "[[30, 30, 130, 150], [190, 20, 290, 150]]",
    }.get(name, "")
