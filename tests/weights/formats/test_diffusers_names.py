"""Every tensor of the Wan transformer under its name in diffusers."""

import pytest
import torch

from talkinghead_lab.models.dit.model import DiT
from talkinghead_lab.training.networks import embedded_configs
from talkinghead_lab.weights.formats.diffusers_names import diffusers_name, released_name

# Modules of `WanTransformer3DModel`, as its state dict lists them.
LINEAR_IN_BLOCK = (
    *(f"attn1.{part}" for part in ("to_q", "to_k", "to_v", "to_out.0")),
    *(f"attn2.{part}" for part in ("to_q", "to_k", "to_v", "to_out.0", "add_k_proj", "add_v_proj")),
    *("norm2", "ffn.net.0.proj", "ffn.net.2"),
)
NORMS_IN_BLOCK = ("attn1.norm_q", "attn1.norm_k", "attn2.norm_q", "attn2.norm_k", "attn2.norm_added_k")
LINEAR = (
    "patch_embedding",
    "condition_embedder.time_embedder.linear_1",
    "condition_embedder.time_embedder.linear_2",
    "condition_embedder.time_proj",
    "condition_embedder.text_embedder.linear_1",
    "condition_embedder.text_embedder.linear_2",
    "condition_embedder.image_embedder.norm1",
    "condition_embedder.image_embedder.ff.net.0.proj",
    "condition_embedder.image_embedder.ff.net.2",
    "condition_embedder.image_embedder.norm2",
    "proj_out",
)


def names_in_diffusers(blocks: int) -> list[str]:
    """The tensors of `WanTransformer3DModel` for image-to-video."""
    names = [f"{layer}.{kind}" for layer in LINEAR for kind in ("weight", "bias")] + ["scale_shift_table"]
    for block in (f"blocks.{i}" for i in range(blocks)):
        names += [f"{block}.{layer}.{kind}" for layer in LINEAR_IN_BLOCK for kind in ("weight", "bias")]
        names += [f"{block}.{layer}.weight" for layer in NORMS_IN_BLOCK] + [f"{block}.scale_shift_table"]
    return names


def test_every_tensor_but_those_of_infinitetalk_has_a_name_in_diffusers():
    with torch.device("meta"):
        transformer = DiT(embedded_configs().dit)
    released = {name for name in transformer.state_dict() if "audio" not in name and "norm_x" not in name}
    renamed = [released_name(name) for name in names_in_diffusers(len(transformer.blocks))]
    assert len(renamed) == len(set(renamed))
    assert set(renamed) == released
    assert [diffusers_name(name) for name in renamed] == names_in_diffusers(len(transformer.blocks))


@pytest.mark.parametrize(
    ("name", "released"),
    [
        ("blocks.39.attn2.add_k_proj", "blocks.39.cross_attn.k_img"),
        ("blocks.0.attn1.to_out.0.bias", "blocks.0.self_attn.o.bias"),
        ("blocks.0.ffn.net.2.weight", "blocks.0.ffn.2.weight"),
        ("condition_embedder.image_embedder.norm2.bias", "img_emb.proj.4.bias"),
        ("proj_out", "head.head"),
        ("blocks.1.audio_cross_attn.q_linear.weight", "blocks.1.audio_cross_attn.q_linear.weight"),
        ("proj_output.weight", "proj_output.weight"),
        ("blocks.1.attn3.to_q", "blocks.1.attn3.to_q"),
    ],
)
def test_names_of_layers_and_tensors(name, released):
    assert released_name(name) == released
