"""Controls have the range, choices and names of their fields, and return assigned values unchanged."""

import math

import ipywidgets as widgets
import pytest

from talkinghead_lab.foundation.field_types import Lora
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.pipeline.people import propose_boxes
from talkinghead_lab.request_fields import RELEASED_ONLY, WEIGHT_FOLDERS
from talkinghead_lab.widgets.fields import Control, bounds, grouped_fields
from talkinghead_lab.widgets.request_form import RequestForm

FIELDS = GenerationParams.model_fields
MEDIA_FIELDS = {"image_path": "sample:portrait", "audio_path": "sample:recording"}
REQUEST = GenerationParams(**MEDIA_FIELDS)


def test_every_field_is_in_exactly_one_group():
    placed = [name for names in grouped_fields().values() for name in names]
    assert sorted(placed) == sorted(FIELDS)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("audio_guide_scale", 0, 30), ("color_correction_strength", 0, 1), ("apg_momentum", -1, 1)],
)
def test_a_slider_has_the_declared_range(name, low, high):
    slider = Control(name, lambda: None).widget
    assert isinstance(slider, widgets.FloatSlider)
    assert (slider.min, slider.max) == (low, high) == bounds(FIELDS[name])


@pytest.mark.parametrize(("name", "low", "high"), [("diffusion_steps", 1, 1000), ("chunk_frames", 5, 1001)])
def test_a_wide_range_has_a_log_slider(name, low, high):
    slider = Control(name, lambda: None).widget
    assert isinstance(slider, widgets.FloatLogSlider)
    assert slider.base**slider.min == pytest.approx(low)
    assert slider.base**slider.max == pytest.approx(high)


@pytest.mark.parametrize(
    "name", ["seed", "max_frames", "apg_norm_threshold", "step_cache_threshold", "audio_start"]
)
def test_a_range_too_wide_for_a_slider_has_a_text_box(name):
    assert isinstance(Control(name, lambda: None).widget, widgets.Text)


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("image_path", "Portrait or video"),
        ("audio_path", "Recording"),
        ("second_audio_path", "Second speaker's recording"),
        ("motion_frame", "Overlap of chunks (frames)"),
        ("use_apg", "Adaptive projected guidance (APG)"),
    ],
)
def test_controls_have_readable_labels(name, label, project):
    control = RequestForm(REQUEST, lambda: None)[name]
    labels = [getattr(part, "description", "") or getattr(part, "value", "") for part in control.children[:2]]
    assert label in labels


def test_the_tooltip_has_name_meaning_and_range():
    control = Control("diffusion_steps", lambda: None)
    assert control.widget.tooltip == "diffusion_steps: sampling steps per chunk (1 to 1000)"


@pytest.mark.parametrize(("moved_to", "value"), [(80.2, 81), (83.2, 85), (5.0, 5), (1001.0, 1001)])
def test_chunk_sliders_snap_to_4n_plus_1(moved_to, value):
    control = Control("chunk_frames", lambda: None)
    control.widget.value = moved_to
    assert control.value == value
    assert REQUEST.replace(chunk_frames=control.value, motion_frame=1).chunk_frames == value


def test_a_moved_slider_returns_round_numbers():
    control = Control("audio_guide_scale", lambda: None)
    control.widget.value = 0.1 + 0.2
    assert control.value == 0.3


CHANGES = [
    {"seed": 2**63 - 1},
    {"sample_shift": 1 / 3, "text_guide_scale": math.pi},
    {"sample_shift": 0.001},
    {"sampler": "lcm", "sigmas": (1.0, 0.9, 0.5), "diffusion_steps": 3},
    {"text_guide_scale": (math.pi, 1.0), "guidance_interval": (0.0, 0.5)},
    {"cfg_zero_star": True, "zero_init_steps": 1, "audio_guide_scale": (4.0, 2.0, 1.0)},
    {"diffusion_steps": 37, "chunk_frames": 1001, "motion_frame": 997},
    {"step_cache": "first_block", "step_cache_threshold": 0.1, "max_consecutive_skips": 3},
    {"max_frames": 1_000_000, "step_cache_threshold": 0.05, "apg_norm_threshold": 12.5, "use_apg": True},
    {
        "loras": (
            Lora(path="/weights/two words.safetensors", scale=0.123456789),
            Lora(path="sample:fast-lora"),
        )
    },
    {"loras": (Lora(path="/weights/version 2"),)},
    {
        "loras": (
            Lora(path="/weights/version 2", scale=(1.0, 0.25)),
            Lora(path="sample:fast-lora", scale=(0.5,)),
        )
    },
    {"second_audio_path": "sample:recording-2", "speaker_boxes": ((0, 1, 2, 3), (4, 5, 6, 7))},
    {"audio_track": 2, "audio_start": 12.5},
    {"image_path": ({"start": 0.0, "file": "sample:portrait"}, {"start": 4.0, "file": "/b [1].png"})},
    {"prompt": ({"start": 0.0, "text": "«a»"}, {"start": 2.5, "text": "[b]"})},
    {"continue_video": "sample:driving"},
    {"background": "#1020C0"},
    {"prompt": "Zeile eins\nsecond line", "negative_prompt": "", "frame_size": "640x320"},
    {"ckpt_dir": "/w/ckpt", "checkpoint": "released", "precision": "int8", "device": "cuda:3"},
]


