"""Which model a LoRA was made for, judged by the names of its layers."""

import re
from collections.abc import Iterable, Mapping

ORIGINS = {
    r"lora_te|text_encoder|text_model|clip_[lg]": "for a text encoder",
    r"transformer_2[._]": "for the second transformer of Wan2.2",
    r"vace": "for Wan VACE",
    r"emb_pos|pos_embed": "for Wan's transformer of first and last frame",
    r"face_adapter|motion_encoder|pose_patch_embedding": "for Wan Animate",
    r"audio_injector|casual_audio_encoder|trainable_cond_mask": "for Wan S2V",
    r"control_adapter|ref_conv": "for a Wan transformer with control inputs",
    r"double_blocks|single_blocks|single_transformer_blocks": "for FLUX or HunyuanVideo",
    r"transformer_blocks|joint_blocks": "for another transformer, such as LTX-Video, SD3 or Qwen-Image",
    r"(?:down|up|input|output)_blocks|mid_block|middle_block": "for a UNet of Stable Diffusion",
}
# Entries of a header that name the trained model, as kohya's trainers and musubi-tuner write them.
HEADER_ENTRIES = ("modelspec.architecture", "ss_base_model_version")
BLOCK = re.compile(r"blocks[._](\d{1,4})[._]")


def made_for(keys: Iterable[str], names: Mapping[str, str]) -> str | None:
    """What a file is or was made for, as words after "it seems to be"; None if its keys do not tell.

    Args:
        keys: the keys that match no layer.
        names: from `layer_names`.
    """
    keys = list(keys)
    for pattern, origin in ORIGINS.items():
        if any(re.search(pattern, key) for key in keys):
            return origin
    blocks = {int(match[1]) for name in names if (match := BLOCK.search(name))}
    if any((match := BLOCK.search(key)) and int(match[1]) > max(blocks, default=-1) for key in keys):
        return f"for a transformer of more than {len(blocks)} blocks"
    if all(key.endswith((".weight", ".bias", ".modulation")) and "lora" not in key for key in keys):
        return "the weights of a network, not a LoRA"
    return None


def stated_origin(header: Mapping[str, str]) -> str:
    """What the header of a file says that it was made for, to be appended to a phrase; else nothing."""
    stated = [header[entry][:80] for entry in HEADER_ENTRIES if header.get(entry)]
    return f" (its header says {', '.join(stated)})" if stated else ""
