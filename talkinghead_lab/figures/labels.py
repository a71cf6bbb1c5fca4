"""Names, units and values of request fields and measures in words, for figures, tables and the panel."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import polars
from pydantic import BaseModel

from talkinghead_lab.measures.measure import KINDS
from talkinghead_lab.request_fields import MEDIA_FIELDS, RELEASED_ONLY, WEIGHT_FILES, WEIGHT_FOLDERS

# Every field of the request and every measure, as it appears within a sentence.
NAMES = {
    "audio_path": "recording",
    "audio_track": "sound track",
    "audio_start": "start in the recording",
    "image_path": "portrait or video",
    "background": "background colour",
    "continue_video": "video to continue",
    "prompt": "prompt",
    "negative_prompt": "negative prompt",
    "resolution": "resolution",
    "frame_size": "frame size",
    "crop": "crop",
    "pad": "padding",
    "max_frames": "length limit",
    "seed": "seed",
    "sampler": "sampler",
    "sigmas": "noise levels",
    "diffusion_steps": "sampling steps",
    "text_guide_scale": "text guidance",
    "audio_guide_scale": "audio guidance",
    "guidance_interval": "guided steps",
    "cfg_zero_star": "CFG-Zero*",
    "zero_init_steps": "CFG-Zero* steps without a pass",
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
    "denoise_strength": "denoising strength",
    "lips_only": "lips only",
    "scene_cuts": "cuts at scene changes",
    "lips_border": "border of the lower face (pixels)",
    "lips_mask": "mask instead of the lower face",
    "step_cache_threshold": "step cache threshold",
    "step_cache": "step cache",
    "max_consecutive_skips": "skipped steps in a row",
    "loras": "LoRAs",
    "second_audio_path": "second speaker's recording",
    "speaker_boxes": "speaker boxes",
    "speaker_masks": "speaker masks",
    "audio_mix": "speaker timing",
    "segments": "dialogue",
    "speaker_loudness": "loudness of the speakers",
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
    "silent_lip_motion": "lip motion in silence",
    "active_speaker_own": "mouths follow their own voice",
    "active_speaker_other": "mouths follow the other's voice",
    "active_speaker_silent": "opening of silent mouths",
    "lse_c": "LSE-C",
    "lse_d": "LSE-D",
    "identity": "identity similarity",
    "identity_drift": "identity drift",
    "csim": "CSIM",
    "seam_jump": "seam jump",
    "flicker": "flicker",
    "color_drift": "colour drift",
    "motion": "motion",
    "head_motion": "head motion",
    "sharpness": "sharpness",
    "clip_quality": "CLIP's picture quality",
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
    "speaker_loudness": "LUFS",
    "vram_budget_gib": "GiB",
}
# What a field means that is not set.
UNSET = {
    "audio_track": "default track",
    "pad": "no padding",
    "max_frames": "length of the recording",
    "guidance_interval": "all steps",
    "sample_shift": "by resolution",
    "sigmas": "by the timestep shift",
    "step_cache_threshold": "off",
    "max_consecutive_skips": "any number",
    "second_audio_path": "none",
    "continue_video": "none",
    "lips_mask": "the lower face",
    "speaker_boxes": "left and right half",
    "speaker_masks": "none",
    "audio_path": "in the dialogue",
    "segments": "none",
    "speaker_loudness": "as recorded",
    "compile_blocks": "by device and size",
    "vram_budget_gib": "no limit",
    **dict.fromkeys((*WEIGHT_FOLDERS, "weights"), "by environment variable"),
    **dict.fromkeys(WEIGHT_FILES, "searched"),
}
COLUMN_UNITS = {"gib": "GiB", "seconds": "s", "percent": "%"}  # by the end of a column's name
TEXT_FIELDS = ("prompt", "negative_prompt")  # which may look like a list
PATHS = (*MEDIA_FIELDS, *WEIGHT_FOLDERS, *RELEASED_ONLY)  # of one file or folder
PATH_FIELDS = (*PATHS, "speaker_masks")
MAX_PATH_PARTS = 64
DIRECTIONS = {"higher": "higher is better", "lower": "lower is better"}


def with_titles(text: str) -> str:
    """An error or a description in which fields are called as a form shows them: “Seed” for `seed`."""
    return re.sub(r"`(\w+)`", lambda found: f"“{title(found[1])}”" if found[1] in NAMES else found[0], text)


def axis_values(table: polars.DataFrame, axis: str) -> list[Any]:
    """The values of an axis: numbers sorted, names in the order of the sweep."""
    found = table[axis].unique(maintain_order=True)
    return (found.sort() if found.dtype.is_numeric() else found).to_list()


def cell_label(row: Mapping[str, Any], axes_of_sweep: list[str]) -> str:
    """A run's position on the axes: names as they are, other values after the short name of their axis."""
    return ", ".join(setting_label(axis, row[axis]) for axis in axes_of_sweep)


def setting_label(name: str, value: Any) -> str:
    """A setting in a line of several: a name as it is, other values after the short name of the field."""
    words = value_label(value, name)
    is_name = isinstance(value, str) and value and isinstance(_structure(value, name), str)
    return words if is_name else f"{short_name(name)} {words}"


