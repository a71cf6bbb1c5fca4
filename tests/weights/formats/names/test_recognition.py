"""The bundled networks in every layout get their released names, and their values arrive in the networks."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from talkinghead_lab.errors import CheckpointError
from talkinghead_lab.models.encoders import image as image_encoder
from talkinghead_lab.models.encoders import speech as speech_encoder
from talkinghead_lab.training.networks import build_untrained
from talkinghead_lab.weights.formats.names.recognition import recognised
from talkinghead_lab.weights.formats.network_file import read_network
from tests.weights.formats import writers

CASES = [
    *(
        (role, "released", prefix)
        for role, prefixes in writers.PREFIXES.items()
        for prefix in ("", *prefixes)
    ),
    *((role, program, "") for role, programs in writers.LAYOUTS.items() for program in programs),
    ("text_encoder", "ComfyUI", "text_encoders.umt5xxl.transformer."),
    ("transformer", "diffusers", "transformer."),
]
# Tensors of layouts that have no released counterpart; loading leaves them out.
UNUSED = ("visual_projection.", "logit_scale", "visual.head", "visual.post_norm", "quantizer.", "project_q.")


@pytest.fixture(scope="module")
def networks():
    return build_untrained(0)


def written(networks, role: str, program: str) -> writers.Tensors:
    writer = writers.RELEASED[role] if program == "released" else writers.LAYOUTS[role][program]
    return {name: tensor.contiguous().clone() for name, tensor in writer(networks).items()}


@pytest.mark.parametrize(("role", "program", "prefix"), CASES)
def test_released_names_and_values(networks, tmp_path, role, program, prefix):
    path = tmp_path / "weights.safetensors"
    save_file(writers.prefixed(prefix, written(networks, role, program)), path)
    found = read_network(path)
    assert found.roles == (role,)
    assert (program in found.layout) or program in ("WanVideoWrapper", "ComfyUI")
    assert found.layout.endswith(prefix or found.layout)
    tensors = {name: t for name, t in found.plain.items() if not name.startswith((*UNUSED, "masked_spec"))}
    expected = writers.RELEASED[role](networks)
    if role == "image_encoder":
        config = networks.image_encoder.config
        tensors, expected = (image_encoder.from_released(t, config) for t in (tensors, expected))
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)


def test_heads_of_pretraining_are_left_out_by_the_speech_encoder(networks):
    found = recognised(writers.speech_of_transformers(networks), Path("a"))
    config = networks.speech_encoder.config
    state = speech_encoder.from_released(dict(found.tensors), config)
    assert state.keys() == networks.speech_encoder.state_dict().keys()


@pytest.mark.parametrize("program", ["transformers", "OpenCLIP"])
def test_sizes_of_the_image_encoder_are_those_of_the_released_file(networks, program):
    found = recognised(writers.LAYOUTS["image_encoder"][program](networks), Path("a"))
    shapes = {name: tuple(stored.shape) for name, stored in found.tensors.items()}
    heads = {"num_heads": networks.image_encoder.config.num_heads}
    assert image_encoder.ImageEncoderConfig.from_tensors(shapes, heads) == networks.image_encoder.config


def test_the_text_tower_of_a_complete_clip_is_left_out(networks):
    tensors = writers.image_of_transformers(networks) | {
        "text_model.encoder.layers.0.mlp.fc1.weight": torch.ones(2, 2),
        "text_projection.weight": torch.ones(2, 2),
        "vision_model.embeddings.position_ids": torch.arange(3)[None],
    }
    found = recognised(tensors, Path("a"))
    assert found.roles == ("image_encoder",)
    state = image_encoder.from_released(dict(found.tensors), networks.image_encoder.config)
    assert state.keys() == networks.image_encoder.state_dict().keys()


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("program", ["released", "diffusers"])
def test_a_transformer_with_its_adapter_in_one_file(networks, prefix, program):
    merged = written(networks, "transformer", program) | written(networks, "adapter", "WanVideoWrapper")
    found = recognised(writers.prefixed(prefix, merged), Path("a"))
    assert found.roles == ("transformer", "adapter")
    assert found.tensors.keys() == networks.dit.state_dict().keys()


def test_only_names_and_shapes_are_looked_at(networks):
    """Tensors on the meta device have no values."""
    for role, program, prefix in CASES:
        tensors = {name: t.to("meta") for name, t in written(networks, role, program).items()}
        assert recognised(writers.prefixed(prefix, tensors), Path("a")).roles == (role,)


@pytest.mark.parametrize(
    ("role", "name", "again"),
    [
        ("transformer", "blocks.0.ffn.0.weight", "model.diffusion_model.blocks.0.ffn.0.weight"),
        ("adapter", "audio_proj.proj2.bias", "multitalk_audio_proj.proj2.bias"),
        ("text_encoder", "norm.weight", "text_encoder.norm.weight"),
    ],
)
def test_a_tensor_under_two_names_is_refused(networks, role, name, again):
    tensors = writers.RELEASED[role](networks)
    tensors[again] = tensors[name]
    with pytest.raises(CheckpointError, match="twice") as caught:
        recognised(tensors, Path("some.safetensors"))
    assert caught.value.received == f"{name} and {again} in some.safetensors"


def test_an_embedding_of_another_shape_is_no_second_name_of_the_first(networks):
    tensors = writers.text_of_transformers(networks)
    tensors["encoder.embed_tokens.weight"] = torch.ones(3, 4)
    with pytest.raises(CheckpointError, match=r"`token_embedding\.weight` twice"):
        recognised(tensors, Path("a"))


@pytest.mark.parametrize(
    ("role", "kept", "message"),
    [
        ("transformer", "blocks.[2-5].", r"part of the transformer \(blocks 2 to 5\)"),
        ("transformer", "patch|time|blocks.0", r"part of the transformer \(blocks 0 to 0\)"),
        ("adapter", "blocks", "part of the adapter"),
        ("text_encoder", "blocks.1", r"part of the text encoder \(blocks 1 to 1\)"),
        ("vae", "decoder", "part of the vae"),
        ("image_encoder", "visual.transformer", "part of the image encoder"),
    ],
)
def test_one_shard_alone_is_named_as_a_part(networks, role, kept, message):
    tensors = {n: t for n, t in writers.RELEASED[role](networks).items() if re.match(kept, n)}
    with pytest.raises(CheckpointError, match=message) as caught:
        recognised(tensors, Path("shard.safetensors"))
    assert "shard.safetensors, without" in caught.value.received


def test_several_networks_in_one_file_are_listed(networks):
    tensors = writers.prefixed("model.diffusion_model.", writers.RELEASED["transformer"](networks))
    tensors |= writers.prefixed("vae.", writers.RELEASED["vae"](networks))
    with pytest.raises(CheckpointError, match="several networks") as caught:
        recognised(tensors, Path("all.safetensors"))
    assert caught.value.received == "all.safetensors: transformer, vae"


@pytest.mark.parametrize(
    ("names", "received"),
    [([], "a, which holds no tensor"), (["b.x", "a.y", "c", "d"], "a, which holds a.y, b.x, c")],
)
def test_other_tensors_are_no_file_of_this_model(names, received):
    with pytest.raises(CheckpointError, match="no weight file of this model") as caught:
        recognised({name: torch.zeros(1) for name in names}, Path("a"))
    assert caught.value.received == received


@pytest.mark.parametrize("name", ["." * 10**6, "a\nblocks.0.ffn.0.weight", "a\0"])
def test_names_that_no_program_writes_are_refused_at_once(name):
    with pytest.raises(CheckpointError, match="too long or not text") as caught:
        recognised({name: torch.zeros(1)}, Path("a"))
    assert len(caught.value.received) < 200
