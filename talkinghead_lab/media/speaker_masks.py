"""Masks of the two speakers in the frame."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from talkinghead_lab.errors import InvalidRequest
from talkinghead_lab.foundation.latent_grid import PIXELS_PER_LATENT, PIXELS_PER_TOKEN
from talkinghead_lab.media.frame_size import CENTER, Box, Framing, Placement, Size, place

HALF_MARGIN = 0.05  # margin of a default mask on each side of its half of the image
TOLERANCE = 1e-6  # of a token; scaled edges are inexact


def speaker_masks(
    source_size: Size, boxes: Sequence[Box] | None, frame_size: Size, framing: Framing = CENTER
) -> Tensor:
    """Masks of the two speakers in the frame that is made from a source image.

    A box counts as far as it lies in the frame.

    Args:
        source_size: (width, height) of the source image.
        boxes: [left, top, right, bottom] in source pixels, for the first and the second speaker; None: each
            gets half of the image, less a margin of 5 % per side.
        frame_size: (W, H) of the frame.
        framing: how the image is brought into the frame.

    Returns:
        float32 [3, h, w] of zeros and ones: first speaker, second speaker, background. Every speaker has at
        least one token; the background may be empty.

    Raises:
        InvalidRequest: a speaker's box is outside the frame or smaller than a token, or both speakers have
            the same tokens.
    """
    placed = place(source_size, frame_size, framing)
    speakers = []
    for number, box in enumerate(boxes or _halves(*source_size), start=1):
        mask = torch.outer(_kept_span(box, 1, placed), _kept_span(box, 0, placed))
        _check_box(number, box, mask, placed, chosen=boxes is not None)
        speakers.append(mask)
    if torch.equal(*map(_token_samples, speakers)):
        raise InvalidRequest(
            "both speakers have the same part of the frame, which binds it to neither",
            received=[list(box) for box in boxes or ()],
            allowed="boxes that differ by a token, {}x{} pixels of the picture".format(*_token(placed)),
            field="speaker_boxes",
        )
    background = 1 - torch.stack(speakers).amax(dim=0)
    return torch.stack([*speakers, background])


def _check_box(number: int, box: Box, mask: Tensor, placed: Placement, *, chosen: bool) -> None:
    """Refuse a box outside the frame or smaller than a token; default boxes need only own a token."""
    if not mask.any():
        raise InvalidRequest(
            f"the box of speaker {number} is outside the frame",
            received=list(box),
            allowed="[left, top, right, bottom] in pixels of the image, {}x{}".format(*placed.source),
            remedy=f"The frame shows the part {list(placed.kept)} of it.",
            field="speaker_boxes",
        )
    sides = _visible(box, 0, placed), _visible(box, 1, placed)
    too_small = chosen and min(sides) < PIXELS_PER_TOKEN - TOLERANCE
    if too_small or not _token_samples(mask).any():
        raise InvalidRequest(
            f"the box of speaker {number} is smaller than a token, {PIXELS_PER_TOKEN}x{PIXELS_PER_TOKEN} "
            "pixels of the frame",
            received=list(box),
            allowed="at least {}x{} pixels of the picture, within the part {} that the frame shows".format(
                *_token(placed), list(placed.kept)
            ),
            remedy="Draw the box larger, or choose a larger `frame_size`.",
            field="speaker_boxes",
        )


def _halves(width: int, height: int) -> list[Box]:
    half, (top, bottom) = width // 2, (int(height * HALF_MARGIN), int(height * (1 - HALF_MARGIN)))
    left, right = int(half * HALF_MARGIN), int(half * (1 - HALF_MARGIN))
    second_left, second_right = int(half * HALF_MARGIN + half), int(half * (1 - HALF_MARGIN) + half)
    return [(left, top, right, bottom), (second_left, top, second_right, bottom)]


def _token(placed: Placement) -> Size:
    """(width, height) of the smallest box in pixels of the picture."""
    width, height = (
        math.ceil(PIXELS_PER_TOKEN * source / scaled - TOLERANCE)
        for source, scaled in zip(placed.source, placed.scaled, strict=True)
    )
    return width, height


def _token_samples(mask: Tensor) -> Tensor:
    """The part of a mask that the transformer sees: one latent pixel of each token."""
    step = PIXELS_PER_TOKEN // PIXELS_PER_LATENT
    return mask[::step, ::step]


def _visible(box: Box, axis: int, placed: Placement) -> float:
    """Length of one side of a box in the frame, in pixels of the frame."""
    begin, frame = (placed.left, placed.top)[axis], placed.frame[axis]
    scale = placed.scaled[axis] / placed.source[axis]
    start, stop = (min(max(0.0, edge * scale - begin), frame) for edge in _inside(box, axis, placed))
    return stop - start


def _inside(box: Box, axis: int, placed: Placement) -> tuple[int, int]:
    """Start and stop of a box on one axis, clipped to the picture."""
    length = placed.source[axis]
    return min(max(0, box[axis]), length), min(max(0, box[axis + 2]), length)


def _kept_span(box: Box, axis: int, placed: Placement) -> Tensor:
    """One axis of a box at latent resolution, [frame / 8] of zeros and ones: scaled, cropped, downsampled.

    A box is the outer product of its axes, also after nearest-neighbour scaling, so no mask of the source's
    size is needed.
    """
    start, stop = _inside(box, axis, placed)
    begin, frame = (placed.left, placed.top)[axis], placed.frame[axis]
    span = torch.zeros(1, 1, placed.source[axis])
    span[..., start:stop] = 1
    scaled = functional.interpolate(span, size=placed.scaled[axis], mode="nearest")
    padded = functional.pad(scaled, (max(0, -begin), max(0, begin + frame - placed.scaled[axis])))
    cropped = padded[..., max(0, begin) : max(0, begin) + frame]
    return functional.interpolate(cropped, size=frame // PIXELS_PER_LATENT, mode="nearest")[0, 0]
