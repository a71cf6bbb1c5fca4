"""Find out which networks of this model a file holds. Only names and shapes count; no value is read."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from talkinghead_lab.errors import CheckpointError
from talkinghead_lab.weights.formats.containers import Stored
from talkinghead_lab.weights.formats.names.layouts import LAYOUTS, RELEASED, Layout
from talkinghead_lab.weights.formats.names.lookalikes import refuse_lookalikes

# A tensor of the first layer of each role, by its released name.
ROLES = {
    "transformer": "patch_embedding.weight",
    "adapter": "audio_proj.proj1.weight",
    "vae": "encoder.conv1.weight",
    "text_encoder": "token_embedding.weight",
    "image_encoder": "visual.patch_embedding.weight",
    "speech_encoder": "feature_projection.projection.weight",
}
# One that lies in another shard, if there are several.
OTHER_SHARD = {
    "transformer": "head.head.weight",
    "adapter": "blocks.0.audio_cross_attn.proj.weight",
    "vae": "decoder.head.2.weight",
    "text_encoder": "norm.weight",
    "image_encoder": "visual.pre_norm.weight",
    "speech_encoder": "encoder.layer_norm.weight",
}
# What programs put in front of all names of a network, one or more of them.
PREFIX = re.compile(
    r"^(?:(?:model|module|diffusion_model|transformer|pipe|dit|_orig_mod|first_stage_model|vae|wav2vec2|text_encoder"
    r"|text_encoders|cond_stage_model|umt5xxl|image_encoder|clip_vision|audio_encoder)\.)+"
)
# Bytes of a SentencePiece model inside ComfyUI's text encoders; the package holds this tokenizer.
TOKENIZER = "spiece_model"
LONGEST_NAME = 512
# Names of one tensor that programs store twice, because two modules share it.
TIED = {"encoder.embed_tokens.weight": "shared.weight"}


@dataclass(frozen=True)
class Recognised:
    """Tensors under released names, the roles that they fill, and the layout that they came in.

    Args:
        roles: keys of `ROLES`; a merged file holds a transformer and an adapter.
        layout: whose names the file uses, in words.
        tensors: by released name.
    """

    roles: tuple[str, ...]
    layout: str
    tensors: dict[str, Stored]


def recognised(tensors: Mapping[str, Stored], path: Path) -> Recognised:
    """Find out what tensors are, and rename them.

    Args:
        tensors: as stored, each quantised matrix as one entry.
        path: of the file, for messages.

    Raises:
        CheckpointError: they are no network of this model, one part of a network, or several networks, two
            of them are the same tensor, or a name is no name.
    """
    names = {name: bare for name in tensors if (bare := PREFIX.sub("", name)) != TOKENIZER}
    if odd := [name for name in names if len(name) > LONGEST_NAME or not name.isprintable()]:
        raise CheckpointError(
            "a name of a tensor is too long or not text", received=f"{odd[0][:80]!r} in {path}"
        )
    shapes = {bare: tuple(tensors[name].shape) for name, bare in names.items()}
    refuse_lookalikes(shapes, path)
    layouts = _layouts(shapes)
    roles = tuple(layouts)
    if not roles:
        first = ", ".join(sorted(tensors)[:3])
        raise CheckpointError(
            "no weight file of this model", received=f"{path}, which holds {first or 'no tensor'}"
        )
    if len(roles) > 1 and set(roles) != {"transformer", "adapter"}:
        raise CheckpointError(
            "the file holds several networks",
            received=f"{path}: {', '.join(roles)}",
            remedy="Save each network in a file of its own.",
        )
    layout = layouts[roles[0]]
    renaming = layout.renaming(shapes)
    renamed: dict[str, Stored] = {}
    sources: dict[str, str] = {}
    for name, bare in names.items():
        if shapes[bare] == shapes.get(TIED.get(bare, "")):
            continue
        released = renaming(bare)
        if released in sources:
            raise CheckpointError(
                f"the file holds `{released}` twice",
                received=f"{sources[released]} and {name} in {path}",
                remedy="Use a file with one kind of names.",
            )
        sources[released] = name
        renamed[released] = _reshaped(released, tensors[name])
    _check_complete(roles, renamed.keys(), path)
    prefix = next((p for name, bare in names.items() if (p := name.removesuffix(bare))), "")
    program = "released names" if layout.program == RELEASED else f"names of {layout.program}"
    return Recognised(roles, f"{program} after {prefix}" if prefix else program, renamed)


def _layouts(names: Collection[str]) -> dict[str, Layout]:
    """The layout of every role that the names fill."""
    lines = "\n".join(names)
    found: dict[str, Layout] = {}
    for layout in LAYOUTS:
        if layout.role not in found and re.search(rf"^(?:{layout.marker})$", lines, re.MULTILINE):
            found[layout.role] = layout
    return found


def _reshaped(released: str, stored: Stored) -> Stored:
    """A view in the released shape; transformers leaves out axes of length 1 of the image encoder."""
    missing = {"visual.cls_embedding": 3, "visual.pos_embedding": 3}.get(released, 0)
    if isinstance(stored, Tensor) and 0 < stored.ndim < missing:
        return stored[(None,) * (missing - stored.ndim)]
    return stored


def _check_complete(roles: tuple[str, ...], names: Collection[str], path: Path) -> None:
    for role in roles:
        if missing := [name for name in (ROLES[role], OTHER_SHARD[role]) if name not in names]:
            blocks = sorted({int(m[1]) for n in names if (m := re.match(r"blocks\.(\d{1,3})\.", n))})
            held = f" (blocks {blocks[0]} to {blocks[-1]})" if blocks else ""
            raise CheckpointError(
                f"the file holds only a part of the {role.replace('_', ' ')}{held}",
                received=f"{path}, without {missing[0]}",
                remedy="Keep all its shards in one folder, named like `model-00001-of-00007.safetensors`.",
            )
