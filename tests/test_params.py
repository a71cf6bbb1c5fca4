"""The request: presets, rejected values and their messages, and round trips through YAML and notebooks."""

import math
import os
import tempfile
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from talkinghead_lab.defaults import EMBEDDED, RELEASED_SHIFT
from talkinghead_lab.errors import InvalidRequest, MediaError
from talkinghead_lab.foundation.paths import local_file
from talkinghead_lab.media.frame_size import RELEASED_SIZES
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.pipeline.request import sampling_config
from talkinghead_lab.request_text import read_yaml

PARAMETER_FILES = sorted((Path(__file__).parent.parent / "params").glob("[!s]*.yaml"))
MEDIA = {"audio_path": "sample:recording", "image_path": "sample:portrait"}


@pytest.mark.parametrize("path", PARAMETER_FILES, ids=lambda path: path.stem)
def test_every_preset_is_a_request(path):
    params = GenerationParams.from_yaml(path)
    written = read_yaml(path)
    assert params.diffusion_steps == written["diffusion_steps"]
    assert (
        params.checkpoint == written["checkpoint"] == ("embedded" if "embedded" in path.stem else "released")
    )
    assert GenerationParams(**yaml.safe_load(params.to_yaml())) == params


def test_presets_have_the_values_their_names_promise():
    preset = {path.stem: GenerationParams.from_yaml(path) for path in PARAMETER_FILES}
    assert preset["infinitetalk-480"].forced_size == (1024, 576)
    assert preset["infinitetalk-720"].forced_size == (1280, 720)
    assert preset["infinitetalk-720"].shift == 11
    fast = preset["infinitetalk-fast"]
    assert (fast.diffusion_steps, fast.text_guide_scale, fast.audio_guide_scale, fast.shift) == (8, 1, 2, 2)
    assert not sampling_config(fast).text_is_guided
    assert sampling_config(fast).audio_is_guided
    assert len(fast.loras) == 1
    assert preset["two-speakers"].speakers == 2
    assert preset["dubbing"].speakers == 1


@pytest.mark.parametrize("path", PARAMETER_FILES, ids=lambda path: path.stem)
def test_the_media_of_every_preset_ship_with_the_package(path):
    params = GenerationParams.from_yaml(path)
    for media in filter(None, (params.image_path, params.audio_path, params.second_audio_path)):
        assert local_file(media).stat().st_size > 0


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("text_guide_scale", math.nan, "finite"),
        ("audio_guide_scale", math.inf, "finite"),
        ("audio_guide_scale", -1, "greater than or equal to 0"),
        ("text_guide_scale", 31, "less than or equal to 30"),
        ("text_guide_scale", [3, 31], "less than or equal to 30. `text_guide_scale.1`"),
        ("text_guide_scale", "[3, a]", "a valid number"),
        ("audio_guide_scale", [], "at least 1 in the list"),
        ("audio_guide_scale", [4] * 5, "5 values, but there are 4 diffusion_steps"),
        ("guidance_interval", [0.5, 0.2], "0 <= from < to <= 1"),
        ("guidance_interval", [0, 0.1], "holds none of the 4 steps"),
        ("zero_init_steps", 1, "requires cfg_zero_star"),
        ("diffusion_steps", 0, "greater than or equal to 1"),
        ("sigmas", [], "`sigmas` is not valid"),
        ("diffusion_steps", 8.5, "integer"),
        ("chunk_frames", 80, "77 and 81"),
        ("chunk_frames", 2, "greater than or equal to 5"),
        ("motion_frame", 10, "9 and 13"),
        ("motion_frame", 81, "smaller than chunk_frames 81"),
        ("seed", -1, "greater than or equal to 0"),
        ("seed", 2**63, "less than"),
        ("max_frames", 0, "greater than or equal to 1"),
        ("sample_shift", 0, "greater than 0"),
        ("frame_size", "160x161", "multiples of 16"),
        ("frame_size", "0x160", "multiples of 16"),
        ("frame_size", "160*160", "WIDTHxHEIGHT"),
        ("resolution", "infinitetalk-1080", "'infinitetalk-480' or 'infinitetalk-720'"),
        ("checkpoint", "other", "'embedded' or 'released'"),
        ("precision", "fp7", "'fp8'"),
        ("device", "gpu", "auto, cpu, cuda or cuda:N"),
        ("background", "#fff0", "#rrggbb or a CSS colour name"),
        ("background", "rgb(300, 0, 0)", "#rrggbb or a CSS colour name"),
        ("background", None, "string"),
        ("prompt", "word " * 2000, "2000"),
        ("audio_path", "  ", "must not be empty"),
        ("image_path", 7, "string"),
        ("loras", [{"path": "a.safetensors", "scale": math.nan}], "finite"),
        ("loras", [{"path": "a.safetensors", "scales": 1}], "loras.0.scales. Did you mean `scale`?"),
        ("loras", [{"file": "a.safetensors"}], "loras.0.file. Known names: path, scale"),
        ("loras", ["a.safetensors"], "a mapping of path, scale"),
        ("loras", "a.safetensors", "allowed: a list"),
        ("loras", [{"path": "a.safetensors", "scale": []}], "at least 1 in the list"),
        ("speaker_boxes", [[0, 0, 10, 10], [5, 5, 5, 9]], "left < right"),
        (
            "speaker_boxes",
            [[0, 0, 10]],
            "`speaker_boxes.0` is not valid: received [0, 0, 10]; allowed: at least 4",
        ),
        ("speaker_boxes", [[0, 0, 10, 10, 5]], "received [0, 0, 10, 10, 5]; allowed: at most 4 in the list"),
        ("image_path", [{"start": 0, "file": "a"}] * 2, "`start` must be 0 in the first entry"),
    ],
)
def test_an_invalid_value_is_rejected_with_the_allowed_values(field, value, expected):
    with pytest.raises(InvalidRequest) as refusal:
        GenerationParams(**(MEDIA | {field: value}))
    message = str(refusal.value)
    assert expected in message
    assert field in message or field.removesuffix("s") in message
    assert len(message) < 500


