"""Tell from names and shapes of tensors which network a file holds, and give them their released names."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from talkinghead_lab.errors import CheckpointError
from talkinghead_lab.weights.formats.containers import Stored

# A name that only the released file of each role holds.
ROLES = {
    "transformer": "patch_embedding.weight",
    "adapter": "audio_proj.proj1.weight",
    "vae": "decoder.conv1.weight",
    "text_encoder": "token_embedding.weight",
    "image_encoder": "visual.patch_embedding.weight",
    "speech_encoder": "feature_projection.projection.weight",
}


@dataclass(frozen=True)
class Recognised:
    """Tensors under released names, the roles that they fill, and the layout that they came in."""

    roles: tuple[str, ...]
    layout: str
    tensors: dict[str, Stored]


def recognised(tensors: Mapping[str, Stored], path: Path) -> Recognised:
    """Find out what tensors are, and rename them.

    Raises:
        CheckpointError: they belong to no network of this model.
    """
    roles = tuple(role for role, name in ROLES.items() if name in tensors)
    if not roles:
        raise CheckpointError("not a weight file of this model", received=str(path))
    return Recognised(roles, "released names", dict(tensors))