def value_labels(values: Sequence[Any], name: str = "") -> list[str]:
    """Values in words, each as `value_label` has it, with as much more as tells different ones apart."""
    different = len({repr(value) for value in values})
    for parts in range(1, MAX_PATH_PARTS):
        words = [value_label(value, name, parts) for value in values]
        if len(set(words)) == different:
            return words
    return [repr(value) for value in values]


def path_labels(paths: Sequence[str]) -> list[str]:
    """The end of each path, as long as it takes to tell them apart."""
    return value_labels(paths, PATHS[0])


def value_label(value: Any, name: str = "", parts: int = 1) -> str:
    """A value in words.

    Args:
        value: of a request or a record, or from a table of a sweep, where lists are JSON.
        name: the field whose value it is, which knows what an unset one means.
        parts: how many parts of a path are shown, from its end.
    """
    value = _structure(value, name)
    if value is None or value == "" or (isinstance(value, Sequence) and not len(value)):
        return UNSET.get(name, "none")
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return _mapping_label(value, parts)
    if isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) == 4 and all(isinstance(number, int) for number in value):
            return "{},{} to {},{}".format(*value)  # a speaker's box
        words = [value_label(part, name if name in PATH_FIELDS else "", parts) for part in value]
        comma = "; " if any(", " in word for word in words) else ", "
        return (" and " if name == "speaker_boxes" else comma).join(words)
    if name in PATH_FIELDS:
        return _path_label(value, parts)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _structure(value: Any, name: str) -> Any:
    """Plain lists and mappings of a value that a table or a model holds."""
    if isinstance(value, BaseModel):
        return value.model_dump()
    if isinstance(value, str) and value[:1] in ("[", "{"):
        verbatim = name in (*TEXT_FIELDS, *PATHS)
        try:
            found = json.loads(value)
        except ValueError:
            return value
        # These are lists only where their entries have times.
        return found if not verbatim or _is_timed(found) else value
    return value


def _is_timed(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, Mapping) and "start" in each for each in value)


def _mapping_label(value: Mapping[str, Any], parts: int) -> str:
    if "speaker" in value:  # a segment
        end = value.get("end")
        times = f"{value.get('start', 0):g} s to {'its end' if end is None else f'{end:g} s'}"
        return f"speaker {value['speaker']} from {times} {_path_label(value['file'], parts)}"
    if "path" in value and value.keys() <= {"path", "scale"}:  # a LoRA
        name, strength = _path_label(value["path"], parts), value.get("scale", 1.0)
        steps = strength if isinstance(strength, Sequence) else [strength]
        words = ", ".join(map(value_label, steps))
        return name if strength == 1 else f"{name} (strength {words})"
    if value.keys() in ({"start", "text"}, {"start", "file"}):
        what = value["text"] if "text" in value else _path_label(value["file"], parts)
        return f"from {value['start']:g} s: {what}"
    return ", ".join(setting_label(name, part) for name, part in value.items())


def _path_label(path: object, parts: int) -> str:
    """The last parts of a path; the name of a bundled sample as it is."""
    return "/".join(PurePath(str(path)).parts[-parts:])


def readable_name(name: str) -> str:
    """The name of a field, a measure or an axis, as it appears within a sentence."""
    field, _, place = name.partition(".")
    if place.isdecimal():  # of a file in a list
        return f"{readable_name(field)}, number {int(place) + 1}"
    return NAMES.get(name, name.replace("_", " "))


def short_name(name: str) -> str:
    """A name short enough for a legend or the space above a video."""
    words = readable_name(name).removesuffix(" guidance").removesuffix(" threshold")
    return words.removeprefix("sampling ").removeprefix("timestep ")


def unit_of(name: str) -> str:
    """The unit of a measure or field; empty for plain numbers."""
    unit = KINDS[name].unit if name in KINDS else FIELD_UNITS.get(name, "")
    return "" if unit == "1" else unit


def axis_label(name: str) -> str:
    """A name with its unit, as it appears on an axis."""
    return _with_notes(readable_name(name), unit_of(name))


def title(name: str) -> str:
    """A name with its unit, capitalised."""
    return capitalised(axis_label(name))


def column_title(name: str) -> str:
    """The head of a column: a field, a measure or a fact in words, with its unit."""
    if name in NAMES:
        return title(name)
    if not name.isidentifier():  # words already
        return capitalised(name)
    stem, _, unit = name.rpartition("_")
    if stem and unit in COLUMN_UNITS:
        return f"{capitalised(readable_name(stem))} ({COLUMN_UNITS[unit]})"
    return capitalised(readable_name(name))


def measure_title(measure: str) -> str:
    """A measure's name, unit and better direction, capitalised."""
    direction = DIRECTIONS.get(KINDS[measure].better, "") if measure in KINDS else ""
    return capitalised(_with_notes(readable_name(measure), unit_of(measure), direction))


def capitalised(name: str) -> str:
    """A name with a capital first letter; the others stay as they are."""
    return name[:1].upper() + name[1:]


def _with_notes(name: str, *notes: str) -> str:
    given = ", ".join(filter(None, notes))
    return f"{name} ({given})" if given else name
