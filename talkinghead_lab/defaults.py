"""What a request leaves out: it follows the checkpoint, in older files the version that wrote them."""

from collections.abc import Mapping
from typing import Any

# `sample_neg_prompt` of the released 14B config; the model's published figures use it.
RELEASED_NEGATIVE_PROMPT = (
    "bright tones, overexposed, static, blurred details, subtitles, style, works, paintings, images, static, "
    "overall gray, worst quality, low quality, JPEG compression residue, ugly, incomplete, extra fingers, "
    "poorly drawn hands, poorly drawn faces, deformed, disfigured, misshapen limbs, fused fingers, "
    "still picture, messy background, three legs, many people in the background, walking backwards"
)
RELEASED_SHIFT = {"infinitetalk-480": 7.0, "infinitetalk-720": 11.0}

# Where the bundled model differs from the released weights, whose values are the defaults of the fields:
# the size and the shift that it was trained with, and steps and guidance that suit it.
EMBEDDED: Mapping[str, Any] = {
    "frame_size": "160x160",
    "diffusion_steps": 4,
    "text_guide_scale": 2.0,
    "sample_shift": 3.0,
    "seam_frames": 8,
    "trim_last_chunk": True,
}

# What files of schema version 1 leave out, whichever their checkpoint.
VERSION_1: Mapping[str, Any] = {
    "frame_size": "auto",
    "diffusion_steps": 40,
    "text_guide_scale": 5.0,
    "sample_shift": None,
    "seam_frames": 0,
    "trim_last_chunk": False,
}


def of_checkpoint(checkpoint: object) -> Mapping[str, Any]:
    """The defaults of a checkpoint that differ from the defaults of the fields."""
    return EMBEDDED if checkpoint == "embedded" else {}


def completed(fields: Mapping[str, Any], version: int) -> dict[str, Any]:
    """The fields of a request of an earlier schema version, with the defaults of that version."""
    if version > 1:
        return dict(fields)
    found = {**VERSION_1, **fields}
    if found["sample_shift"] is None and found.get("checkpoint", "embedded") == "embedded":
        found["sample_shift"] = RELEASED_SHIFT.get(found.get("resolution", "infinitetalk-480"))
    return found