def test_a_missing_field_is_named():
    with pytest.raises(InvalidRequest, match="`image_path` is missing"):
        GenerationParams(audio_path="sample:recording")


def test_an_unknown_field_is_rejected_with_the_nearest_name():
    with pytest.raises(InvalidRequest, match=r"received difusion_step.*Did you mean `diffusion_steps`"):
        GenerationParams(**MEDIA, difusion_step=8)


def test_fields_are_frozen_and_replace_validates():
    params = GenerationParams(**MEDIA)
    with pytest.raises(Exception, match="frozen"):
        params.seed = 1
    assert params.replace(seed=1).seed == 1
    assert params.seed == 42
    with pytest.raises(InvalidRequest):
        params.replace(seed=-1)


def test_the_shift_follows_the_resolution_unless_set():
    for resolution, shift in RELEASED_SHIFT.items():
        given = MEDIA | {"resolution": resolution}
        assert GenerationParams(**given, checkpoint="released").shift == shift
        assert GenerationParams(**given, checkpoint="released", sample_shift=2).shift == 2
        for unset in ({}, {"sample_shift": None}):
            params = GenerationParams(**given, **unset)
            assert params.shift == params.sample_shift == 3
            assert "sample_shift" not in yaml.safe_load(params.to_yaml())


def test_what_is_left_out_follows_the_checkpoint():
    """`embedded.yaml` spells out the defaults of the bundled model."""
    preset = GenerationParams.from_yaml(PARAMETER_FILES[0].with_name("embedded.yaml"))
    bare = GenerationParams(**MEDIA, prompt=preset.prompt)
    assert bare == preset
    assert EMBEDDED.items() <= read_yaml(PARAMETER_FILES[0].with_name("embedded.yaml")).items()
    assert (bare.frame_size, bare.diffusion_steps, bare.shift) == ("160x160", 4, 3.0)
    released = GenerationParams(**MEDIA, checkpoint="released")
    assert (released.frame_size, released.diffusion_steps, released.text_guide_scale) == ("auto", 40, 5.0)
    assert (released.sample_shift, released.seam_frames, released.trim_last_chunk) == (None, 0, False)
    assert GenerationParams(**MEDIA, diffusion_steps=40).diffusion_steps == 40


@pytest.mark.parametrize("checkpoint", ["embedded", "released"])
def test_yaml_leaves_out_only_what_equals_the_defaults_of_the_checkpoint(checkpoint):
    params = GenerationParams(**MEDIA, checkpoint=checkpoint)
    assert set(yaml.safe_load(params.to_yaml())) - {"checkpoint"} == set(MEDIA)
    for other in ("embedded", "released"):
        given = GenerationParams.defaults_of(other) | MEDIA | {"checkpoint": checkpoint}
        params = GenerationParams(**given)
        assert GenerationParams(**yaml.safe_load(params.to_yaml())) == params
        assert all(getattr(params, name) == value for name, value in given.items() if value is not None)


