"""Every field and measure has a readable name; axes carry units."""

import pytest

from talkinghead_lab.figures import labels
from talkinghead_lab.foundation.field_types import Lora, TimedFile
from talkinghead_lab.measures.measure import KINDS
from talkinghead_lab.params import GenerationParams


def test_every_field_and_measure_has_a_name():
    assert labels.NAMES.keys() == GenerationParams.model_fields.keys() | KINDS.keys()
    assert labels.FIELD_UNITS.keys() <= GenerationParams.model_fields.keys()
    assert not [name for name in labels.NAMES.values() if "_" in name]


@pytest.mark.parametrize(
    ("name", "axis", "title"),
    [
        ("image_path", "portrait or video", "Portrait or video"),
        ("motion_frame", "overlap of chunks (frames)", "Overlap of chunks (frames)"),
        ("loras", "LoRAs", "LoRAs"),
        ("lse_c", "LSE-C", "LSE-C"),
        ("loudness", "loudness (LUFS)", "Loudness (LUFS)"),
        ("a_linked_axis", "a linked axis", "A linked axis"),
    ],
)
def test_names_on_axes_and_as_titles(name, axis, title):
    assert (labels.axis_label(name), labels.title(name)) == (axis, title)


def test_a_measure_s_title_has_unit_and_direction():
    assert labels.measure_title("lse_d") == "LSE-D (lower is better)"
    assert labels.measure_title("color_drift") == "Colour drift (ΔE, lower is better)"
    assert labels.measure_title("loudness") == "Loudness (LUFS)"


def test_every_field_that_may_be_unset_says_what_that_means():
    embedded = GenerationParams(image_path="a", audio_path="b")
    unset = {name for name, value in embedded if value is None}
    assert unset <= labels.UNSET.keys() <= GenerationParams.model_fields.keys()
    words = [labels.value_label(value, name) for name, value in embedded]
    assert not [text for text in words if text in ("", "None", "()")]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("seed", 12_345_678_901, "12345678901"),
        ("audio_guide_scale", 4.0, "4"),
        ("use_apg", True, "yes"),
        ("max_frames", None, "length of the recording"),
        ("prompt", "", "none"),
        ("prompt", "[1, 2]", "[1, 2]"),
        ("image_path", "/photos/anna.png", "anna.png"),
        ("image_path", "sample:portrait", "sample:portrait"),
        (
            "loras",
            (Lora(path="/w/fast.safetensors"), Lora(path="/w/b.pt", scale=0.5)),
            "fast.safetensors, b.pt (strength 0.5)",
        ),
        ("loras", '[{"path": "/w/fast.safetensors", "scale": 0.25}]', "fast.safetensors (strength 0.25)"),
        ("loras", (Lora(path="/w/b.pt", scale=(1, 0, 1, 0)),), "b.pt (strength 1, 0, 1, 0)"),
        ("loras", '[{"path": "/w/b.pt", "scale": [1, 0]}]', "b.pt (strength 1, 0)"),
        ("loras", "[]", "none"),
        ("prompt", '[{"start": 0, "text": "a"}, {"start": 4.5, "text": "b"}]', "from 0 s: a, from 4.5 s: b"),
        ("prompt", "[a]", "[a]"),
        ("image_path", (TimedFile(start=0, file="/w/a.png"),), "from 0 s: a.png"),
        ("speaker_boxes", ((0, 1, 2, 3), (4, 5, 6, 7)), "0,1 to 2,3 and 4,5 to 6,7"),
        ("speaker_boxes", "[[0, 1, 2, 3], [4, 5, 6, 7]]", "0,1 to 2,3 and 4,5 to 6,7"),
        ("method", "fast LoRA", "fast LoRA"),
    ],
)
def test_values_are_said_in_words(name, value, words):
    assert labels.value_label(value, name) == words


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("image_path", ["/a/x.png", "/b/x.png", "/b/x.png"], ["a/x.png", "b/x.png", "b/x.png"]),
        ("loras", [(Lora(path="/a/x"),), (Lora(path="/b/x"),)], ["a/x", "b/x"]),
        ("sample_shift", [3.0000001, 3.0], ["3.0000001", "3.0"]),
        ("prompt", ["", "none"], ["''", "'none'"]),
    ],
)
def test_different_values_look_different(name, values, words):
    assert labels.value_labels(values, name) == words


def test_a_cell_s_label_names_its_axes_in_words():
    row = {
        "loras": '[{"path": "/w/fast.safetensors", "scale": 1.0}]',
        "method": "guided",
        "diffusion_steps": 4,
    }
    assert labels.cell_label(row, list(row)) == "LoRAs fast.safetensors, guided, steps 4"


def test_messages_call_fields_as_forms_do_and_leave_other_names():
    said = labels.with_titles("`seam_frames` is not valid; set `HOME` or `seed`")
    assert said == "“Seam blending (frames)” is not valid; set `HOME` or “Seed”"
