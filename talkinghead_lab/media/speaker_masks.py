"""Masks of the two speakers in the frame."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from talkinghead_lab.errors import InvalidRequest
from talkinghead_lab.foundation.latent_grid import PIXELS_PER_LATENT
from talkinghead_lab.media.frame_size import covering_size, crop_start

HALF_MARGIN = 0.05  # margin of a default mask on each side of its half of the image


def speaker_masks(
    source_size: tuple[int, int],
    boxes: Sequence[tuple[int, int, int, int]] | None,
    frame_size: tuple[int, int],
) -> Tensor:
    """Masks of the two speakers in the frame that is cropped from a source image.

    Args:
        source_size: (width, height) of the source image.
        boxes: [left, top, right, bottom] in source pixels, for the first and the second speaker; None: each
            gets half of the image, less a margin of 5 % per side.
        frame_size: (W, H) of the frame.

    Returns:
        float32 [3, h, w] of zeros and ones: first speaker, second speaker, background.

    Raises:
        InvalidRequest: a speaker's box is outside the frame.
    """
    covering = covering_size(source_size, frame_size)
    speakers = []
    for number, (left, top, right, bottom) in enumerate(boxes or _halves(*source_size), start=1):
        columns = _kept_span(left, right, source_size[0], covering[0], frame_size[0])
        rows = _kept_span(top, bottom, source_size[1], covering[1], frame_size[1])
        mask = torch.outer(rows, columns)
        if not mask.any():
            raise InvalidRequest(
                f"the box of speaker {number} is outside the frame",
                received=[left, top, right, bottom],
                allowed="[left, top, right, bottom] in pixels of the image, {}x{}".format(*source_size),
                remedy="The frame is the {}x{} centre of the scaled image.".format(*frame_size),
            )
        speakers.append(mask)
    background = 1 - torch.stack(speakers).amax(dim=0)
    return torch.stack([*speakers, background])


def _halves(width: int, height: int) -> list[tuple[int, int, int, int]]:
    half, (top, bottom) = width // 2, (int(height * HALF_MARGIN), int(height * (1 - HALF_MARGIN)))
    left, right = int(half * HALF_MARGIN), int(half * (1 - HALF_MARGIN))
    second_left, second_right = int(half * HALF_MARGIN + half), int(half * (1 - HALF_MARGIN) + half)
    return [(left, top, right, bottom), (second_left, top, second_right, bottom)]


def _kept_span(start: int, stop: int, source: int, covering: int, frame: int) -> Tensor:
    """One axis of a box at latent resolution, [frame / 8] of zeros and ones: scaled, cropped, downsampled.

    A box is the outer product of its axes, also after nearest-neighbour scaling, so no mask of the source's
    size is needed.
    """
    span = torch.zeros(1, 1, source)
    span[..., max(0, start) : stop] = 1
    begin = crop_start(covering, frame)
    cropped = functional.interpolate(span, size=covering, mode="nearest")[..., begin : begin + frame]
    return functional.interpolate(cropped, size=frame // PIXELS_PER_LATENT, mode="nearest")[0, 0]
