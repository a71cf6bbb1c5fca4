"""Blends the discontinuity between two chunks."""

import torch
from torch import Tensor


class SeamBlend:
    """Fades out the difference between a chunk and the frames that it continues, piece by piece.

    The last overlap frame is decoded twice, in both chunks, with slightly different results. The difference
    is added to the new frames with linearly decreasing weight.

    Args:
        last: [..., 3, 1, H, W] in [−1, 1], the last overlap frame as the previous chunk has it.
        overlap: frames shared by the two chunks.
        blend_frames: new frames over which the difference fades out.
    """

    def __init__(self, last: Tensor, overlap: int, blend_frames: int) -> None:
        self.last, self.overlap, self.blend_frames = last, overlap, blend_frames
        self.difference: Tensor | None = None

    def __call__(self, frames: Tensor, start: int = 0) -> Tensor:
        """Blend the next piece.

        Args:
            frames: [..., 3, f, H, W] in [−1, 1]; overlap frames come first.
            start: number of the first of them in the chunk.
        """
        place, count = self.overlap - 1 - start, frames.shape[-3]
        if 0 <= place < count:
            self.difference = self.last - frames[..., place : place + 1, :, :]
        if place + self.blend_frames < 0 or place >= count - 1:
            return frames
        assert self.difference is not None, "pieces are blended in order"
        numbers = torch.arange(-place, count - place, device=frames.device)
        weights = (1 - numbers / (self.blend_frames + 1)).clamp(min=0) * (numbers > 0)
        return (frames + weights.view(-1, 1, 1) * self.difference).clamp(-1, 1)
