"""Names that diffusers gives to the layers of the Wan transformer, and the released names of the same layers.

Source: `WanTransformer3DModel` of diffusers 0.40 and its script `convert_wan_to_diffusers.py`. InfiniteTalk's
layers have no names in diffusers.
"""

import re
from collections.abc import Mapping

from talkinghead_lab.models.released_names import rename

ATTENTIONS = {"attn1": "self_attn", "attn2": "cross_attn"}
PROJECTIONS = {
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "o",
    "add_k_proj": "k_img",
    "add_v_proj": "v_img",
    "norm_added_k": "norm_k_img",
    "norm_q": "norm_q",
    "norm_k": "norm_k",
}
# diffusers numbers the norms of a block in the order in which they are applied, the release does not. Only
# the norm before the attention to the prompt has weights.
BLOCK_PARTS = {
    **{f"{a}.{p}": f"{ours}.{part}" for a, ours in ATTENTIONS.items() for p, part in PROJECTIONS.items()},
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
    "norm2": "norm3",
    "norm3": "norm2",
    "scale_shift_table": "modulation",
}
# Name of a module or bare parameter in diffusers → its released name; {} is the number of a block.
MODULES = {
    **{f"blocks.{{}}.{theirs}": f"blocks.{{}}.{ours}" for theirs, ours in BLOCK_PARTS.items()},
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.image_embedder.norm1": "img_emb.proj.0",
    "condition_embedder.image_embedder.ff.net.0.proj": "img_emb.proj.1",
    "condition_embedder.image_embedder.ff.net.2": "img_emb.proj.3",
    "condition_embedder.image_embedder.norm2": "img_emb.proj.4",
    "condition_embedder.image_embedder.pos_embed": "img_emb.emb_pos",
    "scale_shift_table": "head.modulation",
    "proj_out": "head.head",
}


def _patterns(modules: Mapping[str, str]) -> dict[str, str]:
    return {re.escape(n).replace(r"\{\}", r"(\d+)"): new.replace("{}", r"\1") for n, new in modules.items()}


TO_RELEASED = _patterns(MODULES)
TO_DIFFUSERS = _patterns({released: name for name, released in MODULES.items()})


def released_name(name: str) -> str:
    """The released name of a tensor or layer that diffusers names; a name unknown to diffusers is kept.

    Args:
        name: without a prefix, such as `blocks.3.attn1.to_q.weight` or `blocks.3.attn1.to_q`.
    """
    return rename(name, TO_RELEASED)


def diffusers_name(name: str) -> str:
    """The name in diffusers of a tensor or layer with a released name; InfiniteTalk's layers keep theirs."""
    return rename(name, TO_DIFFUSERS)
