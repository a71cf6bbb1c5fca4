"""A control for a field of the request, with range, choices and tooltip taken from the field itself."""

import json
import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, get_args, get_origin

import ipywidgets as widgets
from pydantic.fields import FieldInfo

from talkinghead_lab.figures.labels import title, with_titles
from talkinghead_lab.foundation.latent_grid import FRAMES_PER_LATENT
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.request_fields import RELEASED_ONLY, WEIGHT_FOLDERS
from talkinghead_lab.widgets.media_picker import MediaPicker

# Fields missing here are added to the last group, so that the panel never lacks a new field.
GROUPS = {
    "Inputs": (
        "image_path", "crop", "pad", "audio_path", "audio_track", "audio_start", "prompt",
        "second_audio_path", "audio_mix", "segments", "speaker_loudness",
        "speaker_boxes", "speaker_masks", "background",
        "continue_video",
    ),
    "Guidance": (
        "audio_guide_scale", "text_guide_scale", "negative_prompt",
        "guidance_interval", "cfg_zero_star", "zero_init_steps", "use_apg", "apg_momentum",
        "apg_norm_threshold",
    ),
    "Sampling": (
        "sampler", "diffusion_steps", "seed", "sample_shift", "sigmas", "denoise_strength",
        "lips_only", "lips_border", "lips_mask", "scene_cuts",
        "step_cache_threshold", "step_cache", "max_consecutive_skips",
        "chunk_frames", "motion_frame", "loras",
    ),
    "Output": (
        "resolution", "frame_size", "max_frames",
        "use_color_correction", "color_correction_strength", "seam_frames",
    ),
    "Model and memory": ("checkpoint", "precision", "attention", "device"),
}  # fmt: skip
# A field is shown if the other field has one of these values, or without values if it is true or set.
SHOWN_WITH: dict[str, tuple[str, tuple[object, ...]]] = {
    "zero_init_steps": ("cfg_zero_star", ()),
    **dict.fromkeys(("step_cache", "max_consecutive_skips"), ("step_cache_threshold", ())),
    "apg_momentum": ("use_apg", ()),
    "apg_norm_threshold": ("use_apg", ()),
    **dict.fromkeys(("lips_border", "lips_mask"), ("lips_only", ())),
    "pad": ("crop", ("none",)),
    "color_correction_strength": ("use_color_correction", ()),
    "segments": ("audio_mix", ("timeline",)),
    **dict.fromkeys((*WEIGHT_FOLDERS, *RELEASED_ONLY), ("checkpoint", ("released",))),
}
LATENT_ALIGNED = ("chunk_frames", "motion_frame")  # 4n + 1
LONG_TEXTS = ("prompt", "negative_prompt")
LARGEST_LINEAR_RANGE = 99  # number of values, or ratio of the ends; a wider range gets a log slider
LARGEST_SLIDER_RANGE = 10_000  # a wider one cannot be set with a slider; it gets a text box
SMALLEST_POSITIVE = 0.01  # lower end of a slider whose field must be greater than 0
SUGGESTIONS = {
    "frame_size": ("auto", "160x160", "1024x576", "576x1024", "1280x720", "720x1280"),
    "device": ("auto", "cpu", "cuda"),
    "background": ("white", "black", "gray", "#00ff00"),
    "pad": ("blur", "edge", "#808080"),
}

OnChange = Callable[[], None]


def grouped_fields() -> dict[str, list[str]]:
    """Every field of the request, by group."""
    found = {name: list(fields) for name, fields in GROUPS.items()}
    known = {field for fields in GROUPS.values() for field in fields}
    found[list(GROUPS)[-1]] += [name for name in GenerationParams.model_fields if name not in known]
    return found


def bounds(field: FieldInfo) -> tuple[float, float] | None:
    """The declared range of a number; None if it lacks a lower or an upper end."""
    limits = {
        kind: getattr(part, kind)
        for part in (_number(field) or field).metadata
        for kind in ("ge", "gt", "le", "lt")
        if hasattr(part, kind)
    }
    low, high = limits.get("ge", limits.get("gt")), limits.get("le", limits.get("lt"))
    if low is None or high is None:
        return None
    return (SMALLEST_POSITIVE if "gt" in limits and low == 0 else low, high)


