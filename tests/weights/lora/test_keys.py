"""Spellings of layers and parts; keys that cannot be applied."""

import pytest
import torch

from talkinghead_lab.errors import CheckpointError
from talkinghead_lab.weights.formats.diffusers_names import diffusers_name
from talkinghead_lab.weights.lora.keys import layer_names

LAYER = "blocks.1.cross_attn.k_img"
PAIR = torch.arange(48.0).view(2, 24) / 48, torch.arange(48.0).view(24, 2) / 24
PREFIXES = (
    "",
    "diffusion_model.",
    "model.diffusion_model.",
    "transformer.",
    "pipe.dit.",
    "base_model.model.",
)
UNDERSCORED = ("lora_unet_", "lora_unet__", "lycoris_", "lora_transformer_")
PARTS = {
    "lora_down.weight": "lora_up.weight",
    "lora_A.weight": "lora_B.weight",
    "lora_A.default.weight": "lora_B.default.weight",
    "lora_A": "lora_B",
    "lora.down.weight": "lora.up.weight",
    "lora_linear_layer.down.weight": "lora_linear_layer.up.weight",
}


@pytest.mark.parametrize("layer", [LAYER, diffusers_name(LAYER)])
@pytest.mark.parametrize("prefix", [*PREFIXES, *UNDERSCORED])
@pytest.mark.parametrize("down", PARTS)
def test_all_spellings(merge, layer, prefix, down):
    layer = prefix + (layer.replace(".", "_") if prefix in UNDERSCORED else layer)
    changes = merge({f"{layer}.{down}": PAIR[0], f"{layer}.{PARTS[down]}": PAIR[1]})
    assert list(changes) == [f"{LAYER}.weight"]
    torch.testing.assert_close(changes[f"{LAYER}.weight"], PAIR[1] @ PAIR[0])


@pytest.mark.parametrize(
    ("key", "layer"),
    [
        ("lora_unet_blocks_1.cross_attn.k_img.lora_{}.weight", LAYER),
        ("base_model.model.diffusion_model.blocks.1.cross_attn.k_img.lora_{}.weight", LAYER),
        ("transformer.blocks.1.attn2.add_k_proj_lora.{}.weight", LAYER),
        ("blocks.0.audio_cross_attn.proj.lora_{}.weight", "blocks.0.audio_cross_attn.proj"),
        ("lora_unet_blocks_0_audio_cross_attn_q_linear.lora_{}.weight", "blocks.0.audio_cross_attn.q_linear"),
    ],
)
def test_rarer_spellings(merge, key, layer):
    changes = merge({key.format("down"): PAIR[0], key.format("up"): PAIR[1]})
    assert list(changes) == [f"{layer}.weight"]


@pytest.mark.parametrize("layer", ["audio_proj", "multitalk_audio_proj"])
def test_both_names_of_the_audio_projection(merge, layer):
    changes = merge({f"diffusion_model.{layer}.norm.diff": torch.ones(10)})
    assert list(changes) == ["audio_proj.norm.weight"]


def test_no_two_layers_share_a_spelling(model):
    names = layer_names(model)
    layers = {key.rsplit(".", 1)[0] if not key.endswith("modulation") else key for key in model.state_dict()}
    assert set(names.values()) == layers
    for layer in layers:
        assert names[layer.replace(".", "_")] == names[diffusers_name(layer).replace(".", "_")] == layer


def pair(layer: str) -> dict[str, torch.Tensor]:
    return {f"{layer}.lora_down.weight": PAIR[0], f"{layer}.lora_up.weight": PAIR[1]}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["blocks.2.ffn.0.diff"], r"1 of its 3 keys.*`blocks\.2\.ffn\.0\.diff`.*more than 2 blocks"),
        (["vace_blocks.0.ffn.0.diff"], "Wan VACE"),
        (["lora_te1_text_model_encoder.diff"], "text encoder"),
        (["transformer_2.blocks.0.attn1.to_q.diff"], "second transformer of Wan2.2"),
        (["double_blocks.0.img_attn.qkv.diff"], "FLUX or HunyuanVideo"),
        (["transformer.transformer_blocks.0.attn.to_q.diff"], "LTX-Video, SD3 or Qwen-Image"),
        (["lora_unet_down_blocks_0_attentions_0.alpha"], "Stable Diffusion"),
        (
            ["blocks.0.unheard_of.diff"],
            r"match no layer: received `blocks\.0\.unheard_of\.diff`\. Use one for",
        ),
        (["blocks.0.norm1.diff"], "match no layer"),
        (["blocks.0.ffn.diff_m"], "match no layer"),
        (["blocks.0.ffn.0.weight", "blocks.0.ffn.0.bias"], "weights of a network, not a LoRA"),
        (
            ["a.x.diff", "b.x.diff", "c.x.diff", "d.x.diff"],
            "4 of its 6 keys.*`a.x.diff`, `b.x.diff`, `c.x.diff`, …",
        ),
        (["patch_embedding.reshape_weight"], "resizes the layer.*`patch_embedding.reshape_weight`"),
        (["blocks.0.ffn.0.oft_blocks", "blocks.0.ffn.2.oft_blocks"], "OFT.*oft_blocks` and 1 more"),
        (["blocks.0.ffn.0.a1.weight"], "GLoRA"),
        (["blocks.0.norm3.set_weight"], "replaces the layer's"),
        (["lora_unet_blocks_0_ffn_0.on_input"], "IA3"),
        (["blocks.0.ffn.0.lora_down.scale_weight"], "quantised LoRA"),
    ],
)
def test_keys_that_cannot_be_applied_are_named_and_nothing_changes(model, merge, keys, message):
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(CheckpointError, match=message):
        merge(pair(LAYER) | dict.fromkeys(keys, torch.ones(1)))
    assert all(map(torch.equal, model.parameters(), before))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (pair("layers.0.q"), r"for another model \(its header says wan2\.2-t2v-14B/lora, Wan2\.2\)"),
        (pair("vace_blocks.0.ffn.0"), r"for Wan VACE \(its header says wan2\.2"),
        (pair("blocks.0.ffn.0"), r"made for another model \(its header says wan2\.2"),
    ],
)
def test_what_the_header_says_is_quoted(merge, tensors, message):
    header = {"modelspec.architecture": "wan2.2-t2v-14B/lora", "ss_base_model_version": "Wan2.2"}
    with pytest.raises(CheckpointError, match=message):
        merge(tensors, header=header)


@pytest.mark.parametrize(
    "tensors",
    [
        pair(LAYER) | pair(f"diffusion_model.{LAYER}"),
        pair(LAYER) | pair(f"transformer.{diffusers_name(LAYER)}"),
        pair(LAYER) | {f"{LAYER}.lora_A.weight": PAIR[0]},
        {f"{LAYER}.lora_down.weight": PAIR[0], f"diffusion_model.{LAYER}.lora_up.weight": PAIR[1]},
        {f"{LAYER}.lora_A.one.weight": PAIR[0], f"{LAYER}.lora_A.two.weight": PAIR[0]},
        {"blocks.0.diff_m": torch.ones(1, 6, 24), "blocks.0.modulation.diff": torch.ones(1, 6, 24)},
        {"blocks.0.norm2.diff": torch.ones(24), "blocks.0.norm3.diff": torch.ones(24)},
    ],
)
def test_two_updates_of_one_layer_are_an_error(model, merge, tensors):
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(CheckpointError, match=r"updates blocks\.\S+ twice.* besides .*two files"):
        merge(tensors)
    assert all(map(torch.equal, model.parameters(), before))
