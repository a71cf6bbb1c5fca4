"""The transformer of wav2vec2 over a long recording, with the same result as in one go.

The states of all frames are in host memory. The device holds pieces of rows, and the queries, keys and values
of as many heads as fit in `HEADS_BYTES`.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROWS_PER_PIECE = 1500  # one minute of video frames
# At the released sizes, all heads of 7 minutes, or one head of 87.
HEADS_BYTES = 96 * 2**20


def pieces(length: int) -> Iterator[slice]:
    """Split rows into pieces of at most `ROWS_PER_PIECE`."""
    for start in range(0, length, ROWS_PER_PIECE):
        yield slice(start, min(start + ROWS_PER_PIECE, length))


def layer_states(encoder: Any, x: Tensor, heads: int, norm_first: bool) -> Iterator[Tensor]:
    """The states [n, hidden_size] after each layer, on the device of `x`; the next layer overwrites them.

    Args:
        encoder: transformers' `Wav2Vec2Encoder` or `Wav2Vec2EncoderStableLayerNorm`.
        x: [n, hidden_size], the transformer's input; it may be on another device than the encoder.
        heads: attention heads.
        norm_first: whether norms come before each layer, with one more after the last.
    """
    device, last = encoder.layer_norm.weight.device, len(encoder.layers)
    x = _add_positions(encoder, x, norm_first)
    for number, layer in enumerate(encoder.layers, start=1):
        attended = _attend(layer.attention, x, heads, layer.layer_norm if norm_first else nn.Identity())
        for rows in pieces(len(x)):
            h = x[rows].to(device) + layer.attention.out_proj(attended[rows].to(device))
            if norm_first:
                h = h + layer.feed_forward(layer.final_layer_norm(h))
            else:
                h = layer.layer_norm(h)
                h = layer.final_layer_norm(h + layer.feed_forward(h))
            x[rows] = encoder.layer_norm(h) if norm_first and number == last else h
        yield x


def _add_positions(encoder: Any, x: Tensor, norm_first: bool) -> Tensor:
    """Add the positional convolution, whose pieces overlap by half a kernel."""
    device, result = encoder.layer_norm.weight.device, torch.empty_like(x)
    context = encoder.pos_conv_embed.conv.kernel_size[0] // 2
    for rows in pieces(len(x)):
        start = max(0, rows.start - context)
        near = x[start : rows.stop + context].to(device)
        inner = slice(rows.start - start, rows.stop - start)
        h = near[inner] + encoder.pos_conv_embed(near[None])[0, inner]
        result[rows] = h if norm_first else encoder.layer_norm(h)
    return result


def _attend(attention: Any, x: Tensor, heads: int, norm: Callable[[Tensor], Tensor]) -> Tensor:
    """Attention [n, hidden_size] over all rows, before its output projection; some heads at a time."""
    device, (length, width) = attention.q_proj.weight.device, x.shape
    head = width // heads
    at_once = max(1, HEADS_BYTES // (3 * length * head * x.element_size()))
    attended, projections = torch.empty_like(x), (attention.q_proj, attention.k_proj, attention.v_proj)
    for first in range(0, heads, at_once):
        columns = slice(first * head, min(first + at_once, heads) * head)
        shape = (columns.stop - columns.start) // head, length, head
        projected = torch.empty(3, *shape, dtype=x.dtype, device=device)
        for rows in pieces(length):
            piece = norm(x[rows].to(device))
            for layer, whole in zip(projections, projected, strict=True):
                part = F.linear(piece, layer.weight[columns], layer.bias[columns])
                whole[:, rows] = part.unflatten(1, (-1, head)).transpose(0, 1)
        # All queries at once: the few of a piece, with one head, would leave most of a GPU idle.
        part = F.scaled_dot_product_attention(*projected[:, None])[0]
        attended[:, columns] = part.transpose(0, 1).flatten(1).to(x.device)
    return attended
