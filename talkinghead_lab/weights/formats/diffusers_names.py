"""Names that diffusers gives to the layers of the Wan transformer, and the released names of the same layers.

Source: `WanTransformer3DModel` of diffusers 0.40 and its script `convert_wan_to_diffusers.py`. InfiniteTalk's
layers have no names in diffusers.
"""

from talkinghead_lab.models.released_names import rename

ATTENTIONS = {"attn1": "self_attn", "attn2": "cross_attn"}
PROJECTIONS = {
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    r"to_out\.0": "o",
    "add_k_proj": "k_img",
    "add_v_proj": "v_img",
    "norm_added_k": "norm_k_img",
    "norm_q": "norm_q",
    "norm_k": "norm_k",
}
# Parts of a block. diffusers numbers the norms in the order in which they are applied, the release does not.
# Only the norm before the attention to the prompt has weights.
BLOCK_PARTS = {
    **{rf"{a}\.{p}": f"{ours}.{part}" for a, ours in ATTENTIONS.items() for p, part in PROJECTIONS.items()},
    r"ffn\.net\.0\.proj": "ffn.0",
    r"ffn\.net\.2": "ffn.2",
    "norm2": "norm3",
    "norm3": "norm2",
    "scale_shift_table": "modulation",
}
# Pattern of a module's or parameter's name in diffusers → its released name.
MODULES = {
    **{rf"blocks\.(\d+)\.{theirs}": rf"blocks.\1.{ours}" for theirs, ours in BLOCK_PARTS.items()},
    r"condition_embedder\.time_embedder\.linear_1": "time_embedding.0",
    r"condition_embedder\.time_embedder\.linear_2": "time_embedding.2",
    r"condition_embedder\.time_proj": "time_projection.1",
    r"condition_embedder\.text_embedder\.linear_1": "text_embedding.0",
    r"condition_embedder\.text_embedder\.linear_2": "text_embedding.2",
    r"condition_embedder\.image_embedder\.norm1": "img_emb.proj.0",
    r"condition_embedder\.image_embedder\.ff\.net\.0\.proj": "img_emb.proj.1",
    r"condition_embedder\.image_embedder\.ff\.net\.2": "img_emb.proj.3",
    r"condition_embedder\.image_embedder\.norm2": "img_emb.proj.4",
    r"condition_embedder\.image_embedder\.pos_embed": "img_emb.emb_pos",
    "scale_shift_table": "head.modulation",
    "proj_out": "head.head",
}


def released_name(name: str) -> str:
    """The released name of a tensor or layer that diffusers names; a name unknown to diffusers is kept.

    Args:
        name: without a prefix, such as `blocks.3.attn1.to_q.weight` or `blocks.3.attn1.to_q`.
    """
    return rename(name, MODULES)
