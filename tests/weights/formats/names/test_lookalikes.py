"""Files of other models are refused by what they are, and the error says what is needed instead."""

from pathlib import Path

import pytest
import torch

from talkinghead_lab.errors import CheckpointError
from talkinghead_lab.weights.formats.names.lookalikes import WANTED
from talkinghead_lab.weights.formats.names.recognition import recognised

# The names and shapes by which a file is told; () stands for any shape.
WAN = {"head.head.weight": (64, 5120), "blocks.0.self_attn.q.weight": (5120, 5120)}
I2V = {"img_emb.proj.0.weight": (1280,), "blocks.0.cross_attn.k_img.weight": (5120, 5120)}
BIAS = "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight"
QUERY = "encoder.block.{}.layer.0.SelfAttention.q.weight"
CASES = {
    "Wan T2V 14B": ("transformer", {"patch_embedding.weight": (5120, 16, 1, 2, 2)} | WAN),
    "Wan T2V 1.3B": ("transformer", {"patch_embedding.weight": (1536, 16, 1, 2, 2)} | WAN),
    "Wan2.2 I2V 14B": ("transformer", {"patch_embedding.weight": (5120, 36, 1, 2, 2)} | WAN),
    "Wan2.2 TI2V 5B": ("transformer", {"patch_embedding.weight": (3072, 48, 1, 2, 2)} | WAN),
    "Wan2.1 FLF2V": (
        "transformer",
        {"patch_embedding.weight": (5120, 36, 1, 2, 2), "img_emb.emb_pos": (1, 514, 1280)} | WAN | I2V,
    ),
    "a variant of Wan I2V 14B with 48 input channels, such as Fun Control": (
        "transformer",
        {"patch_embedding.weight": (5120, 48, 1, 2, 2)} | WAN | I2V,
    ),
    "a variant of Wan I2V 1.3B": (
        "transformer",
        {"patch_embedding.weight": (1536, 36, 1, 2, 2)} | WAN | I2V,
    ),
    "Wan VACE": ("transformer", {"vace_blocks.0.after_proj.weight": ()} | WAN),
    "Wan2.2 S2V": ("transformer", {"casual_audio_encoder.encoder.final_linear.weight": ()} | WAN),
    "Wan2.2 Animate": ("transformer", {"face_adapter.fuser_blocks.0.k_norm.weight": ()} | WAN),
    "HuMo": ("transformer", {"audio_proj.audio_proj_glob_1.layer.weight": ()} | WAN),
    "SkyReels-V2": ("transformer", {"fps_embedding.weight": ()} | WAN | I2V),
    "Wan Fun Camera": ("transformer", {"control_adapter.conv.weight": ()} | WAN | I2V),
    "Ovi": ("transformer", {"video_model.blocks.0.self_attn.q.weight": ()}),
    "HunyuanVideo or FLUX": (
        "transformer",
        {"model.diffusion_model.double_blocks.0.img_attn.qkv.weight": ()},
    ),
    "a U-Net of Stable Diffusion": ("transformer", {"model.diffusion_model.input_blocks.0.0.weight": ()}),
    "Stable Diffusion 3": ("transformer", {"joint_blocks.0.x_block.attn.qkv.weight": ()}),
    "another diffusion transformer": ("transformer", {"transformer_blocks.0.attn.to_q.weight": ()}),
    "FantasyTalking": ("adapter", {"proj_model.proj.weight": (), "blocks.0.cross_attn.k_proj.weight": ()}),
    "FantasyPortrait": (
        "adapter",
        {"ip_adapter.blocks.0.cross_attn.ip_adapter_single_stream_k_proj.weight": ()},
    ),
    "LongCat-Avatar": ("adapter", {"blocks.0.audio_cross_attn.q_norm.weight": ()}),
    "UniAnimate": ("adapter", {"dwpose_embedding.0.weight": ()}),
    "a complete T5 with its decoder": (
        "text_encoder",
        {"shared.weight": (), "decoder.block.0.layer.0.SelfAttention.q.weight": ()},
    ),
    "T5 1.1 or mT5 (one position bias for all blocks)": (
        "text_encoder",
        {BIAS.format(0): (32, 64), QUERY.format(0): (), QUERY.format(1): ()},
    ),
    "umT5 with 2048 channels": ("text_encoder", {"shared.weight": (256384, 2048)}),
    "a text encoder of CLIP": ("text_encoder", {"text_model.encoder.layers.0.mlp.fc1.weight": ()}),
    "a language model": ("text_encoder", {"model.layers.0.self_attn.q_proj.weight": ()}),
    "SigLIP": ("image_encoder", {"vision_model.head.probe": ()}),
    "CLIP ViT-L": ("image_encoder", {"vision_model.embeddings.class_embedding": (1024,)}),
    "CLIP ViT-bigG": ("image_encoder", {"visual.class_embedding": (1664,)}),
    "the autoencoder of Wan2.2 (48 channels)": (
        "vae",
        {"encoder.downsamples.0.downsamples.0.residual.0.gamma": ()},
    ),
    "the autoencoder of Stable Diffusion or FLUX": (
        "vae",
        {"first_stage_model.decoder.up.0.block.0.conv1.weight": ()},
    ),
    "a tiny autoencoder (TAEHV, LightTAE) for previews": ("vae", {"decoder.1.weight": ()}),
    "the autoencoder of LTX-Video": ("vae", {"per_channel_statistics.mean-of-means": ()}),
    "Whisper": ("speech_encoder", {"model.encoder.embed_positions.weight": ()}),
    "HuBERT": ("speech_encoder", {"hubert.feature_projection.projection.weight": (768, 512)}),
    "WavLM": ("speech_encoder", {"encoder.layers.0.attention.gru_rel_pos_const": ()}),
    "wav2vec2 with 1024 channels": ("speech_encoder", {"feature_projection.projection.weight": (1024, 512)}),
    "a wav2vec2 checkpoint of fairseq": ("speech_encoder", {"post_extract_proj.weight": ()}),
}


@pytest.mark.parametrize("what", CASES)
def test_another_model_is_named_with_what_is_needed_instead(what):
    role, shapes = CASES[what]
    with torch.device("meta"):
        tensors = {name: torch.empty(shape) for name, shape in shapes.items()}
    with pytest.raises(CheckpointError) as caught:
        recognised(tensors, Path("models/some.safetensors"))
    assert caught.value.problem == f"the file holds {what}"
    assert (caught.value.received, caught.value.allowed) == ("models/some.safetensors", WANTED[role])


@pytest.mark.parametrize(
    "name",
    [
        "diffusion_model.blocks.0.self_attn.q.lora_A.weight",
        "blocks.0.self_attn.q.lora_down.weight",
        "lora_unet_blocks_0_ffn_0.lora_up.weight",
        "blocks.0.self_attn.q.lora_B.default.weight",
        "lycoris_blocks_0_ffn_0.lokr_w1",
        "lycoris_blocks_0_ffn_0.hada_w2_b",
        "diffusion_model.blocks.0.norm3.diff_b",
        "diffusion_model.patch_embedding.diff",
    ],
)
def test_a_lora_is_named_with_where_it_belongs(name):
    with pytest.raises(CheckpointError, match="is a LoRA") as caught:
        recognised({name: torch.zeros(1)}, Path("a"))
    assert "`loras`" in caught.value.remedy
