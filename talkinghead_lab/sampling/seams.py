"""Blends the discontinuity between two chunks."""

import torch
from torch import Tensor


def blend_seam(frames: Tensor, previous: Tensor, overlap: int, blend_frames: int) -> Tensor:
    """Fade out the difference between a chunk and the frames that it continues.

    The last overlap frame is decoded twice, in both chunks, with slightly different results. The difference
    is added to the new frames with linearly decreasing weight.

    Args:
        frames: [..., 3, F, H, W] in [−1, 1], the chunk, overlap frames first.
        previous: [..., 3, ≥ 1, H, W], the previous chunk, up to the frame before the first new one.
        overlap: frames shared by the two chunks.
        blend_frames: new frames over which the difference fades out.
    """
    difference = previous[..., -1:, :, :] - frames[..., overlap - 1 : overlap, :, :]
    numbers = torch.arange(1 - overlap, frames.shape[-3] + 1 - overlap, device=frames.device)
    weights = (1 - numbers / (blend_frames + 1)).clamp(min=0) * (numbers > 0)
    return (frames + weights.view(-1, 1, 1) * difference).clamp(-1, 1)