class Control(widgets.VBox):  # type: ignore[misc]  # ipywidgets is untyped
    """A field's label, widget and description. An optional field has a switch that sets it.

    Args:
        name: name of the field.
        on_change: called after the value has changed, by the user or by code.
        widget: replaces the default widget of the field's type.
    """

    def __init__(self, name: str, on_change: OnChange, widget: Any = None) -> None:
        self.name, self.field = name, GenerationParams.model_fields[name]
        self.kind, self.optional = _kind(self.field)
        self._assigned: tuple[Any, Any] | None = None  # (widget's value, exact value)
        self.widget = widget or _widget(name, self.field, self.kind)
        if not isinstance(self.widget, widgets.Box):  # boxes have neither in the front end
            # The description is for screen readers; the heading shows the same words.
            self.widget.tooltip, self.widget.description = self.tooltip, title(name)
        self.schedule: Any = None
        lists = {
            "image_path": ("several shots", '{"start": 0, "file": "a.png"}, {"start": 4, "file": "b.png"}')
        }
        if listed := ("over the steps", "5, 3, 1") if _number(self.field) else lists.get(name):
            self.schedule = widgets.Text(
                description=f"{title(name)}, {listed[0]}",
                placeholder=f"or {listed[0]}: {listed[1]}",
                continuous_update=False,
            )
            self.schedule.observe(lambda change: on_change(), "value")
        self.switch = widgets.Checkbox(description=title(name), indent=False, tooltip=self.tooltip)
        self.switch.add_class("thl-switch")
        heading: Any = widgets.Label(title(name), tooltip=self.tooltip)
        if self.optional:
            heading = self.switch
            self.switch.observe(self._switched, "value")
            self._switched()
        heading.add_class("thl-name")
        note = widgets.Label(with_titles(self.field.description or ""))
        note.add_class("thl-note")
        children = [heading, self.widget, *filter(None, [self.schedule]), note]
        if self.kind is bool:
            self.widget.description = "on" if self.optional else title(name)
            children = children if self.optional else [self.widget, note]
        super().__init__(children)
        self.add_class("thl-field").add_class(f"thl-{name.replace('_', '-')}")
        self.widget.observe(lambda change: on_change(), "value")
        self.switch.observe(lambda change: on_change(), "value")

    @property
    def tooltip(self) -> str:
        """The field's own name, its meaning and its range."""
        span = bounds(self.field)
        allowed = f" ({span[0]:g} to {span[1]:g})" if span else ""
        return f"{self.name}: {self.field.description}{allowed}"

    @property
    def value(self) -> Any:
        """The field's value. Text that is not a number is returned as text, which the request rejects.

        An assigned value is returned exactly until the widget is moved: a slider rounds its value.
        """
        if self.optional and not self.switch.value:
            return None
        if self.schedule and self.schedule.value.strip():
            return f"[{self.schedule.value.strip().strip('[]')}]"  # which the request converts
        shown = self.widget.value
        if self._assigned and self._assigned[0] == shown:
            return self._assigned[1]
        if isinstance(self.widget, widgets.FloatLogSlider):
            return _snapped(self.name, shown) if self.kind is int else float(f"{shown:.3g}")
        if isinstance(shown, float):
            return round(shown, 6)  # a slider accumulates rounding errors of its steps
        if self.name == "loras":
            return _parsed_loras(shown)
        return shown

    @value.setter
    def value(self, value: Any) -> None:
        if self.optional:
            self.switch.value = value is not None
            if value is None:
                return
        if self.schedule:
            listed = isinstance(value, list | tuple)
            self.schedule.value = json.dumps(value)[1:-1] if listed else ""
            if listed:
                return
        self.widget.value = self._displayed(value)
        self._assigned = (self.widget.value, value)

    def _displayed(self, value: Any) -> Any:
        if self.name == "prompt" and isinstance(value, list | tuple):
            return json.dumps(value, ensure_ascii=False)
        if self.name == "loras":
            return "\n".join(f"{lora['path']} {_scales_text(lora['scale'])}" for lora in value)
        if isinstance(value, list | tuple):
            return json.dumps(value)
        return str(value) if isinstance(self.widget, widgets.Text) else value

    def mark(self, style: str, on: bool) -> None:
        """Add or remove one of the panel's CSS classes."""
        (self.add_class if on else self.remove_class)(f"thl-{style}")

    def _switched(self, change: object = None) -> None:
        self.widget.layout.display = None if self.switch.value else "none"
        if self.switch.value and isinstance(self.widget, MediaPicker) and not self.widget.value:
            self.widget.choose_first()


