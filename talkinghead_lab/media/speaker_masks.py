"""Masks of the two speakers in the frame."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from talkinghead_lab.errors import InvalidRequest
from talkinghead_lab.foundation.latent_grid import PIXELS_PER_LATENT, PIXELS_PER_TOKEN
from talkinghead_lab.media.frame_size import CENTER, Box, Framing, Placement, Size, place
from talkinghead_lab.media.mask_files import Mask

Regions = Sequence[Box | Mask] | None
HALF_MARGIN = 0.05  # margin of a default mask on each side of its half of the image
TOLERANCE = 1e-6  # of a token; scaled edges are inexact


def speaker_masks(
    source_size: Size,
    regions: Regions,
    frame_size: Size,
    framing: Framing = CENTER,
) -> Tensor:
    """Masks of the two speakers in the frame that is made from a source image.

    A region counts as far as it lies in the frame. The second and all further ones together are the second
    speaker's; a single one leaves all the rest of the frame to the second speaker, who is silent then.

    Args:
        source_size: (width, height) of the source image.
        regions: per speaker, a box [left, top, right, bottom] in source pixels, or a mask of the source's
            size; None: each of two gets half of the image, less a margin of 5 % per side.
        frame_size: (W, H) of the frame.
        framing: how the image is brought into the frame.

    Returns:
        float32 [3, h, w] of zeros and ones: first speaker, second speaker, background. Every speaker has at
        least one token; the background may be empty.

    Raises:
        InvalidRequest: a speaker's region is outside the frame or smaller than a token, or both speakers
            have the same tokens.
    """
    placed = place(source_size, frame_size, framing)
    speakers = []
    for number, region in enumerate(regions or _halves(*source_size), start=1):
        mask = _in_frame(region, placed)
        if isinstance(region, tuple):
            _check_box(number, region, mask, placed, chosen=regions is not None)
        else:
            _check_mask(number, region, mask, placed)
        speakers.append(mask)
    first, *others = speakers
    second = torch.stack(others).amax(dim=0) if others else 1 - first
    if not others and not _token_samples(second).any():
        raise InvalidRequest(
            "the region of the only speaker fills the frame: nobody is left to be silent",
            received=_words(regions),
            remedy="Draw it smaller, or leave it out: without regions, there is one speaker.",
            field=_field(regions),
        )
    if torch.equal(_token_samples(first), _token_samples(second)):
        raise InvalidRequest(
            "both speakers have the same part of the frame, which binds it to neither",
            received=_words(regions),
            allowed="regions that differ by a token, {}x{} pixels of the picture".format(*_token(placed)),
            field=_field(regions),
        )
    background = 1 - torch.maximum(first, second)
    return torch.stack([first, second, background])


def _field(regions: Regions) -> str:
    return "speaker_masks" if regions and not isinstance(regions[0], tuple) else "speaker_boxes"


def _words(regions: Regions) -> object:
    if not regions or not isinstance(regions[0], tuple):
        return f"{len(regions or ())} masks"
    return [list(box) for box in regions]


def _in_frame(region: Box | Mask, placed: Placement) -> Tensor:
    """A region at latent resolution, float32 [H / 8, W / 8]: scaled, cropped, downsampled to the nearest."""
    columns, rows = (_pixels(axis, placed) for axis in (0, 1))
    if isinstance(region, tuple):
        spans = []
        for axis, pixels in ((1, rows), (0, columns)):
            start, stop = _inside(region, axis, placed)
            spans.append(((pixels >= start) & (pixels < stop)).float())
        return torch.outer(*spans)
    drawn = torch.from_numpy(region)[rows.clamp(min=0)][:, columns.clamp(min=0)]
    return (drawn & (rows >= 0)[:, None] & (columns >= 0)).float()


def _check_mask(number: int, drawn: Mask, mask: Tensor, placed: Placement) -> None:
    left, top, right, bottom = placed.kept
    if not drawn[top:bottom, left:right].any():
        raise InvalidRequest(
            f"the mask of speaker {number} is outside the frame",
            remedy=f"The frame shows the part {list(placed.kept)} of the picture.",
            field="speaker_masks",
        )
    if not _token_samples(mask).any():
        raise InvalidRequest(
            f"the mask of speaker {number} is smaller than a token, {PIXELS_PER_TOKEN}x{PIXELS_PER_TOKEN} "
            "pixels of the frame",
            allowed="{}x{} pixels of the picture or more, within the part {} that the frame shows".format(
                *_token(placed), list(placed.kept)
            ),
            remedy="Draw the mask larger, or choose a larger `frame_size`.",
            field="speaker_masks",
        )


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


def _pixels(axis: int, placed: Placement) -> Tensor:
    """The picture's pixel that each latent pixel of the frame shows on one axis, int64; −1: none."""
    begin, frame = (placed.left, placed.top)[axis], placed.frame[axis]
    numbers = torch.arange(1.0, placed.source[axis] + 1)[None, None]
    scaled = functional.interpolate(numbers, size=placed.scaled[axis], mode="nearest")
    padded = functional.pad(scaled, (max(0, -begin), max(0, begin + frame - placed.scaled[axis])))
    cropped = padded[..., max(0, begin) : max(0, begin) + frame]
    return functional.interpolate(cropped, size=frame // PIXELS_PER_LATENT, mode="nearest")[0, 0].long() - 1
