"""Controls have the range, the choices and the words of their fields, and give back what they are given."""

import math

import ipywidgets as widgets
import pytest

from talkinghead_lab.params import GenerationParams, Lora
from talkinghead_lab.widgets.fields import Control, bounds, groups
from talkinghead_lab.widgets.settings import Settings

FIELDS = GenerationParams.model_fields
REQUEST = GenerationParams(image_path="sample:portrait", audio_path="sample:recording")


def test_every_field_is_in_one_group():
    placed = [name for names in groups().values() for name in names]
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
def test_a_wide_range_is_laid_out_by_ratio(name, low, high):
    slider = Control(name, lambda: None).widget
    assert isinstance(slider, widgets.FloatLogSlider)
    assert slider.base**slider.min == pytest.approx(low)
    assert slider.base**slider.max == pytest.approx(high)


@pytest.mark.parametrize("name", ["seed", "max_frames", "apg_norm_threshold", "step_cache_threshold"])
def test_a_range_too_wide_for_a_slider_is_a_box(name):
    assert isinstance(Control(name, lambda: None).widget, widgets.Text)


def test_the_tooltip_tells_name_meaning_and_range():
    control = Control("diffusion_steps", lambda: None)
    assert control.widget.tooltip == "diffusion_steps: sampling steps per chunk (1 to 1000)"


@pytest.mark.parametrize(("moved_to", "value"), [(80.2, 81), (83.2, 85), (5.0, 5), (1001.0, 1001)])
def test_a_slider_of_chunks_stops_at_whole_chunks_only(moved_to, value):
    control = Control("chunk_frames", lambda: None)
    control.widget.value = moved_to
    assert control.value == value
    assert REQUEST.replace(chunk_frames=control.value, motion_frame=1).chunk_frames == value


def test_a_moved_slider_gives_round_numbers():
    control = Control("audio_guide_scale", lambda: None)
    control.widget.value = 0.1 + 0.2
    assert control.value == 0.3


CHANGES = [
    {"seed": 2**63 - 1},
    {"sample_shift": 1 / 3, "text_guide_scale": math.pi},
    {"sample_shift": 0.001},
    {"diffusion_steps": 37, "chunk_frames": 1001, "motion_frame": 997},
    {"max_frames": 1_000_000, "step_cache_threshold": 0.05, "apg_norm_threshold": 12.5, "use_apg": True},
    {
        "loras": (
            Lora(path="/weights/two words.safetensors", scale=0.123456789),
            Lora(path="sample:fast-lora"),
        )
    },
    {"loras": (Lora(path="/weights/version 2"),)},
    {"second_audio_path": "sample:recording-2", "speaker_boxes": ((0, 1, 2, 3), (4, 5, 6, 7))},
    {"prompt": "Zeile eins\nsecond line", "negative_prompt": "", "frame_size": "640x320"},
    {"ckpt_dir": "/w/ckpt", "checkpoint": "released", "precision": "int8", "device": "cuda:3"},
]


@pytest.mark.parametrize("changes", CHANGES, ids=lambda changes: next(iter(changes)))
def test_what_is_loaded_comes_back_unchanged(changes, project):
    settings = Settings(REQUEST, lambda: None)
    settings.load(REQUEST.replace(**changes))
    assert settings.params == REQUEST.replace(**changes)
    settings.load(REQUEST)
    assert settings.params == REQUEST


def test_what_is_typed_reaches_the_request(project):
    settings = Settings(REQUEST, lambda: None)
    settings["loras"].widget.value = "sample:fast-lora\n/my weights/one.safetensors 0.5\n"
    settings["second_audio_path"].switch.value = True
    settings["second_audio_path"].widget.value = "sample:recording-2"
    settings["speaker_boxes"].switch.value = True
    settings["speaker_boxes"].widget.value = "[[0, 0, 9, 9], [10, 0, 19, 9]]"
    settings["max_frames"].switch.value = True
    settings["max_frames"].widget.value = "50"
    params = settings.params
    assert params.loras == (
        Lora(path="sample:fast-lora"),
        Lora(path="/my weights/one.safetensors", scale=0.5),
    )
    assert params.speaker_boxes == ((0, 0, 9, 9), (10, 0, 19, 9))
    assert (params.second_audio_path, params.max_frames) == ("sample:recording-2", 50)


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_can_be_reached(name, project):
    """What is optional has its switch in sight, and what is not has its widget."""
    settings = Settings(REQUEST, lambda: None)
    control = settings[name]
    assert (control.switch if control.optional else control.widget) in control.children
    assert control.widget in control.children


def test_a_second_speaker_has_a_recording_at_once(project):
    settings = Settings(REQUEST, lambda: None)
    settings["second_audio_path"].switch.value = True
    assert settings.params.second_audio_path == "sample:recording"
    settings["second_audio_path"].switch.value = False
    assert settings.params == REQUEST


def test_only_what_applies_is_shown(project):
    settings = Settings(REQUEST, lambda: None)

    def hidden() -> set[str]:
        return {name for name, control in settings.controls.items() if control.layout.display == "none"}

    folders = {"ckpt_dir", "wav2vec_dir", "infinitetalk_dir"}
    assert hidden() == {"audio_mix", "speaker_boxes", "apg_momentum", "apg_norm_threshold"} | folders
    settings["use_apg"].widget.value = True
    settings["checkpoint"].widget.value = "released"
    settings["use_color_correction"].widget.value = False
    assert hidden() == {"audio_mix", "speaker_boxes", "color_correction_strength"}