def _kind(field: FieldInfo) -> tuple[Any, bool]:
    """The type of a field, and whether it may be None."""
    options = get_args(field.annotation)
    if type(None) in options:
        return next(option for option in options if option is not type(None)), True
    number = _number(field)
    return (number or field).annotation, False


def _number(field: FieldInfo) -> FieldInfo | None:
    """The number alone of a field that takes a number or a list of numbers."""
    options = get_args(field.annotation)
    number, *others = [part for part in options if get_origin(part) is Annotated] or [None]
    if (
        number is None
        or get_args(number)[0] not in (int, float)
        or not any(get_origin(get_args(part)[0]) is tuple for part in others)
    ):
        return None
    return FieldInfo.from_annotation(number)


def _widget(name: str, field: FieldInfo, kind: Any) -> Any:
    if kind is bool:
        return widgets.Checkbox(indent=False)
    if get_origin(kind) is Literal:
        return widgets.ToggleButtons(options=get_args(kind))
    if name in LONG_TEXTS or name in ("loras", "segments"):
        return widgets.Textarea(rows=2, continuous_update=False, placeholder=_placeholder(name))
    if name in SUGGESTIONS:
        return widgets.Combobox(options=SUGGESTIONS[name], continuous_update=False)
    span = bounds(field)
    if kind in (int, float) and span:
        # A log slider cannot start at 0.
        largest = LARGEST_SLIDER_RANGE if span[0] > 0 else LARGEST_LINEAR_RANGE
        if _steps(name, kind, span) <= largest:
            return _slider(name, kind, *span)
    return widgets.Text(continuous_update=False, placeholder=_placeholder(name))


def _steps(name: str, kind: type, span: tuple[float, float]) -> float:
    """The number of values of an integer; for a float the range, or the ratio of its ends if larger."""
    if kind is int:
        return span[1] - span[0]
    return max(span[1] - span[0], span[1] / span[0] if span[0] > 0 else 0)


def _slider(name: str, kind: type, low: float, high: float) -> Any:
    if _steps(name, kind, (low, high)) > LARGEST_LINEAR_RANGE:
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
    if name in LATENT_ALIGNED:
        return FRAMES_PER_LATENT * round((value - 1) / FRAMES_PER_LATENT) + 1
    return round(value)


def _parsed_loras(text: str) -> list[dict[str, Any]]:
    """One LoRA per line: a path, optionally followed by a scale, or by scales with commas between them."""
    found = []
    for line in filter(None, map(str.strip, text.splitlines())):
        path, _, scale = line.rpartition(" ")
        try:
            scales = [float(part) for part in scale.rstrip(",").split(",")]
            strength = scales if "," in scale else scales[0]
            found.append({"path": path.strip(), "scale": strength} if path else {"path": line})
        except ValueError:
            found.append({"path": line})
    return found


def _scales_text(scale: float | Sequence[float]) -> str:
    """A scale, or a list of them, as `_parsed_loras` reads it; a list of one ends in a comma."""
    if isinstance(scale, int | float):
        return f"{scale:g}"
    return ",".join(f"{each:g}" for each in scale) + ("," if len(scale) == 1 else "")


def _placeholder(name: str) -> str:
    """An example of the text in a free-form field."""
    return {
        "loras": "one path per line, optionally followed by a scale, or by scales of the steps: 1,0.5",
        "speaker_boxes": "[[30, 30, 130, 150], [190, 20, 290, 150]]",
        "segments": '[{"speaker": 1, "start": 0, "file": "hello.wav"}]',
        "speaker_loudness": "[-23, -20]",
        "speaker_masks": '["left.png", "right.png"]',
        "guidance_interval": "[0, 0.5]",
        "sigmas": "[1.0, 0.9, 0.7, 0.4]",
    }.get(name, "")
