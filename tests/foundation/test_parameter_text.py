"""Text stays text, numbers are decimal, and the field decides which of both a value is."""

import json

import pytest
import yaml

from talkinghead_lab.errors import InvalidRequest
from talkinghead_lab.foundation import parameter_text
from talkinghead_lab.foundation.parameter_text import Plain
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.sweeps.definition import Sweep

MEDIA = "audio_path: sample:recording\nimage_path: sample:portrait\n"
TEXTS = [
    "it's a man # of the year", "2024", "yes", "No", "12:30", "", "a man: he smiles", "[excited] he speaks",
    "@host", "%", "null", "~", "010", "1e3", "0x10", "2024-01-01", " spaces ", "{a: b}", "- a", "!!int 3",
    "&a *b", "'quoted'", '"half', "`", "ü 😀", "|", "true", "1_000", "\\n", "a\nb",
]  # fmt: skip


def read(tmp_path, text: str, name: str = "request.yaml") -> GenerationParams:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return GenerationParams.from_yaml(tmp_path / name)


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_field_takes_text_verbatim_from_shell_json_and_quoted_yaml(tmp_path, text):
    media = {"audio_path": "sample:recording", "image_path": "sample:portrait"}
    assert GenerationParams(**media, prompt=Plain(text)).prompt == text
    for content in (json.dumps({**media, "prompt": text}), yaml.safe_dump({**media, "prompt": text})):
        assert read(tmp_path, content).prompt == text
    path = GenerationParams(**media, second_audio_path="/a").replace(second_audio_path="/" + text + "x")
    assert path.second_audio_path == "/" + text + "x"


@pytest.mark.parametrize(
    "text", ["2024", "yes", "12:30", "010", "1_0", "2024-01-01", "~", "null", "off", "0x1F", "1e3", ".5", "="]
)
def test_a_text_field_takes_plain_yaml_verbatim(tmp_path, text):
    assert read(tmp_path, MEDIA + f"prompt: {text}").prompt == text
    if text not in ("~", "null"):  # the home folder; unset, as where segments take its place
        params = read(tmp_path, f"image_path: sample:portrait\naudio_path: {text}")
        assert params.audio_path.endswith(f"/{text}")


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("seed", "010", 10),
        ("seed", "+7", 7),
        ("diffusion_steps", "8.0", 8),
        ("seed", '"42"', 42),
        ("text_guide_scale", "1e0", 1.0),
        ("text_guide_scale", ".5", 0.5),
        ("text_guide_scale", "05", 5.0),
        ("max_frames", "null", None),
        ("max_frames", "", None),
        ("step_cache_threshold", "None", None),
        ("sample_shift", "None", 3.0),  # that of the checkpoint
        ("second_audio_path", "~", None),
        ("second_audio_path", "none", None),
        ("use_apg", "yes", True),
        ("use_apg", "False", False),
        ("compile_blocks", "off", False),
        ("compile_blocks", "null", None),
    ],
)
def test_the_field_decides_what_plain_text_means(tmp_path, field, text, value):
    assert getattr(read(tmp_path, MEDIA + f"{field}: {text}"), field) == value
    if not text.startswith('"'):
        media = {"audio_path": "a", "image_path": "i"}
        assert getattr(GenerationParams(**media, **{field: Plain(text)}), field) == value


@pytest.mark.parametrize(
    ("field", "text", "allowed"),
    [
        ("seed", "1_000", "a valid integer, in decimal digits"),
        ("seed", "0x10", "valid integer"),
        ("seed", "1e3", "valid integer"),
        ("seed", "0o17", "valid integer"),
        ("seed", "1:30", "valid integer"),
        ("seed", "yes", "valid integer"),
        ("seed", "２", "valid integer"),
        ("seed", "9" * 5000, "valid integer"),
        ("seed", "null", "valid integer"),
        ("max_frames", '"null"', "valid integer"),
        ("diffusion_steps", "8.5", "valid integer"),
        ("text_guide_scale", "1_0.5", "a valid number, in decimal digits"),
        ("text_guide_scale", "1:30", "valid number"),
        ("text_guide_scale", ".nan", "valid number"),
        ("text_guide_scale", "inf", "valid number"),
        ("text_guide_scale", "1e999", "finite"),
        ("use_apg", "1", "true or false"),
        ("use_apg", "maybe", "true or false"),
        ("loras", "[{path: a, scale: 1_0}]", "valid number"),
        ("loras", "a.safetensors", "a list"),
        ("loras", "[{path: a", "YAML"),
        ("speaker_boxes", "[[0, 0, 1, 1], [1, 0, 2, 0x10]]", "valid integer"),
    ],
)
def test_a_number_that_is_not_plainly_decimal_is_refused_by_name(tmp_path, field, text, allowed):
    with pytest.raises(InvalidRequest, match=allowed) as refusal:
        GenerationParams(audio_path="a", image_path="i", **{field: Plain(text.strip('"'))}) if (
            '"' not in text
        ) else read(tmp_path, MEDIA + f"{field}: {text}")
    assert refusal.value.field == field
    assert len(str(refusal.value)) < 500


@pytest.mark.parametrize("value", [True, False])
def test_a_truth_value_is_no_number(value):
    with pytest.raises(InvalidRequest, match=r"`seed` is not valid.*a valid number"):
        GenerationParams(audio_path="a", image_path="i", seed=value)


