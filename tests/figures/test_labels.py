"""Every field and measure has a readable name; axes carry units."""

import pytest

from talkinghead_lab.figures import labels
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
