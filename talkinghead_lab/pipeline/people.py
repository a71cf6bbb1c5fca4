"""Boxes of the people in a picture, proposed for `speaker_boxes`."""

import numpy as np
from PIL import Image
from torch import Tensor

from talkinghead_lab.errors import TalkingHeadError
from talkinghead_lab.foundation.field_types import MOST_REGIONS
from talkinghead_lab.foundation.latent_grid import PIXELS_PER_LATENT
from talkinghead_lab.foundation.paths import local_file
from talkinghead_lab.measures.active_speaker import Person
from talkinghead_lab.measures.photographed_faces import find_faces, nobody_found
from talkinghead_lab.media.frame_size import Box
from talkinghead_lab.media.inputs import Inputs
from talkinghead_lab.media.reference import open_reference
from talkinghead_lab.media.speaker_masks import speaker_masks
from talkinghead_lab.models.judges.presenters import LARGEST_DIFFERENCE
from talkinghead_lab.pipeline.portrait import presenter_windows
from talkinghead_lab.pipeline.request import Resolved

# Head and shoulders of a presenter in the square that it fills: left, top, right, bottom.
HEAD_AND_SHOULDERS = (0.16, 0.08, 0.84, 0.98)
APART = 0.6  # of the square's side: nearer windows show the same presenter
AROUND_FACE = 0.35  # of a photographed face's size, on each side: hair, neck


def propose_boxes(image_path: str) -> tuple[Box, ...]:
    """Find the people in the file of a picture, or in the first frame of a video.

    Args:
        image_path: as in a request.

    Raises:
        MediaError: the picture cannot be read.
        InvalidRequest: as `boxes_of_people`.
    """
    return boxes_of_people(open_reference(local_file(image_path)).frame_at(0.0))


def boxes_of_people(picture: Image.Image) -> tuple[Box, ...]:
    """Find the people in a picture, from left to right.

    Cartoon presenters are found as `crop: face` finds them, side by side or one above the other, each as high
    or wide as the picture's shorter side. Photographed people need MediaPipe's face landmarker.

    Returns:
        [left, top, right, bottom] of each in pixels of the picture, at most six; they do not overlap.

    Raises:
        InvalidRequest: nobody is found, or photographs cannot be searched on this machine.
    """
    found = _presenters(picture) or _photographed(picture)
    return _apart(sorted(found)[:MOST_REGIONS])


def people_in_frame(resolved: Resolved, inputs: Inputs) -> tuple[Person, ...]:
    """The two people of a run, in the frame; none of a run with one speaker."""
    request = resolved.request
    if request.speakers == 1:
        return ()
    regions = inputs.masks or request.speaker_boxes
    masks = speaker_masks(inputs.reference.size, regions, resolved.frame_size, resolved.framing)
    boxes: list[Box | None] = [_around(mask) for mask in masks[:2]]
    if regions and len(regions) != 2:  # the rest of the picture, or several people, are silent
        boxes[1] = None
    return tuple(Person(box, voice) for box, voice in zip(boxes, inputs.voices, strict=True))


def _around(mask: Tensor) -> Box:
    """The smallest box around a mask at latent resolution, in pixels of the frame."""
    rows, columns = (mask.any(dim=axis).nonzero().flatten() for axis in (1, 0))
    left, top, right, bottom = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    scale = PIXELS_PER_LATENT
    return int(left) * scale, int(top) * scale, int(right) * scale, int(bottom) * scale


def _presenters(picture: Image.Image) -> list[Box]:
    windows, differences = presenter_windows(picture)
    side, kept = min(picture.size), list[tuple[float, float]]()
    for place in differences.argsort().tolist():
        corner = windows[place]
        if differences[place] > LARGEST_DIFFERENCE:
            break
        if all(max(abs(a - b) for a, b in zip(corner, other, strict=True)) > APART * side for other in kept):
            kept.append(corner)
    left, top, right, bottom = (side * share for share in HEAD_AND_SHOULDERS)
    return [(round(x + left), round(y + top), round(x + right), round(y + bottom)) for x, y in kept]


def _photographed(picture: Image.Image) -> list[Box]:
    try:
        faces = find_faces(np.asarray(picture), MOST_REGIONS)
    except TalkingHeadError as error:
        raise nobody_found(
            error,
            "found no people",
            received="a picture of {}x{} pixels".format(*picture.size),
            instead="draw `speaker_boxes` or `speaker_masks` yourself",
            field="speaker_boxes",
        ) from None
    size = faces[:, 2:] - faces[:, :2]
    around = np.concatenate([faces[:, :2] - AROUND_FACE * size, faces[:, 2:] + AROUND_FACE * size], axis=1)
    inside = around.clip(0, [*picture.size, *picture.size]).round().astype(int)
    return [(left, top, right, bottom) for left, top, right, bottom in inside.tolist()]


def _apart(boxes: list[Box]) -> tuple[Box, ...]:
    """Boxes, from left to right, of which those that overlap side by side meet in the middle."""
    apart = list(boxes)
    for first in range(len(apart) - 1):
        (left, top, right, bottom), (x, y, x2, y2) = apart[first], apart[first + 1]
        if x < right and y < bottom and top < y2:
            middle = (x + right) // 2
            apart[first], apart[first + 1] = (left, top, middle, bottom), (middle, y, x2, y2)
    return tuple(apart)
