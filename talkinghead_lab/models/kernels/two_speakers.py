"""What only two speakers need: attention to their regions, and attention weights of queries they rotate.

Softmax and sums are float32: stretching the map to the range of positions multiplies rounding errors.
"""

import torch
from einops import rearrange
from torch import Tensor

# Largest block of scores that the plain path holds at once.
SCORE_BYTES = 64 * 2**20


def region_attention(query: Tensor, key: Tensor, regions: Tensor, use_triton: bool = False) -> Tensor:
    """Attention of every token to each region, averaged over the region and summed over the heads.

    softmax(QKᵀ)·masks, computed without the map of all keys: the masks take the place of the values.

    Args:
        query: [B, L, heads, head width], rotated; there may be no heads.
        key: [B, S, heads, head width], rotated keys of the first latent frame.
        regions: [R, S], 1 inside a region and 0 outside. An empty region, such as no background between two
            speakers, gets no attention.
        use_triton: run the Triton kernel, which takes bf16 on a GPU.

    Returns:
        float32 [B, R, L].
    """
    sums = _attention_to_masks(query, key, regions, use_triton)
    return sums / regions.sum(dim=1).clamp(min=1)[:, None]


@torch.library.custom_op("talkinghead_lab::attention_to_masks", mutates_args=())
def _attention_to_masks(query: Tensor, key: Tensor, masks: Tensor, use_triton: bool) -> Tensor:
    """Float32 [B, R, L]; one op, because loops over parts of the tokens would unroll when compiled."""
    batch, tokens, heads, width = query.shape
    if use_triton and heads:
        from talkinghead_lab.models.kernels.triton_two_speakers import attention_to_masks

        return attention_to_masks(query, key, masks)
    sums = query.new_zeros(batch, len(masks), tokens, dtype=torch.float32)
    keys, masks = rearrange(key, "b s n d -> (b n) d s"), masks.float().mT
    rows = max(1, SCORE_BYTES // (4 * max(1, batch * heads) * key.shape[1]))
    with torch.autocast(query.device.type, enabled=False):
        for start in range(0, tokens if heads else 0, rows):
            part = rearrange(query[:, start : start + rows], "b l n d -> (b n) l d")
            attended = (bmm_float32(part, keys) / width**0.5).softmax(dim=-1) @ masks
            sums[:, :, start : start + rows] = attended.unflatten(0, (batch, heads)).sum(dim=1).mT
    return sums


@_attention_to_masks.register_fake
def _(query: Tensor, key: Tensor, masks: Tensor, use_triton: bool) -> Tensor:
    return query.new_empty(len(query), len(masks), query.shape[1], dtype=torch.float32)


@torch.library.custom_op("talkinghead_lab::rotated_attention_weights", mutates_args=())
def rotated_attention_weights(query: Tensor, cosine: Tensor, sine: Tensor, key: Tensor) -> Tensor:
    """Rotate queries and return the weights of their attention to the audio of their frame; needs Triton.

    Args:
        query: bf16 [B, L, heads, head width].
        cosine, sine: float32 [B, L, 1, head width], as `Rotation` holds them.
        key: [B·T, P·A, heads, head width], rotated.

    Returns:
        [B·T, S, heads · P·A], softmax over the keys of each head.
    """
    from talkinghead_lab.models.kernels.triton_two_speakers import rotated_attention_weights

    return rotated_attention_weights(query, cosine, sine, key)


@rotated_attention_weights.register_fake
def _(query: Tensor, cosine: Tensor, sine: Tensor, key: Tensor) -> Tensor:
    frames, count, heads, _ = key.shape
    return query.new_empty(frames, query.shape[0] * query.shape[1] // frames, heads * count)


@torch.library.custom_op("talkinghead_lab::product_float32", mutates_args=())
def bmm_float32(x: Tensor, y: Tensor) -> Tensor:
    """Batched matmul with a float32 result; attention scores are exponents and need the precision."""
    if x.is_cuda and x.dtype is not torch.float32:
        return torch.bmm(x, y, out_dtype=torch.float32)
    return torch.bmm(x.float(), y.float())


@bmm_float32.register_fake
def _(x: Tensor, y: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], y.shape[-1], dtype=torch.float32)
