"""The files of a variant are all that a request needs, and are found in the folder that they are put into."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from talkinghead_lab.weights.download.variants import PINS, VARIANTS
from talkinghead_lab.weights.formats.names.recognition import ROLES
from talkinghead_lab.weights.locating import EMBEDDED_WEIGHTS, locate
from tests.weights.formats.gguf_files import write_gguf

# The names in the repositories where a pattern stands for several.
RELEASED_NAMES = {
    "models_*": (
        "models_t5_umt5-xxl-enc-bf16.pth",
        "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth",
    ),
    "diffusion_pytorch_model*": ("diffusion_pytorch_model-00001-of-00001.safetensors",),
    "Wan2.1_VAE*": ("Wan2.1_VAE.pth",),
    "google/umt5-xxl/*": ("google/umt5-xxl/tokenizer.json",),
}
ROLE_OF_NAME = {
    "transformer": re.compile("I2V-14B-480p_|i2v-14b-480p-Q|diffusion_pytorch"),
    "adapter": re.compile("(single|multi)[/_]", re.IGNORECASE),
    "vae": re.compile("VAE"),
    "text_encoder": re.compile("umt5[-_]xxl[-_]e|umt5_xxl_"),
    "image_encoder": re.compile("clip"),
    "speech_encoder": re.compile("wav2vec2-base/model"),
}


def places_of(variant: str) -> list[str]:
    return [
        f"{part.folder}/{name}"
        for part in VARIANTS[variant]
        for pattern in part.patterns
        for name in RELEASED_NAMES.get(pattern, (pattern,))
    ]


def role_of(place: str) -> str | None:
    (role,) = [name for name, pattern in ROLE_OF_NAME.items() if pattern.search(place)] or [None]
    return role


def write(path: Path, role: str | None) -> None:
    """The bundled network of a role, or its tokenizer, in the container that the name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if role is None:
        tokenizer = EMBEDDED_WEIGHTS / "ckpt_dir" / "google" / "umt5-xxl" / "tokenizer.json"
        path.write_text(tokenizer.read_text() if path.name == "tokenizer.json" else "{}")
        return
    (source,) = locate("embedded", 1, {}).of_role(role)
    if path.suffix == ".pth":
        torch.save(load_file(source), path)
    elif path.suffix == ".gguf":
        write_gguf(path, load_file(source))
    else:
        shutil.copy(source, path)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_role_has_one_file_and_adapters_two(variant):
    roles = [role_of(place) for place in places_of(variant)]
    assert {role: roles.count(role) for role in ROLES} == dict.fromkeys(ROLES, 1) | {"adapter": 2}
    rest = {place.partition("/")[2] for place in places_of(variant) if role_of(place) is None}
    assert rest == {"config.json", "preprocessor_config.json", "google/umt5-xxl/tokenizer.json"}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_file_is_found_in_the_folder(variant, tmp_path):
    for place in places_of(variant):
        write(tmp_path / place, role_of(place))
    found = [locate("released", speakers, {"weights": str(tmp_path)}) for speakers in (1, 2)]
    assert found[0].tokenizer == tmp_path / "Wan2.1-I2V-14B-480P" / "google" / "umt5-xxl"
    used = {
        str(path.relative_to(tmp_path)) for files in found for role in ROLES for path in files.of_role(role)
    }
    assert used == {place for place in places_of(variant) if role_of(place)}
    adapters = [str(files.of_role("adapter")[0].relative_to(tmp_path)).lower() for files in found]
    assert "single" in adapters[0] and "multi" in adapters[1]


def test_pins_are_commits_and_all_are_used():
    assert all(re.fullmatch("[0-9a-f]{40}", pin.commit) for pin in PINS.values())
    assert PINS.keys() == {part.repository for parts in VARIANTS.values() for part in parts}
