"""What tensors do not show: from files and headers, as released, or an error that names what is missing."""

import base64
import json
from pathlib import Path

import pytest
import torch

from talkinghead_lab.errors import CheckpointError
from talkinghead_lab.weights.formats.names.recognition import ROLES
from talkinghead_lab.weights.formats.network_file import NetworkFile
from talkinghead_lab.weights.released_configs import RELEASED_SHAPES, config_fields_for
from tests.parity import golden

RELEASED_TENSORS = json.loads((golden.FOLDER / "released_checkpoint_tensors.json").read_text())


def network(path: Path, role: str, *, released: bool = True, **metadata: str) -> NetworkFile:
    shape = RELEASED_SHAPES[role]
    tensor = torch.empty(shape if released else (2 * shape[0], *shape[1:]), device="meta")
    return NetworkFile((path / "some.safetensors",), (role,), "", {ROLES[role]: tensor}, metadata)


def write(folder: Path, name: str, **fields) -> None:
    (folder / name).write_text(json.dumps(fields))


@pytest.mark.parametrize("role", ["transformer", "vae", "text_encoder", "image_encoder"])
def test_released_shapes_are_those_of_the_released_files(role):
    found = {tuple(t[ROLES[role]]) for t in RELEASED_TENSORS.values() if ROLES[role] in t}
    assert RELEASED_SHAPES[role] in found


def test_single_files_of_released_sizes_need_no_other(tmp_path):
    fields = {role: config_fields_for(role, network(tmp_path, role)) for role in RELEASED_SHAPES}
    assert (fields["transformer"]["num_heads"], fields["transformer"]["text_len"]) == (40, 512)
    assert fields["image_encoder"] == {"num_heads": 16, "activation": "gelu", "norm_eps": 1e-5}
    assert fields["text_encoder"]["max_distance"] == 128
    assert fields["speech_encoder"]["conv_stride"] == [5, 2, 2, 2, 2, 2, 2]
    assert fields["speech_encoder"]["do_normalize"] is False


@pytest.mark.parametrize(
    ("role", "fields"),
    [
        ("transformer", "num_heads and text_len"),
        ("image_encoder", "num_heads"),
        ("speech_encoder", "num_attention_heads and conv_stride"),
    ],
)
def test_other_sizes_need_a_file_that_says_the_rest(tmp_path, role, fields):
    with pytest.raises(CheckpointError, match=f"nothing says {fields}") as caught:
        config_fields_for(role, network(tmp_path, role, released=False))
    assert str(tmp_path / "config.json") in caught.value.allowed
    assert "some.json" in caught.value.allowed
    field = fields.split()[0]
    write(tmp_path, "some.json", **{field: 7})
    assert config_fields_for(role, network(tmp_path, role, released=False)) == {field: 7}


def test_files_beside_the_weights_count_more_than_released_values(tmp_path):
    write(tmp_path, "config.json", model_type="wav2vec2", layer_norm_eps=1e-3, do_normalize=True)
    speech = network(tmp_path, "speech_encoder")
    assert config_fields_for("speech_encoder", speech)["layer_norm_eps"] == 1e-3
    write(tmp_path, "preprocessor_config.json", do_normalize=False, sampling_rate=16000)
    assert config_fields_for("speech_encoder", speech)["do_normalize"] is False


def test_in_a_flat_folder_a_config_is_read_for_its_own_network_only(tmp_path):
    write(tmp_path, "config.json", model_type="wav2vec2", num_attention_heads=3)
    write(tmp_path, "preprocessor_config.json", image_mean=[0, 0, 0], do_normalize=True)
    assert config_fields_for("transformer", network(tmp_path, "transformer"))["num_heads"] == 40
    assert config_fields_for("image_encoder", network(tmp_path, "image_encoder"))["num_heads"] == 16
    speech = config_fields_for("speech_encoder", network(tmp_path, "speech_encoder"))
    assert (speech["num_attention_heads"], speech["do_normalize"]) == (3, False)


@pytest.mark.parametrize(
    ("role", "config", "expected"),
    [
        (
            "transformer",
            {"_class_name": "WanTransformer3DModel", "num_attention_heads": 12, "in_channels": 36},
            {"num_heads": 12, "in_dim": 36},
        ),
        ("vae", {"_class_name": "AutoencoderKLWan", "latents_mean": [0.5]}, {"latent_mean": [0.5]}),
        (
            "text_encoder",
            {"model_type": "umt5", "relative_attention_max_distance": 64, "layer_norm_epsilon": 1e-5},
            {"max_distance": 64, "norm_eps": 1e-5},
        ),
        (
            "image_encoder",
            {"model_type": "clip_vision_model", "num_attention_heads": 8, "hidden_act": "quick_gelu"},
            {"num_heads": 8, "activation": "quick_gelu"},
        ),
    ],
)
def test_fields_of_diffusers_and_transformers_get_our_names(tmp_path, role, config, expected):
    write(tmp_path, "config.json", **config)
    fields = config_fields_for(role, network(tmp_path, role))
    assert {name: fields[name] for name in expected} == expected


@pytest.mark.parametrize("encoded", [True, False])
def test_a_header_may_hold_the_config(tmp_path, encoded):
    text = json.dumps({"model_type": "i2v", "num_heads": 10, "text_len": 64})
    metadata = {"config_base64": base64.b64encode(text.encode()).decode()} if encoded else {"config": text}
    found = config_fields_for("transformer", network(tmp_path, "transformer", released=False, **metadata))
    assert (found["num_heads"], found["text_len"]) == (10, 64)


@pytest.mark.parametrize("metadata", [{"config_base64": "!"}, {"config_base64": "W10="}, {"config": "{"}])
def test_a_damaged_header_is_named(tmp_path, metadata):
    with pytest.raises(CheckpointError, match=r"config.* in the header of .*some\.safetensors"):
        config_fields_for("transformer", network(tmp_path, "transformer", **metadata))


def test_a_map_of_quantised_layers_is_no_config(tmp_path):
    write(tmp_path, "some.json", **{"blocks.0.ffn.0": {"weights": "qint8"}})
    with pytest.raises(CheckpointError, match="nothing says"):
        config_fields_for("transformer", network(tmp_path, "transformer", released=False))


def test_a_field_that_cannot_be_right_is_named_with_its_file(tmp_path):
    write(tmp_path, "config.json", model_type="i2v", num_heads=0)
    with pytest.raises(CheckpointError, match=r"`num_heads` of .*config\.json is not valid"):
        config_fields_for("transformer", network(tmp_path, "transformer"))