def test_lists_in_text_keep_their_strings_verbatim():
    given = {"audio_path": "a", "image_path": "i", "second_audio_path": "b"}
    loras = Plain("[{path: /a#b.safetensors, scale: 0.5}, {path: /2024}, {'path': '/x: y'}]")
    boxes = Plain("[[0, 0, 010, 10], [10, 0, 20, 10]]")
    prompts = Plain("[{start: 0, text: 12:30}, {start: 4.0, text: 'no'}]")
    params = GenerationParams(**given, loras=loras, speaker_boxes=boxes, prompt=prompts)
    assert [(each.start, each.text) for each in params.prompts] == [(0, "12:30"), (4, "no")]
    assert all(params.replace(prompt=text).prompt == text for text in ("[laughs] yes", "[]", "[1, 2]", "[{"))
    assert [lora.path for lora in params.loras] == ["/a#b.safetensors", "/2024", "/x: y"]
    assert params.loras[0].scale == 0.5
    assert params.speaker_boxes[0] == (0, 0, 10, 10)


def test_a_value_from_a_notebook_that_was_text_is_refused_with_the_way_to_give_text():
    for value in (2024, True, None, 1.5):
        with pytest.raises(InvalidRequest, match="in quotes, or with papermill by `-r`"):
            GenerationParams(audio_path="a", image_path="i", prompt=value)


@pytest.mark.parametrize("name", ["request.json", "request.JSON", "request.yaml"])
def test_json_is_read_as_json(tmp_path, name):
    content = {"audio_path": "sample:recording", "image_path": "sample:portrait", "prompt": "😀 \u2028 ü"}
    content |= {"seed": 7, "loras": [{"path": "/a", "scale": -1e-3}], "max_frames": None, "use_apg": True}
    params = read(tmp_path, "\ufeff" + json.dumps(content), name)
    assert "\\ud83d" in json.dumps(content)
    assert params.prompt == content["prompt"]
    assert (params.seed, params.max_frames, params.use_apg) == (7, None, True)
    assert params.loras[0].scale == -1e-3


def test_yaml_joins_characters_that_are_escaped_in_two_parts(tmp_path):
    assert read(tmp_path, MEDIA + r'prompt: "\ud83d\ude00"').prompt == "😀"
    with pytest.raises(InvalidRequest, match="unicode"):
        read(tmp_path, MEDIA + r'prompt: "\ud83d"')


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.json", "{", "not valid JSON"),
        ("a.json", "seed: 1", "not valid JSON"),
        ("a.json", '{"seed": 1, "seed": 2}', "the key 'seed' is repeated"),
        ("a.yaml", "seed: 1\nseed: 2", "the key 'seed' is repeated"),
        ("a.yaml", "[a, b]: 1", "not valid YAML"),
        ("a.yaml", "seed: " + "[" * 5000, "nested too deeply|not valid YAML"),
        ("a.json", "[" * 200_000, "nested too deeply|not valid JSON"),
        ("a.yaml", "!!int 3: 1", "not a mapping of names"),
        ("a.yaml", "prompt: !!python/object/apply:os.getcwd []", "not valid YAML"),
    ],
)
def test_a_file_that_cannot_be_understood_is_refused(tmp_path, name, content, expected):
    with pytest.raises(InvalidRequest, match=expected):
        read(tmp_path, content, name)


@pytest.mark.parametrize("field", ["prompt", "seed", "loras", "max_frames", "frame_size"])
def test_null_in_json_leaves_a_field_out_as_over_http(tmp_path, field):
    content = {"image_path": "sample:portrait", "audio_path": "sample:recording"}
    assert read(tmp_path, json.dumps({**content, field: None}), "a.json") == GenerationParams(**content)


def test_merge_keys_work(tmp_path):
    (tmp_path / "a.yaml").write_text("base: &base {a: 1, b: 2}\nmore: {<<: *base, b: 3}\n")
    assert parameter_text.read_mapping(tmp_path / "a.yaml")["more"] == {"a": "1", "b": "3"}


def test_the_values_of_a_sweep_have_the_types_of_their_fields(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text("""
        base: {image_path: sample:portrait, prompt: 2024, max_frames: 010}
        axes:
          diffusion_steps: {from: 04, to: 8, step: 2}
          step_cache_threshold: [null, 0.5]
          negative_prompt: [yes, 12:30, ~]
          kind:
            yes: {seam_frames: 010}
            2024: {seam_frames: 08}
        seeds: [010, 9]
        recordings: [2024]
    """)
    for sweep in (Sweep.from_yaml(path), Sweep.from_yaml(path, {"prompt": Plain("yes")})):
        first, *_, last = sweep.cells()
        assert (first.params.max_frames, first.params.seed, last.params.seed) == (10, 10, 9)
        assert (first.params.diffusion_steps, last.params.diffusion_steps) == (4, 8)
        assert first.params.step_cache_threshold is None
        assert (first.params.negative_prompt, last.params.negative_prompt) == ("yes", "~")
        assert (first.position["kind"], last.position["kind"]) == ("yes", "2024")
        assert (first.params.seam_frames, last.params.seam_frames) == (10, 8)
        assert first.params.audio_path.endswith("/2024")
        again = tmp_path / "again.yaml"
        again.write_text(sweep.to_yaml())
        assert Sweep.from_yaml(again).cells() == sweep.cells()
    assert last.params.prompt == "yes"


@pytest.mark.parametrize("section", ["seeds: 3", "portraits: sample:portrait", "base: text", "axes: [1]"])
def test_a_section_of_the_wrong_kind_is_refused(tmp_path, section):
    (tmp_path / "sweep.yaml").write_text(section)
    with pytest.raises(InvalidRequest, match=f"the section `{section.partition(':')[0]}` is not valid"):
        Sweep.from_yaml(tmp_path / "sweep.yaml")
