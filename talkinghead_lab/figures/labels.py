"""Readable names and units of request fields, measures and axis values, for figures, videos and the panel."""

from collections.abc import Mapping
from typing import Any

import polars

from talkinghead_lab.measures.measure import KINDS

# Every field of the request and every measure, as it appears within a sentence.
NAMES = {
    "audio_path": "recording",
    "audio_track": "sound track",
    "audio_start": "start in the recording",
    "image_path": "portrait or video",
    "background": "background colour",
    "prompt": "prompt",
    "negative_prompt": "negative prompt",
    "resolution": "resolution",
    "frame_size": "frame size",
    "crop": "crop",
    "pad": "padding",
    "max_frames": "length limit",
    "seed": "seed",
    "diffusion_steps": "sampling steps",
    "text_guide_scale": "text guidance",
    "audio_guide_scale": "audio guidance",
    "sample_shift": "timestep shift",
    "chunk_frames": "chunk length",
    "motion_frame": "overlap of chunks",
    "trim_last_chunk": "trim the last chunk",
    "use_color_correction": "colour correction",
    "color_correction_strength": "colour correction strength",
    "seam_frames": "seam blending",
    "use_apg": "adaptive projected guidance (APG)",
    "apg_momentum": "APG momentum",
    "apg_norm_threshold": "APG norm threshold",
    "step_cache_threshold": "step cache threshold",
    "loras": "LoRAs",
    "second_audio_path": "second speaker's recording",
    "speaker_boxes": "speaker boxes",
    "audio_mix": "speaker timing",
    "checkpoint": "model",
    "ckpt_dir": "Wan2.1 folder",
    "wav2vec_dir": "wav2vec2 folder",
    "infinitetalk_dir": "InfiniteTalk folder or file",
    "weights": "weights folder",
    "transformer": "transformer file",
    "adapter": "audio adapter file",
    "vae": "video autoencoder file",
    "text_encoder": "text encoder file",
    "image_encoder": "image encoder file",
    "speech_encoder": "speech encoder file",
    "precision": "precision",
    "attention": "attention kernel",
    "compile_blocks": "compile the transformer",
    "vram_budget_gib": "memory budget",
    "device": "device",
    "lip_correlation": "lip correlation",
    "lip_error": "lip error",
    "mouth_follows_sound": "mouth follows sound",
    "lse_c": "LSE-C",
    "lse_d": "LSE-D",
    "identity": "identity similarity",
    "seam_jump": "seam jump",
    "flicker": "flicker",
    "color_drift": "colour drift",
    "motion": "motion",
    "sharpness": "sharpness",
    "loudness": "loudness",
    "time_to_first_frame": "time to first frame",
    "seconds_per_frame": "time per frame of video",
    "peak_host_gib": "peak host memory",
    "peak_gpu_gib": "peak GPU memory",
}
FIELD_UNITS = {
    "audio_start": "s",
    "frame_size": "pixels",
    "max_frames": "frames",
    "chunk_frames": "frames",
    "motion_frame": "frames",
    "seam_frames": "frames",
    "speaker_boxes": "pixels",
    "vram_budget_gib": "GiB",
}
DIRECTIONS = {"higher": "higher is better", "lower": "lower is better"}


def axis_values(table: polars.DataFrame, axis: str) -> list[Any]:
    """The values of an axis: numbers sorted, names in the order of the sweep."""
    found = table[axis].unique(maintain_order=True)
    return (found.sort() if found.dtype.is_numeric() else found).to_list()


def cell_label(row: Mapping[str, Any], axes_of_sweep: list[str]) -> str:
    """A run's position on the axes: names as they are, numbers after the short name of their axis."""
    return ", ".join(
        row[axis] if isinstance(row[axis], str) else f"{short_name(axis)} {value_label(row[axis])}"
        for axis in axes_of_sweep
    )


def value_label(value: Any) -> str:
    """A value on an axis or in a legend."""
    if value is None or value == "[]":
        return "none"
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def readable_name(name: str) -> str:
    """The name of a field, a measure or an axis, as it appears within a sentence."""
    return NAMES.get(name, name.replace("_", " "))


def short_name(name: str) -> str:
    """A name short enough for a legend or the space above a video."""
    words = readable_name(name).removesuffix(" guidance").removesuffix(" threshold")
    return words.removeprefix("sampling ").removeprefix("timestep ")


def unit_of(name: str) -> str:
    """The unit of a measure or field; empty for plain numbers."""
    unit = KINDS[name][0] if name in KINDS else FIELD_UNITS.get(name, "")
    return "" if unit == "1" else unit


def axis_label(name: str) -> str:
    """A name with its unit, as it appears on an axis."""
    return _with_notes(readable_name(name), unit_of(name))


def title(name: str) -> str:
    """A name with its unit, capitalised."""
    return capitalised(axis_label(name))


def measure_title(measure: str) -> str:
    """A measure's name, unit and better direction, capitalised."""
    direction = DIRECTIONS.get(KINDS[measure][1], "") if measure in KINDS else ""
    return capitalised(_with_notes(readable_name(measure), unit_of(measure), direction))


def capitalised(name: str) -> str:
    """A name with a capital first letter; the others stay as they are."""
    return name[0].upper() + name[1:]


def _with_notes(name: str, *notes: str) -> str:
    given = ", ".join(filter(None, notes))
    return f"{name} ({given})" if given else name
