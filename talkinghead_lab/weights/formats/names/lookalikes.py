"""Weight files that people mistake for those of this model: what they are, told by names and shapes.

Sources: the model detection of ComfyUI and WanVideoWrapper, and the configs of the Wan family in Wan2GP.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from talkinghead_lab.errors import CheckpointError

Shapes = Mapping[str, tuple[int, ...]]

# What serves each role.
WANTED = {
    "transformer": "the transformer of Wan2.1 I2V 14B (480P)",
    "adapter": "InfiniteTalk's adapter, single or multi",
    "vae": "the video autoencoder of Wan2.1",
    "text_encoder": "the encoder of umT5-XXL",
    "image_encoder": "CLIP ViT-H/14 (clip_vision_h, or models_clip_open-clip-xlm-roberta-large-vit-huge-14)",
    "speech_encoder": "chinese-wav2vec2-base",
}
LORA = r".*\.(lora_(A|B|down|up|mid)|hada_w[12]_[ab]|lokr_w[12](_[ab])?|diff|diff_[bm]|dora_scale)(\..*)?"
# Pattern of a complete name → what a file with such a name is, and the role that it is mistaken for.
MARKS = {
    r"vace_blocks\..*|vace_patch_embedding\..*": ("Wan VACE", "transformer"),
    r"casual_audio_encoder\..*|audio_injector\..*": ("Wan2.2 S2V", "transformer"),
    r"face_adapter\..*|motion_encoder\..*|pose_patch_embedding\..*": ("Wan2.2 Animate", "transformer"),
    r"audio_proj\.audio_proj_glob.*": ("HuMo", "transformer"),
    r"proj_model\..*|blocks\.\d+\.cross_attn\.(processor\.)?[kv]_proj\..*": ("FantasyTalking", "adapter"),
    r"(ip_adapter\.)?blocks\.\d+\.cross_attn\.(ip_adapter|emo_[kv]_proj).*": ("FantasyPortrait", "adapter"),
    r"blocks\.\d+\.audio_cross_attn\.q_norm\..*": ("LongCat-Avatar", "adapter"),
    r"fps_embedding\..*": ("SkyReels-V2", "transformer"),
    r"img_emb\.emb_pos|model_type\.Wan2_1-FLF2V.*": ("Wan2.1 FLF2V", "transformer"),
    r"condition_embedder\.image_embedder\.pos_embed": ("Wan2.1 FLF2V", "transformer"),
    r"control_adapter\..*": ("Wan Fun Camera", "transformer"),
    r"ref_conv\..*": ("Wan Fun Control", "transformer"),
    r"patch_embedding_pose\..*": ("SCAIL", "transformer"),
    r"blocks\.\d+\.cam_encoder\..*": ("ReCamMaster", "transformer"),
    r"(video|audio)_model\..*": ("Ovi", "transformer"),
    r"controlnet_(blocks|patch_embedding).*": ("a ControlNet for Wan", "transformer"),
    r"dwpose_embedding\..*": ("UniAnimate", "adapter"),
    r"double_blocks\..*|txt_in\..*": ("HunyuanVideo or FLUX", "transformer"),
    r"joint_blocks\..*": ("Stable Diffusion 3", "transformer"),
    r"(input_blocks|down_blocks)\..*": ("a U-Net of Stable Diffusion", "transformer"),
    r"transformer_blocks\..*": ("another diffusion transformer", "transformer"),
    r"encoder\.downsamples\.0\.downsamples\..*": ("the autoencoder of Wan2.2 (48 channels)", "vae"),
    r"encoder\.down_blocks\.0\.resnets\.0\.norm1\.gamma": ("the autoencoder of Wan2.2 (48 channels)", "vae"),
    r"(en|de)coder\.(down|up)\.\d+\.block\..*": ("the autoencoder of Stable Diffusion or FLUX", "vae"),
    r"(en|de)coder\.mid_block\.resnets\.0\.norm1\.weight": (
        "the autoencoder of Stable Diffusion or FLUX",
        "vae",
    ),
    r"(en|de)coder\.\d+\.(weight|conv\..*)": ("a tiny autoencoder (TAEHV, LightTAE) for previews", "vae"),
    r"per_channel_statistics\..*": ("the autoencoder of LTX-Video", "vae"),
    r"(decoder\.block|dec\.blk)\.\d+\..*": ("a complete T5 with its decoder", "text_encoder"),
    r"text_model\.encoder\..*": ("a text encoder of CLIP", "text_encoder"),
    r"layers\.\d+\.(self_attn|mlp)\..*|blk\.\d+\..*": ("a language model", "text_encoder"),
    r"vision_model\.head\..*": ("SigLIP", "image_encoder"),
    r"encoder\.(embed_positions\.weight|positional_embedding)": ("Whisper", "speech_encoder"),
    r"hubert\..*": ("HuBERT", "speech_encoder"),
    r"encoder\.layers\.\d+\.attention\.gru_rel_pos.*": ("WavLM", "speech_encoder"),
    r"encoder\.pos_conv_embed\.layers\..*": ("data2vec", "speech_encoder"),
    r"post_extract_proj\..*": ("a wav2vec2 checkpoint of fairseq", "speech_encoder"),
}
# Names of these parts also stand in complete files of this model.
BOTH_TOWERS = r"vision_model\..*"


def refuse_lookalikes(shapes: Shapes, path: Path) -> None:
    """Refuse what is known to be something else.

    Args:
        shapes: of the tensors, by name without prefix, as stored.
        path: of the file.

    Raises:
        CheckpointError: the file is not of this model; the error says what it is and what is needed instead.
    """
    names = "\n".join(shapes)
    if _has(LORA, names) and "patch_embedding.weight" not in shapes:
        raise CheckpointError(
            "the file is a LoRA, not a network",
            received=str(path),
            remedy="Name it in `loras`; it is merged into the transformer.",
        )
    for pattern, (what, role) in MARKS.items():
        if _has(pattern, names) and not (what.endswith("of CLIP") and _has(BOTH_TOWERS, names)):
            _refuse(what, role, path)
    for role, finding in (
        ("transformer", _other_transformer(shapes)),
        ("text_encoder", _other_t5(shapes)),
        ("image_encoder", _other_clip(shapes)),
        ("speech_encoder", _other_wav2vec2(shapes)),
    ):
        if finding:
            _refuse(finding, role, path)


def _has(pattern: str, names: str) -> bool:
    return re.search(rf"^(?:{pattern})$", names, re.MULTILINE) is not None


def _refuse(what: str, role: str, path: Path) -> None:
    raise CheckpointError(
        f"the file holds {what}", received=str(path), allowed=WANTED[role], remedy="Use that file instead."
    )


def _size(shapes: Shapes, names: tuple[str, ...], axis: int) -> int | None:
    """A size that one of the tensors shows; None if the file has none of them."""
    found = next((shapes[name] for name in names if name in shapes), ())
    return found[axis] if axis < len(found) else None


def _other_transformer(shapes: Shapes) -> str | None:
    """Members of the Wan family that differ from I2V 14B in sizes or in the lack of a part."""
    dim, channels = (_size(shapes, ("patch_embedding.weight",), axis) for axis in (0, 1))
    if dim is None:
        return None
    sees_image = any(name.startswith(("img_emb.", "condition_embedder.image_embedder.")) for name in shapes)
    size = {5120: "14B", 1536: "1.3B", 3072: "5B"}.get(dim, f"with {dim} channels")
    if not sees_image and (channels == 16 or _is_complete_transformer(shapes)):
        return {36: f"Wan2.2 I2V {size}", 48: f"Wan2.2 TI2V {size}"}.get(channels or 0, f"Wan T2V {size}")
    if dim == 5120 and channels != 36:
        return f"a variant of Wan I2V {size} with {channels} input channels, such as Fun Control"
    return f"a variant of Wan I2V {size}" if dim in (1536, 3072) else None


def _is_complete_transformer(shapes: Shapes) -> bool:
    """Whether the last layer is there too, so that nothing lies in another shard."""
    return "head.head.weight" in shapes or "proj_out.weight" in shapes


def _other_t5(shapes: Shapes) -> str | None:
    """T5 1.1 and mT5, whose blocks share one position bias; umT5 of other sizes."""
    for bias in (
        "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight",
        "enc.blk.{}.attn_rel_b.weight",
    ):
        query = bias.replace("relative_attention_bias", "q").replace("attn_rel_b", "attn_q").format(1)
        if bias.format(0) in shapes and query in shapes and bias.format(1) not in shapes:
            return "T5 1.1 or mT5 (one position bias for all blocks)"
    embedding = ("token_embedding", "shared", "encoder.embed_tokens", "token_embd")
    weights = tuple(f"{name}.weight" for name in embedding)
    vocabulary, dim = (_size(shapes, weights, axis) for axis in (0, 1))
    return f"umT5 with {dim} channels" if vocabulary == 256384 and dim != 4096 else None


def _other_clip(shapes: Shapes) -> str | None:
    ending = "embeddings.class_embedding"
    embedding = (f"vision_model.{ending}", ending, "visual.class_embedding")
    return {1024: "CLIP ViT-L", 1664: "CLIP ViT-bigG", 768: "CLIP ViT-B"}.get(
        _size(shapes, embedding, 0) or 0
    )


def _other_wav2vec2(shapes: Shapes) -> str | None:
    dim = _size(shapes, ("feature_projection.projection.weight",), 0)
    return f"wav2vec2 with {dim} channels" if dim in (1024, 1280, 1920) else None