@pytest.mark.parametrize("changes", CHANGES, ids=lambda changes: next(iter(changes)))
def test_a_loaded_request_is_returned_unchanged(changes, project):
    form = RequestForm(REQUEST, lambda: None)
    form.load(REQUEST.replace(**changes))
    assert form.params == REQUEST.replace(**changes)
    form.load(REQUEST)
    assert form.params == REQUEST


def test_typed_text_reaches_the_request(project):
    form = RequestForm(REQUEST, lambda: None)
    lines = (
        "sample:fast-lora",
        "/my weights/one.safetensors 0.5",
        "/w/two.safetensors 1,-0.5",
        "/w/three.safetensors 2,",
    )
    form["loras"].widget.value = "\n".join(lines)
    form["second_audio_path"].switch.value = True
    form["second_audio_path"].widget.value = "sample:recording-2"
    form["speaker_boxes"].switch.value = True
    form["speaker_boxes"].widget.value = "[[0, 0, 9, 9], [10, 0, 19, 9]]"
    form["max_frames"].switch.value = True
    form["max_frames"].widget.value = "50"
    params = form.params
    assert params.loras == (
        Lora(path="sample:fast-lora"),
        Lora(path="/my weights/one.safetensors", scale=0.5),
        Lora(path="/w/two.safetensors", scale=(1.0, -0.5)),
        Lora(path="/w/three.safetensors", scale=(2.0,)),
    )
    assert params.speaker_boxes == ((0, 0, 9, 9), (10, 0, 19, 9))
    assert (params.second_audio_path, params.max_frames) == ("sample:recording-2", 50)


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_has_a_visible_control(name, project):
    """An optional field shows its switch, any other its widget."""
    form = RequestForm(REQUEST, lambda: None)
    control = form[name]
    assert (control.switch if control.optional else control.widget) in control.children
    assert control.widget in control.children


def test_switching_on_a_second_speaker_selects_a_recording(project):
    form = RequestForm(REQUEST, lambda: None)
    form["second_audio_path"].switch.value = True
    assert form.params.second_audio_path == "sample:recording"
    form["second_audio_path"].switch.value = False
    assert form.params == REQUEST


def test_boxes_are_found_shown_over_the_picture_and_dragged(project):
    form = RequestForm(REQUEST.replace(image_path="sample:two-people"), lambda: None)
    assert form.mark() == ""
    assert (form.boxes.size, form.boxes.boxes) == ([], [])
    find = form["speaker_boxes"].children[-3]
    find.click()
    assert "2 people found" in form.people.value
    form.mark()
    found = [list(box) for box in propose_boxes("sample:two-people")]
    assert (form.boxes.size, form.boxes.boxes) == ([320, 160], found)
    assert form.boxes.picture.startswith("data:image/jpeg")
    dragged = [found[0], [180, 0, 300, 150]]
    form.boxes.boxes = dragged
    assert [list(box) for box in form.params.speaker_boxes] == dragged
    form["speaker_boxes"].switch.value = False
    form.mark()
    assert form.boxes.size == []
    shots = [{"start": 0, "file": "sample:two-people"}, {"start": 1, "file": "sample:portrait"}]
    form["image_path"].value = shots
    find.click()
    assert "drawn on one picture" in form.people.value
    assert form.params.speaker_boxes is None


def test_only_applicable_fields_are_shown(project):
    form = RequestForm(REQUEST, lambda: None)

    def hidden() -> set[str]:
        return {name for name, control in form.controls.items() if control.layout.display == "none"}

    folders = {*WEIGHT_FOLDERS, *RELEASED_ONLY}
    assert hidden() == {
        *("pad", "segments", "zero_init_steps", "apg_momentum", "apg_norm_threshold"),
        *("step_cache", "max_consecutive_skips", "lips_border", "lips_mask"),
        *folders,
    }
    form["use_apg"].widget.value = True
    form["checkpoint"].widget.value = "released"
    form["use_color_correction"].widget.value = False
    form["step_cache_threshold"].value = 0.1
    assert hidden() == {
        *("pad", "segments", "zero_init_steps", "lips_border", "lips_mask", "color_correction_strength")
    }


def test_fields_at_their_defaults_follow_the_checkpoint():
    form = RequestForm(REQUEST.replace(text_guide_scale=3.0), lambda: None)
    form["checkpoint"].widget.value = "released"
    assert form.params == REQUEST.replace(
        **GenerationParams.defaults_of("released")
        | MEDIA_FIELDS
        | {"checkpoint": "released", "text_guide_scale": 3.0}
    )
    form["diffusion_steps"].value = 8
    form["checkpoint"].widget.value = "embedded"
    assert form.params == REQUEST.replace(text_guide_scale=3.0, diffusion_steps=8)
    form.load(GenerationParams(**MEDIA_FIELDS, checkpoint="released"))
    assert form.params.diffusion_steps == 40


def test_a_seed_may_be_random():
    form = RequestForm(REQUEST, lambda: None)
    form["seed"].widget.value = "random"
    assert (form.params.seed, form.mark()) == ("random", "")