@pytest.mark.parametrize("marker", ["notebooks/01_generate.ipynb", "talkinghead_lab/__init__.py"])
def test_relative_paths_start_from_the_project_also_in_its_notebooks(tmp_path, monkeypatch, marker):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / marker).parent.mkdir(exist_ok=True)
    (tmp_path / marker).touch()
    for working_directory in (tmp_path, tmp_path / "notebooks"):
        monkeypatch.chdir(working_directory)
        params = GenerationParams(audio_path="inputs/a.wav", image_path="sample:portrait")
        assert params.audio_path == str(tmp_path / "inputs" / "a.wav")
        assert params.image_path == "sample:portrait"


def test_relative_paths_stay_in_other_folders_named_notebooks(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "mine.ipynb").touch()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert GenerationParams(**MEDIA | {"audio_path": "a.wav"}).audio_path == str(
        tmp_path / "notebooks" / "a.wav"
    )


@pytest.mark.parametrize(
    ("size", "chunk_frames", "largest"),
    [
        ("99984x99984", 81, "3568x3568"),
        ("3584x3584", 81, "3568x3568"),
        ("7680x4320", 81, "4752x2672"),
        ("1280x1280", 1001, "1024x1024"),
        ("16x99984", 13, "16x16384"),
    ],
)
def test_a_frame_size_beyond_sense_is_refused_with_the_largest(size, chunk_frames, largest):
    with pytest.raises(InvalidRequest, match=f"up to {largest}") as refusal:
        GenerationParams(**MEDIA, frame_size=size, chunk_frames=chunk_frames)
    assert refusal.value.field == "frame_size"
    assert GenerationParams(**MEDIA, frame_size=largest, chunk_frames=chunk_frames).frame_size == largest


def test_released_sizes_are_allowed_with_every_chunk_length():
    for sizes in RELEASED_SIZES.values():
        for width, height in sizes:
            GenerationParams(**MEDIA, frame_size=f"{width}x{height}", chunk_frames=1001)


@pytest.mark.parametrize("name", ["none.wav", "x" * 5000, "null\0byte"])
def test_a_missing_file_is_named(tmp_path, name):
    with pytest.raises(MediaError, match="no such file") as refusal:
        local_file(str(tmp_path / name))
    assert len(str(refusal.value)) < 1000


def test_a_folder_and_an_unknown_sample_are_named(tmp_path):
    with pytest.raises(MediaError, match="not a file"):
        local_file(str(tmp_path))
    with pytest.raises(MediaError, match="no such sample"):
        local_file("sample:nobody")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can switch to a user without permissions")
def test_a_file_without_read_permission_is_named(tmp_path):
    with tempfile.NamedTemporaryFile() as secret:
        assert message_without_permission(secret.name).startswith("not a file that can be read")
    assert message_without_permission(str(tmp_path / "any.wav")).startswith(
        "no such file (Permission denied)"
    )


def message_without_permission(path: str) -> str:
    """The message of `local_file` for `path` in a process of the user nobody."""
    read_end, write_end = os.pipe()
    if not os.fork():
        os.setuid(65534)
        try:
            local_file(path)
        except MediaError as error:
            os.write(write_end, str(error).encode())
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end) as answer:
        return answer.read()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"- a list", "not a mapping"),
        (b"seed: [", "not valid YAML"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"", "not a mapping"),
    ],
)
def test_an_invalid_parameter_file_is_rejected(tmp_path, content, expected):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(InvalidRequest, match=expected):
        GenerationParams.from_yaml(path)
    with pytest.raises(InvalidRequest, match="cannot be read"):
        GenerationParams.from_yaml(tmp_path / "none.yaml")


def test_only_literals_of_a_notebook_namespace_become_parameters():
    namespace = MEDIA | {
        "seed": 7,
        "loras": [{"path": "/a.safetensors", "scale": 0.5}],
        "_": "output", "_i1": "source", "__name__": "__main__", "_ih": [], "In": ["x"], "Out": {},
        "exit": "x", "Path": Path, "GenerationParams": GenerationParams, "print_it": print,
    }  # fmt: skip
    params = GenerationParams.from_notebook(namespace)
    assert (params.seed, params.loras[0].scale) == (7, 0.5)
    with pytest.raises(InvalidRequest, match="Did you mean `audio_guide_scale`"):
        GenerationParams.from_notebook(namespace | {"audio_guidance_scale": 3})


PARAMETER_CELL = """\
# parameters
image_path = "sample:portrait"  # a comment
audio_path = "sample:recording"
seed: int = 7
loras = [{"path": "/a", "scale": 0.5}]
folder = "outputs"
"""


