"""The names that programs give to the tensors of this model's networks, and their released names.

Sources: transformers' `UMT5EncoderModel`, `CLIPVisionModel` and `Wav2Vec2Model`; the tensor names of
llama.cpp (`gguf.MODEL_ARCH.T5ENCODER`); OpenCLIP's `VisionTransformer`; diffusers' conversion of Wan.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial

from talkinghead_lab.models.released_names import rename
from talkinghead_lab.weights.formats import diffusers_names
from talkinghead_lab.weights.formats.names.autoencoder import diffusers_modules

Renaming = Callable[[str], str]

TEXT_TRANSFORMERS = {
    r"(shared|encoder\.embed_tokens)": "token_embedding",
    r"encoder\.block\.(\d+)\.layer\.0\.SelfAttention\.([qkvo])": r"blocks.\1.attn.\2",
    r"encoder\.block\.(\d+)\.layer\.0\.SelfAttention\.relative_attention_bias": (
        r"blocks.\1.pos_embedding.embedding"
    ),
    r"encoder\.block\.(\d+)\.layer\.0\.layer_norm": r"blocks.\1.norm1",
    r"encoder\.block\.(\d+)\.layer\.1\.layer_norm": r"blocks.\1.norm2",
    r"encoder\.block\.(\d+)\.layer\.1\.DenseReluDense\.wi_0": r"blocks.\1.ffn.gate.0",
    r"encoder\.block\.(\d+)\.layer\.1\.DenseReluDense\.wi_1": r"blocks.\1.ffn.fc1",
    r"encoder\.block\.(\d+)\.layer\.1\.DenseReluDense\.wo": r"blocks.\1.ffn.fc2",
    r"encoder\.final_layer_norm": "norm",
}
TEXT_LLAMA_CPP = {
    "token_embd": "token_embedding",
    r"enc\.blk\.(\d+)\.attn_([qkvo])": r"blocks.\1.attn.\2",
    r"enc\.blk\.(\d+)\.attn_rel_b": r"blocks.\1.pos_embedding.embedding",
    r"enc\.blk\.(\d+)\.attn_norm": r"blocks.\1.norm1",
    r"enc\.blk\.(\d+)\.ffn_norm": r"blocks.\1.norm2",
    r"enc\.blk\.(\d+)\.ffn_gate": r"blocks.\1.ffn.gate.0",
    r"enc\.blk\.(\d+)\.ffn_up": r"blocks.\1.ffn.fc1",
    r"enc\.blk\.(\d+)\.ffn_down": r"blocks.\1.ffn.fc2",
    r"enc\.output_norm": "norm",
}
# Queries, keys and values stay apart; `models/encoders/image.py` takes them fused and apart.
IMAGE_TRANSFORMERS = {
    r"(?:vision_model\.)?embeddings\.class_embedding": "visual.cls_embedding",
    r"(?:vision_model\.)?embeddings\.position_embedding\.weight": "visual.pos_embedding",
    r"(?:vision_model\.)?embeddings\.patch_embedding": "visual.patch_embedding",
    r"(?:vision_model\.)?pre_layrnorm": "visual.pre_norm",
    r"(?:vision_model\.)?encoder\.layers\.(\d+)\.layer_norm([12])": r"visual.transformer.\1.norm\2",
    r"(?:vision_model\.)?encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj": r"visual.transformer.\1.attn.\2",
    r"(?:vision_model\.)?encoder\.layers\.(\d+)\.self_attn\.out_proj": r"visual.transformer.\1.attn.proj",
    r"(?:vision_model\.)?encoder\.layers\.(\d+)\.mlp\.fc1": r"visual.transformer.\1.mlp.0",
    r"(?:vision_model\.)?encoder\.layers\.(\d+)\.mlp\.fc2": r"visual.transformer.\1.mlp.2",
    r"(?:vision_model\.)?post_layernorm": "visual.post_norm",
}
IMAGE_OPEN_CLIP = {
    r"visual\.class_embedding": "visual.cls_embedding",
    r"visual\.positional_embedding": "visual.pos_embedding",
    r"visual\.conv1": "visual.patch_embedding",
    r"visual\.ln_pre": "visual.pre_norm",
    r"visual\.transformer\.resblocks\.(\d+)\.ln_([12])": r"visual.transformer.\1.norm\2",
    r"visual\.transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)": (
        r"visual.transformer.\1.attn.to_qkv.\2"
    ),
    r"visual\.transformer\.resblocks\.(\d+)\.attn\.out_proj": r"visual.transformer.\1.attn.proj",
    r"visual\.transformer\.resblocks\.(\d+)\.mlp\.c_fc": r"visual.transformer.\1.mlp.0",
    r"visual\.transformer\.resblocks\.(\d+)\.mlp\.c_proj": r"visual.transformer.\1.mlp.2",
    r"visual\.ln_post": "visual.post_norm",
    r"visual\.proj": "visual.head",
}
# PyTorch's present names of the two parts of a weight norm.
SPEECH_PARAMETRIZED = {
    r"encoder\.pos_conv_embed\.conv\.parametrizations\.weight\.original0": (
        "encoder.pos_conv_embed.conv.weight_g"
    ),
    r"encoder\.pos_conv_embed\.conv\.parametrizations\.weight\.original1": (
        "encoder.pos_conv_embed.conv.weight_v"
    ),
}


@dataclass(frozen=True)
class Layout:
    """The names that one program gives to the tensors of a network.

    Args:
        role: the network, of `ROLES`.
        program: whose names these are.
        marker: pattern of a complete name, without prefix, that only files in this layout hold.
        renaming: from all names of a file to the function that gives each its released name.
    """

    role: str
    program: str
    marker: str
    renaming: Callable[[Collection[str]], Renaming]


def _by(modules: Mapping[str, str]) -> Callable[[Collection[str]], Renaming]:
    return lambda names: partial(rename, modules=modules)


def _autoencoder_of_diffusers(names: Collection[str]) -> Renaming:
    return partial(rename, modules=diffusers_modules(names))


RELEASED = "released"
# InfiniteTalk's adapter has one more name in files that were saved by WanVideoWrapper.
ADAPTER = _by({"multitalk_audio_proj": "audio_proj"})
_UNCHANGED = _by({})

# The first that fits counts.
LAYOUTS = (
    Layout(
        "transformer",
        "diffusers",
        r"blocks\.\d+\.(attn[12]|ffn\.net)\..*|condition_embedder\..*",
        lambda names: lambda name: diffusers_names.released_name(ADAPTER(names)(name)),
    ),
    Layout(
        "transformer",
        RELEASED,
        r"patch_embedding\.weight|blocks\.\d+\.(self_attn\.|cross_attn\.|ffn\.[02]\.|modulation).*"
        r"|text_embedding\.0\.weight|head\.head\.weight",
        ADAPTER,
    ),
    Layout(
        "adapter", RELEASED, r"(multitalk_)?audio_proj\.proj.*|blocks\.\d+\.audio_cross_attn\..*", ADAPTER
    ),
    Layout(
        "image_encoder",
        "transformers",
        r"(vision_model\.)?embeddings\.class_embedding",
        _by(IMAGE_TRANSFORMERS),
    ),
    Layout("image_encoder", "OpenCLIP", r"visual\.conv1\.weight", _by(IMAGE_OPEN_CLIP)),
    Layout("image_encoder", RELEASED, r"visual\.(patch_embedding|transformer)\..*", _UNCHANGED),
    Layout("text_encoder", "transformers", r"shared\.weight|encoder\.block\.\d+\..*", _by(TEXT_TRANSFORMERS)),
    Layout("text_encoder", "llama.cpp", r"enc\.blk\.\d+\..*|token_embd\.weight", _by(TEXT_LLAMA_CPP)),
    Layout("text_encoder", RELEASED, r"token_embedding\.weight|blocks\.\d+\.attn\.q\.weight", _UNCHANGED),
    Layout(
        "speech_encoder",
        "transformers",
        r"encoder\.pos_conv_embed\.conv\.parametrizations\..*",
        _by(SPEECH_PARAMETRIZED),
    ),
    Layout("speech_encoder", RELEASED, r"feature_projection\..*", _UNCHANGED),
    Layout(
        "vae",
        "diffusers",
        r"(en|de)coder\.(mid_block|down_blocks|up_blocks)\..*",
        _autoencoder_of_diffusers,
    ),
    Layout("vae", RELEASED, r"(en|de)coder\.(downsamples|upsamples|middle)\..*", _UNCHANGED),
)
