"""The bundled networks under the names that other programs give to their tensors.

Each writer takes networks and gives the tensors of one file. It does not use the tables of the package: names
of transformers come from its own modules, the others are written out here.
"""

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from talkinghead_lab.weights import writing
from talkinghead_lab.weights.writing import Networks

Tensors = dict[str, Tensor]


def transformer_and_adapter(networks: Networks) -> tuple[Tensors, Tensors]:
    both = networks.dit.state_dict()
    adapter = {name for name in both if any(part in name for part in writing.ADAPTER_PARTS)}
    return writing.without(both, adapter), {name: both[name] for name in sorted(adapter)}


RELEASED: Mapping[str, Callable[[Networks], Tensors]] = {
    "transformer": lambda networks: transformer_and_adapter(networks)[0],
    "adapter": lambda networks: transformer_and_adapter(networks)[1],
    "vae": lambda networks: networks.vae.state_dict(),
    "text_encoder": lambda networks: writing.released_text(networks.text_encoder),
    "image_encoder": lambda networks: writing.released_image(networks.image_encoder),
    "speech_encoder": lambda networks: writing.released_speech(networks.speech_encoder),
}


def prefixed(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def renamed(tensors: Tensors, *replacements: tuple[str, str]) -> Tensors:
    """Apply regular expressions to all names, in order."""

    def new(name: str) -> str:
        for pattern, replacement in replacements:
            name = re.sub(pattern, replacement, name)
        return name

    return {new(name): tensor for name, tensor in tensors.items()}


def transformer_of_diffusers(networks: Networks) -> Tensors:
    return renamed(
        RELEASED["transformer"](networks),
        (r"\.norm3\.", ".norm2."),
        (r"\.self_attn\.", ".attn1."),
        (r"\.cross_attn\.", ".attn2."),
        (r"(attn[12])\.([qkv])\.", r"\1.to_\2."),
        (r"(attn[12])\.o\.", r"\1.to_out.0."),
        (r"\.([kv])_img\.", r".add_\1_proj."),
        (r"\.norm_k_img\.", ".norm_added_k."),
        (r"ffn\.0\.", "ffn.net.0.proj."),
        (r"ffn\.2\.", "ffn.net.2."),
        (r"^head\.head\.", "proj_out."),
        (r"^head\.modulation", "scale_shift_table"),
        (r"modulation$", "scale_shift_table"),
        (r"^time_embedding\.0", "condition_embedder.time_embedder.linear_1"),
        (r"^time_embedding\.2", "condition_embedder.time_embedder.linear_2"),
        (r"^time_projection\.1", "condition_embedder.time_proj"),
        (r"^text_embedding\.0", "condition_embedder.text_embedder.linear_1"),
        (r"^text_embedding\.2", "condition_embedder.text_embedder.linear_2"),
        (r"^img_emb\.proj\.0", "condition_embedder.image_embedder.norm1"),
        (r"^img_emb\.proj\.1", "condition_embedder.image_embedder.ff.net.0.proj"),
        (r"^img_emb\.proj\.3", "condition_embedder.image_embedder.ff.net.2"),
        (r"^img_emb\.proj\.4", "condition_embedder.image_embedder.norm2"),
    )


def autoencoder_of_diffusers(networks: Networks) -> Tensors:
    config = networks.vae.config
    per_stage = config.num_res_blocks + 2

    def up_block(match: re.Match[str]) -> str:
        stage, layer = divmod(int(match[1]), per_stage)
        kind = "resnets" if layer < per_stage - 1 else "upsamplers"
        return f"decoder.up_blocks.{stage}.{kind}.{layer if kind == 'resnets' else 0}."

    tensors = renamed(
        RELEASED["vae"](networks),
        (r"^conv1\.", "quant_conv."),
        (r"^conv2\.", "post_quant_conv."),
        (r"coder\.conv1\.", "coder.conv_in."),
        (r"coder\.head\.0\.", "coder.norm_out."),
        (r"coder\.head\.2\.", "coder.conv_out."),
        (r"middle\.0\.", "mid_block.resnets.0."),
        (r"middle\.1\.", "mid_block.attentions.0."),
        (r"middle\.2\.", "mid_block.resnets.1."),
        (r"downsamples\.", "down_blocks."),
        (r"\.residual\.0\.", ".norm1."),
        (r"\.residual\.2\.", ".conv1."),
        (r"\.residual\.3\.", ".norm2."),
        (r"\.residual\.6\.", ".conv2."),
        (r"\.shortcut\.", ".conv_shortcut."),
    )
    pattern = re.compile(r"decoder\.upsamples\.(\d+)\.")
    return {pattern.sub(up_block, name): tensor for name, tensor in tensors.items()}


def text_of_transformers(networks: Networks) -> Tensors:
    tensors = networks.text_encoder.state_dict()
    return {"shared.weight": tensors["encoder.embed_tokens.weight"], **tensors}


def text_of_comfyui(networks: Networks) -> Tensors:
    """With the bytes of the tokenizer's model, and without the second name of the embedding."""
    tensors = text_of_transformers(networks)
    del tensors["encoder.embed_tokens.weight"]
    return tensors | {"spiece_model": torch.arange(100, dtype=torch.uint8)}


def text_of_llama_cpp(networks: Networks) -> Tensors:
    return renamed(
        RELEASED["text_encoder"](networks),
        (r"^token_embedding", "token_embd"),
        (r"^norm\.", "enc.output_norm."),
        (r"^blocks\.", "enc.blk."),
        (r"attn\.([qkvo])\.", r"attn_\1."),
        (r"pos_embedding\.embedding", "attn_rel_b"),
        (r"norm1", "attn_norm"),
        (r"norm2", "ffn_norm"),
        (r"ffn\.gate\.0", "ffn_gate"),
        (r"ffn\.fc1", "ffn_up"),
        (r"ffn\.fc2", "ffn_down"),
    )


def image_of_transformers(networks: Networks) -> Tensors:
    """With the unused last block, norm and projection."""
    config = networks.image_encoder.config
    tensors = renamed(networks.image_encoder.state_dict(), (r"^vision\.", "vision_model."))
    last = f"vision_model.encoder.layers.{config.num_layers - 1}"
    first = "vision_model.encoder.layers.0"
    tensors |= {
        last + name.removeprefix(first): torch.ones_like(tensor)
        for name, tensor in tensors.items()
        if name.startswith(first)
    }
    tensors["vision_model.post_layernorm.weight"] = torch.ones(config.dim)
    tensors["vision_model.post_layernorm.bias"] = torch.ones(config.dim)
    return tensors | {"visual_projection.weight": torch.ones(8, config.dim)}


def image_of_open_clip(networks: Networks) -> Tensors:
    tensors = renamed(
        RELEASED["image_encoder"](networks),
        (r"cls_embedding", "class_embedding"),
        (r"pos_embedding", "positional_embedding"),
        (r"patch_embedding", "conv1"),
        (r"pre_norm", "ln_pre"),
        (r"transformer\.", "transformer.resblocks."),
        (r"\.norm([12])\.", r".ln_\1."),
        (r"attn\.to_qkv\.", "attn.in_proj_"),
        (r"attn\.proj\.", "attn.out_proj."),
        (r"mlp\.0\.", "mlp.c_fc."),
        (r"mlp\.2\.", "mlp.c_proj."),
    )
    for name in ("visual.class_embedding", "visual.positional_embedding"):
        tensors[name] = tensors[name].squeeze()
    return tensors | {"logit_scale": torch.ones(()), "visual.proj": torch.ones(8, 8)}


def speech_of_transformers(networks: Networks) -> Tensors:
    """A file of pretraining: a prefix, the present names of the weight norm, and heads."""
    tensors = prefixed("wav2vec2.", networks.speech_encoder.state_dict())
    heads = {"quantizer.codevectors": torch.ones(1, 4, 8), "project_q.weight": torch.ones(8, 8)}
    return tensors | heads | {"wav2vec2.masked_spec_embed": torch.ones(8)}


# Role → program → writer.
LAYOUTS: dict[str, dict[str, Callable[[Networks], Tensors]]] = {
    "transformer": {"diffusers": transformer_of_diffusers},
    "adapter": {
        "WanVideoWrapper": lambda networks: renamed(
            RELEASED["adapter"](networks), ("^audio_proj", "multitalk_audio_proj")
        )
    },
    "vae": {"diffusers": autoencoder_of_diffusers},
    "text_encoder": {
        "transformers": text_of_transformers,
        "ComfyUI": text_of_comfyui,
        "llama.cpp": text_of_llama_cpp,
    },
    "image_encoder": {"transformers": image_of_transformers, "OpenCLIP": image_of_open_clip},
    "speech_encoder": {"transformers": speech_of_transformers},
}
# Prefixes that each role is found under.
PREFIXES = {
    "transformer": ("model.diffusion_model.", "diffusion_model.", "model.", "module.", "pipe.dit."),
    "adapter": ("model.diffusion_model.", "diffusion_model.", "model.", "module."),
    "vae": ("model.", "vae.", "first_stage_model."),
    "text_encoder": ("text_encoder.", "text_encoders.umt5xxl.transformer.", "umt5xxl.transformer."),
    "image_encoder": ("clip_vision.", "module."),
    "speech_encoder": ("wav2vec2.", "audio_encoder."),
}
