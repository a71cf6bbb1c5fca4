"""What the tensors of a network do not show: from files beside them, from their header, or as released.

A folder of single weight files has no config.json. The released values stand here, so that none is needed at
the released sizes; at other sizes, a missing file is an error.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from talkinghead_lab.errors import CheckpointError
from talkinghead_lab.weights import config_fields
from talkinghead_lab.weights.config_fields import Fields, checked
from talkinghead_lab.weights.formats.json_files import parse_base64, parse_json, read_json
from talkinghead_lab.weights.formats.names.recognition import ROLES
from talkinghead_lab.weights.formats.network_file import NetworkFile

KINDS: dict[str, type[Fields]] = {
    "transformer": config_fields.TransformerFields,
    "vae": config_fields.AutoencoderFields,
    "text_encoder": config_fields.TextEncoderFields,
    "image_encoder": config_fields.ImageEncoderFields,
    "speech_encoder": config_fields.SpeechEncoderFields,
}
# Shape at the released sizes of each role's tensor in `ROLES`.
RELEASED_SHAPES = {
    "transformer": (5120, 36, 1, 2, 2),
    "vae": (96, 3, 3, 3, 3),
    "text_encoder": (256384, 4096),
    "image_encoder": (1280, 3, 14, 14),
    "speech_encoder": (768, 512),
}
# Sources: config.json of Wan2.1-I2V-14B-480P; `umt5_xxl` and `clip_xlm_roberta_vit_h_14` of Wan's code;
# config.json and preprocessor_config.json of chinese-wav2vec2-base. Latent statistics: `models/vae/model.py`.
RELEASED: dict[str, dict[str, Any]] = {
    "transformer": {"model_type": "i2v", "num_heads": 40, "text_len": 512, "eps": 1e-6},
    "vae": {},
    "text_encoder": {"max_distance": 128, "norm_eps": 1e-6},
    "image_encoder": {"num_heads": 16, "activation": "gelu", "norm_eps": 1e-5},
    "speech_encoder": {
        "num_attention_heads": 12,
        "conv_stride": [5, 2, 2, 2, 2, 2, 2],
        "feat_extract_activation": "gelu",
        "hidden_act": "gelu",
        "do_stable_layer_norm": False,
        "layer_norm_eps": 1e-5,
        "do_normalize": False,
        "sampling_rate": 16000,
    },
}
# Fields without which no network of other sizes can be built.
NEEDED = {
    "transformer": ("num_heads", "text_len"),
    "image_encoder": ("num_heads",),
    "speech_encoder": ("num_attention_heads", "conv_stride"),
}
# Names of the fields in files of diffusers and transformers.
TRANSLATED = {
    "transformer": {"num_attention_heads": "num_heads", "in_channels": "in_dim", "out_channels": "out_dim"},
    "vae": {"latents_mean": "latent_mean", "latents_std": "latent_std"},
    "text_encoder": {"relative_attention_max_distance": "max_distance", "layer_norm_epsilon": "norm_eps"},
    "image_encoder": {
        "num_attention_heads": "num_heads",
        "hidden_act": "activation",
        "layer_norm_eps": "norm_eps",
    },
    "speech_encoder": {},
}
# Whose config.json a file is, by its `_class_name` or `model_type`.
OWNERS = {
    "WanModel": "transformer",
    "WanTransformer3DModel": "transformer",
    "i2v": "transformer",
    "t2v": "transformer",
    "AutoencoderKLWan": "vae",
    "umt5": "text_encoder",
    "clip": "image_encoder",
    "clip_vision_model": "image_encoder",
    "wav2vec2": "speech_encoder",
}
# Roles that take a config.json that does not say whose it is.
UNNAMED = ("transformer", "speech_encoder")


def config_fields_for(role: str, network: NetworkFile, folder: Path | None = None) -> Mapping[str, Any]:
    """The fields that a network of a role is built with, besides its tensors.

    Args:
        role: key of `KINDS`.
        network: its weights.
        folder: where its config.json is; None: beside the weights.

    Raises:
        CheckpointError: a file is damaged or a field cannot be right; or neither a file beside the weights
            nor their header has the fields, and the sizes are not the released ones.
    """
    path = network.paths[0]
    folder = folder or path.parent
    sources = {
        path: _in_header(network),
        folder / "config.json": _config(role, folder),
        path.with_suffix(".json"): _sidecar(path),
    }
    if role == "speech_encoder":
        sources[folder / "preprocessor_config.json"] = _preprocessor(folder)
    stored = network.tensors.get(ROLES[role])
    is_released = stored is not None and tuple(stored.shape) == RELEASED_SHAPES[role]
    found = [(source, fields) for source, fields in sources.items() if fields]
    if not found and not is_released and role in NEEDED:
        raise CheckpointError(
            f"nothing says {' and '.join(NEEDED[role])} of the {role.replace('_', ' ')}",
            received=f"{path}, which has not the released sizes",
            allowed=f"{folder / 'config.json'}, or {path.with_suffix('.json').name} beside the weights",
            remedy="Copy the config.json that belongs to the weights there.",
        )
    fields = dict(RELEASED[role]) if is_released else {}
    for source, values in found:
        names = TRANSLATED[role]
        fields |= checked(
            {names.get(name, name): value for name, value in values.items()}, KINDS[role], source
        )
    return fields


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _sidecar(path: Path) -> dict[str, Any]:
    """Fields of the `.json` of the same stem; a map of quantised layers has none."""
    fields = _optional(path.with_suffix(".json"))
    return {name: value for name, value in fields.items() if not isinstance(value, dict)}


def _config(role: str, folder: Path) -> dict[str, Any]:
    """Fields of config.json, if it is this network's: in a flat folder, it is that of one of them."""
    try:
        fields = _optional(folder / "config.json")
    except CheckpointError:
        if role in UNNAMED:
            raise
        return {}  # those whose it can be report it
    owner = OWNERS.get(str(fields.get("_class_name"))) or OWNERS.get(str(fields.get("model_type")))
    return fields if owner == role or (owner is None and role in UNNAMED) else {}


def _preprocessor(folder: Path) -> dict[str, Any]:
    """Fields of preprocessor_config.json, unless it is that of an image encoder."""
    fields = _optional(folder / "preprocessor_config.json")
    return {} if "image_mean" in fields else fields


def _in_header(network: NetworkFile) -> dict[str, Any]:
    """The config that Wan2GP writes into the header of a file."""
    source = f"the header of {network.paths[0]}"
    if "config_base64" in network.metadata:
        return parse_base64(network.metadata["config_base64"], f"config_base64 in {source}")
    text = network.metadata.get("config")
    return {} if text is None else parse_json(text, f"config in {source}")
