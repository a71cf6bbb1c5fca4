"""Attention and rotary positions, shared by the transformer's three kinds of attention."""

import torch
import torch.nn.functional as F
from torch import Tensor

ROTARY_BASE = 10_000.0


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax attention over [B, tokens, heads, head width] tensors; the result has the query's shape."""
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)


def rotary_angles(positions: Tensor, width: int) -> Tensor:
    """Angles [..., width / 2] of float positions [...] (RoPE, arXiv 2104.09864)."""
    exponents = torch.arange(0, width, 2, dtype=torch.float64, device=positions.device) / width
    return positions.double().unsqueeze(-1) / ROTARY_BASE**exponents


def grid_angles(grid: tuple[int, int, int], head_width: int) -> Tensor:
    """Angles [L, head width / 2] of every token of a (time, row, column) grid.

    A third of the pairs turns with the row, a third with the column, and what remains with time, as the
    released model was trained.
    """
    side = 2 * (head_width // 6)
    axes = [
        rotary_angles(torch.arange(length), width)
        for length, width in zip(grid, (head_width - 2 * side, side, side), strict=True)
    ]
    time, rows, columns = grid
    return torch.cat(
        [
            axes[0][:, None, None].expand(time, rows, columns, -1),
            axes[1][None, :, None].expand(time, rows, columns, -1),
            axes[2][None, None, :].expand(time, rows, columns, -1),
        ],
        dim=-1,
    ).flatten(0, 2)


class Rotation:
    """Cosines and sines that turn neighbouring pairs of a head's channels.

    Args:
        angles: [tokens, head width / 2], or [B, tokens, head width / 2].
    """

    def __init__(self, angles: Tensor, device: torch.device | None = None):
        angles = angles.unsqueeze(-2)
        self.cosine = angles.cos().float().to(device)
        self.sine = angles.sin().float().to(device)

    def __call__(self, x: Tensor) -> Tensor:
        """Rotate [B, tokens, heads, head width] in float32; the type of `x` is kept."""
        even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
        turned = torch.stack(
            (even * self.cosine - odd * self.sine, odd * self.cosine + even * self.sine), dim=-1
        )
        return turned.flatten(-2).type_as(x)


def attention_to_regions(query: Tensor, key: Tensor, regions: Tensor) -> Tensor:
    """How much every token attends to each region of the first latent frame, averaged over heads.

    One head at a time: the whole map of a released-size chunk would take gigabytes. The last of an odd number
    of heads is not counted, as in the reference, which averages two halves.

    Args:
        query: [B, L, heads, head width], rotated.
        key: [B, S, heads, head width], rotated keys of the first latent frame.
        regions: [R, S], 1 inside a region and 0 outside.

    Returns:
        [B, R, L] in the query's type.
    """
    regions = (regions / regions.sum(dim=1, keepdim=True)).to(query.dtype)
    heads = max(1, query.shape[2] // 2 * 2)
    total = query.new_zeros(query.shape[0], regions.shape[0], query.shape[1])
    for head in range(heads):
        scores = query[:, :, head] @ key[:, :, head].transpose(-1, -2) / query.shape[-1] ** 0.5
        total += regions @ scores.softmax(dim=-1).transpose(-1, -2)
    return total / heads
