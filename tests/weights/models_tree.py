"""The bundled weights in a tree like ComfyUI's, under names that say nothing."""

import shutil
from pathlib import Path

from talkinghead_lab.weights.locating import EMBEDDED_WEIGHTS, locate

PLACES = {
    "transformer": "diffusion_models/a.safetensors",
    "adapter": "diffusion_models/b.safetensors",
    "vae": "vae/c.safetensors",
    "text_encoder": "text_encoders/d.safetensors",
    "image_encoder": "clip_vision/e.safetensors",
    "speech_encoder": "wav2vec2/f.safetensors",
}


def write_models(folder: Path) -> Path:
    bundled = locate("embedded", 1, {})
    for role, place in PLACES.items():
        (source,) = bundled.of_role(role)
        target = folder / place
        target.parent.mkdir(exist_ok=True)
        shutil.copy(source, target)
        sidecar = source.with_suffix(".json")
        if sidecar.is_file():
            shutil.copy(sidecar, target.with_suffix(".json"))
    shutil.copy(EMBEDDED_WEIGHTS / "ckpt_dir" / "config.json", folder / "diffusion_models")
    shutil.copy(EMBEDDED_WEIGHTS / "wav2vec_dir" / "config.json", folder / "wav2vec2")
    shutil.copytree(EMBEDDED_WEIGHTS / "ckpt_dir" / "google", folder / "text_encoders" / "google")
    return folder