def run_cells(*cells: str) -> dict:
    """The namespace of a kernel that ran some cells; `from_notebook` is called after them."""
    namespace: dict = {"In": [""], "Out": {}}
    for cell in cells:
        namespace["In"].append(cell)
        exec(cell, namespace)
    return namespace


def request_of(*cells: str) -> GenerationParams:
    return GenerationParams.from_notebook(run_cells(*cells), besides=["folder"])


def test_a_variable_of_one_s_own_is_free_in_other_cells():
    before, after = "import math\nspeed = 3", "note = 'mine'\nseed = 8"
    params = request_of(before, PARAMETER_CELL, after, "words = ['a', 'b']")
    assert (params.seed, params.loras[0].scale) == (8, 0.5)


@pytest.mark.parametrize("name", ["audio_guidance_scale", "cfg", "note"])
def test_an_unknown_name_in_the_parameter_cell_or_from_papermill_is_refused(name):
    for cells in (
        [PARAMETER_CELL + f"{name} = 3"],
        [PARAMETER_CELL, f"# Parameters\n{name} = 3\n"],
        [PARAMETER_CELL, f"# Parameters\nseed = 9\n{name} = 3\n", "other = 1"],
    ):
        with pytest.raises(InvalidRequest, match="unknown parameter") as refusal:
            request_of(*cells)
        assert refusal.value.field == name


def test_a_corrected_parameter_cell_replaces_the_one_run_before():
    wrong = PARAMETER_CELL.replace("seed: int", "sed: int")
    with pytest.raises(InvalidRequest, match="`seed`"):
        request_of(wrong)
    assert request_of(wrong, PARAMETER_CELL).seed == 7


REQUESTS = st.fixed_dictionaries(
    {
        "audio_path": st.text(st.characters(codec="utf-8", exclude_characters="\0~"), min_size=1).filter(
            str.strip
        ),
        "image_path": st.just("sample:portrait"),
    },
    optional={
        "prompt": st.text(st.characters(codec="utf-8"), max_size=200),
        "negative_prompt": st.sampled_from(["", "yes", "null", "1e3", "a: b", "# no", "ʘ’\n\t"]),
        "resolution": st.sampled_from(sorted(RELEASED_SHIFT)),
        "frame_size": st.builds("{}x{}".format, *[st.integers(1, 200).map(lambda tokens: 16 * tokens)] * 2),
        "seed": st.integers(0, 2**63 - 1),
        "diffusion_steps": st.integers(1, 1000),
        "text_guide_scale": st.floats(0, 30),
        "audio_guide_scale": st.floats(0, 30),
        "sample_shift": st.none() | st.floats(0, 100, exclude_min=True),
        "motion_frame": st.integers(0, 19).map(lambda latents: 4 * latents + 1),
        "use_color_correction": st.booleans(),
        "loras": st.lists(
            st.fixed_dictionaries({"path": st.just("/lora.safetensors"), "scale": st.floats(-10, 10)}),
            max_size=3,
        ),
    },
)


@given(fields=REQUESTS)
def test_requests_round_trip_through_yaml(fields):
    params = GenerationParams(**fields)
    assert GenerationParams(**yaml.safe_load(params.to_yaml())) == params
    assert GenerationParams(**params.model_dump(mode="json")) == params


def test_a_seed_may_be_random_in_text_and_is_refused_by_its_field_otherwise(tmp_path):
    (tmp_path / "a.yaml").write_text("audio_path: a\nimage_path: i\nseed: random\n")
    params = GenerationParams.from_yaml(tmp_path / "a.yaml")
    assert params.seed == GenerationParams(**yaml.safe_load(params.to_yaml())).seed == "random"
    with pytest.raises(InvalidRequest, match="not drawn"):
        _ = params.drawn_seed
    for value in ("randomly", -1, 2**63, 1.5):
        with pytest.raises(InvalidRequest, match=r"^`seed` is not valid") as refusal:
            params.replace(seed=value)
        assert refusal.value.field == "seed"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"seed": -1}, "seed"),
        ({"seeed": 1}, "seeed"),
        ({"loras": [{"path": "a", "scale": 99}]}, "loras"),
        ({"motion_frame": 81}, "motion_frame"),
        ({"speaker_boxes": [[0, 0, 1, 1], [1, 1, 1, 1]]}, "speaker_boxes"),
    ],
)
def test_an_error_names_its_field(changes, field):
    with pytest.raises(InvalidRequest) as caught:
        GenerationParams(audio_path="a", image_path="b", **changes)
    assert caught.value.field == field
