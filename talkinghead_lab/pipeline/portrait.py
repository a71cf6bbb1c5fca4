"""The picture of a request in its frame: what is kept of it, and whether the model knows its kind."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from talkinghead_lab.errors import TalkingHeadError
from talkinghead_lab.foundation.paths import local_file
from talkinghead_lab.measures.photographed_faces import find_face, nobody_found
from talkinghead_lab.media.frame_size import Framing, Placement, Size, fit, nearest_size, place
from talkinghead_lab.media.mask_files import Mask, check_masks, read_masks
from talkinghead_lab.media.pixels import to_unit_range
from talkinghead_lab.media.reference import Portrait, ReferenceMedia, open_reference
from talkinghead_lab.media.speaker_masks import speaker_masks
from talkinghead_lab.models.judges.presenters import LARGEST_DIFFERENCE, presenter_difference
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.pipeline.lips_only import find_lower_faces, square_windows

PAIRS_LORA, PAIRS_SIZE = "sample:pairs-lora", (320, 160)
PAIRS_ONLY = (
    "The bundled model animates two people only as in params/two-speakers-embedded.yaml: side by side, with "
    f"`loras: [{{path: {PAIRS_LORA}}}]` and `frame_size: 320x160`. Expect mouths that follow neither their "
    "own recording nor silence. For other pictures of several people, use the released weights "
    "(checkpoint: released)."
)
SEARCH_SIDE = 160  # pixels of a window; the reader takes 128


@dataclass(frozen=True)
class FramedPicture:
    """The portrait or driving video of a request, and how it is brought into the frame.

    Args:
        reference: the picture.
        frame_size: (W, H).
        framing: the part that is kept.
        warnings: what the user should know about the picture.
        masks: where the speakers are in the picture, if that is drawn.
    """

    reference: ReferenceMedia
    frame_size: Size
    framing: Framing
    warnings: tuple[str, ...] = ()
    masks: tuple[Mask, ...] = ()

    @property
    def placement(self) -> Placement:
        """Where the frame lies on the picture."""
        return place(self.reference.size, self.frame_size, self.framing)


def frame_picture(
    request: GenerationParams, reference: ReferenceMedia | None = None, masks: tuple[Mask, ...] = ()
) -> FramedPicture:
    """Bring a request's picture into its frame.

    Args:
        request: names the picture, and what shows its speakers.
        reference: the picture, if it is open already; with it, `masks` are those of its speakers.
        masks: see `reference`.

    Raises:
        MediaError: the picture cannot be read.
        InvalidRequest: no face is found where one is needed, the picture does not fill the frame, or
            speaker boxes or masks cannot be used with it.
    """
    if reference is None:
        reference = open_reference(local_file(request.pictures[0].file), request.background)
        masks = read_masks([local_file(path) for path in request.speaker_masks or ()])
        check_masks(masks, reference.size, request.voices)
    size = request.forced_size or nearest_size(*reference.size, request.resolution)
    return framed(request, reference, size, masks)


def framed(
    request: GenerationParams,
    reference: ReferenceMedia,
    size: Size,
    masks: tuple[Mask, ...] = (),
    seconds: float = 0.0,
) -> FramedPicture:
    """Bring a picture, or a video as it is at a time, into a frame of (W, H); errors as `frame_picture`."""
    first = reference.frame_at(seconds)
    framing = framing_of(request, first)
    place(reference.size, size, framing)
    if request.speakers > 1:
        speaker_masks(reference.size, masks or request.speaker_boxes, size, framing)
    follows = request.lips_only and not request.lips_mask
    if follows and not isinstance(reference, Portrait):  # whose refusal names the picture
        find_lower_faces(fit(first, *size, framing)[None])
    warnings = picture_warnings(request, fit(first, *size, framing))
    warnings += _box_warnings(request, reference.size)
    return FramedPicture(reference, size, framing, warnings, masks)


def framing_of(request: GenerationParams, picture: Image.Image) -> Framing:
    """How a picture is brought into the frame; errors as for `face_centre`."""
    return Framing(request.crop, request.pad, face_centre(picture) if request.crop == "face" else None)


def _box_warnings(request: GenerationParams, size: Size) -> tuple[str, ...]:
    """Warn of speaker boxes that reach beyond the picture."""
    return tuple(
        f"The box of speaker {number}, {list(box)}, reaches beyond the picture of {size[0]}x{size[1]}: "
        "only the part within the picture counts."
        for number, box in enumerate(request.speaker_boxes or (), start=1)
        if box[2] > size[0] or box[3] > size[1]
    )


def picture_warnings(request: GenerationParams, frame: Tensor) -> tuple[str, ...]:
    """Warn of a frame, uint8 [3, H, W], of a kind that the bundled model has never seen."""
    if request.checkpoint != "embedded":
        return ()
    shown = frame[None]
    if request.speakers > 1:
        if frame.shape[:0:-1] != PAIRS_SIZE or PAIRS_LORA not in [lora.path for lora in request.loras]:
            return (PAIRS_ONLY,)
        shown = torch.stack(frame.split(PAIRS_SIZE[1], dim=-1))
    difference = presenter_difference(to_unit_range(shown)).max().item()
    if difference <= LARGEST_DIFFERENCE:
        return ()
    return (
        "The bundled model knows only drawn cartoon presenters, and the frame does not show one "
        f"(difference {difference:.2f}; presenters: at most {LARGEST_DIFFERENCE:g}). Expect a cartoon mouth "
        "where the model supposes one, not a speaking face. For photographs and other pictures, use the "
        "released weights (checkpoint: released); for the bundled model, use a picture like sample:portrait, "
        "and see `crop` if the frame cuts the head.",
    )


def face_centre(picture: Image.Image) -> tuple[float, float]:
    """Find the face of a cartoon presenter or a photographed person: (x, y) as fractions of the picture.

    For a presenter, the centre is that of the square in which the bundled model would draw it.

    Raises:
        InvalidRequest: there is none, or photographs cannot be searched on this machine.
    """
    centre = _presenter_centre(picture)
    if centre is not None:
        return centre
    try:
        left, top, right, bottom = find_face(np.asarray(picture)).boxes[0]
    except TalkingHeadError as error:
        raise nobody_found(
            error,
            "`crop: face` found no face",
            received="a picture of {}x{} pixels".format(*picture.size),
            instead="choose `crop: center` or `top`",
            field="crop",
        ) from None
    return (left + right) / 2 / picture.width, (top + bottom) / 2 / picture.height


def _presenter_centre(picture: Image.Image) -> tuple[float, float] | None:
    """The centre of the window that shows a presenter best; None: no window shows one."""
    corners, differences = presenter_windows(picture)
    best, side = int(differences.argmin()), min(picture.size)
    if differences[best] > LARGEST_DIFFERENCE:
        return None
    left, top = corners[best]
    return (left + side / 2) / picture.width, (top + side / 2) / picture.height


def presenter_windows(picture: Image.Image) -> tuple[list[tuple[int, int]], Tensor]:
    """Slide a square window along the picture's longer side.

    Returns:
        Left and top of each window, in pixels, and how far what it shows is from a presenter, [windows].
    """
    windows, corners = [], []
    for left, top, side in square_windows(*picture.size):
        box = (left, top, left + side, top + side)
        windows.append(np.asarray(picture.resize((SEARCH_SIDE, SEARCH_SIDE), box=box)))
        corners.append((left, top))
    frames = torch.from_numpy(np.stack(windows)).permute(0, 3, 1, 2)
    return corners, presenter_difference(to_unit_range(frames))
