"""Blends the step between two chunks."""

import torch
from torch import Tensor


def ease_seam(frames: Tensor, shown: Tensor, repeated: int, over: int) -> Tensor:
    """Spread the step from the frames that were shown to the chunk that goes on from them.

    Decoded again, the last repeated frame is not quite the one that was shown. What is between them is added
    to the new frames, less and less.

    Args:
        frames: [..., 3, F, H, W] in [−1, 1], the chunk, whose first `repeated` frames were shown before.
        shown: [..., 3, ≥ 1, H, W], the frames before, the last of them beside the first new one.
        over: how many new frames it takes.
    """
    step = shown[..., -1:, :, :] - frames[..., repeated - 1 : repeated, :, :]
    numbers = torch.arange(1 - repeated, frames.shape[-3] + 1 - repeated, device=frames.device)
    share = (1 - numbers / (over + 1)).clamp(min=0) * (numbers > 0)
    return (frames + share.view(-1, 1, 1) * step).clamp(-1, 1)
