"""Lips only: a driving video stays as it is but for the lower face, which is followed from frame to frame."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from talkinghead_lab.errors import InvalidRequest, TalkingHeadError
from talkinghead_lab.foundation.latent_grid import FRAMES_PER_LATENT
from talkinghead_lab.measures.photographed_faces import FaceTracker, nobody_found
from talkinghead_lab.media.frame_size import Framing, Size
from talkinghead_lab.media.pixels import to_unit_range
from talkinghead_lab.media.reference import Portrait, ReferenceMedia
from talkinghead_lab.models.judges.lower_face import lower_faces
from talkinghead_lab.models.judges.presenters import LARGEST_DIFFERENCE, presenter_difference

SEARCH_STEP = 1 / 16  # of a window; the reader knows presenters that far from their place
SEARCHED_FRAMES = 8
WHITE = 128  # of a mask, and lighter


@dataclass(frozen=True)
class KeptFrames:
    """The frames of a driving video during a chunk, and what of them is sampled anew.

    Args:
        frames: [3, F, H, W] in [−1, 1], on the CPU.
        weights: of the sampled frames, [1, F, H, W]: 1 on the lower face, falling to 0 across the border.
    """

    frames: Tensor
    weights: Tensor

    def latent_mask(self, pixels_per_latent: int) -> Tensor:
        """1 where a latent pixel reaches into the lower face or its border, [1, 1, T, h, w]."""
        sampled = (self.weights > 0).float()
        # The first latent frame is of one video frame; each other one of several.
        first = sampled[:, :1].expand(-1, FRAMES_PER_LATENT - 1, -1, -1)
        of_latents = torch.cat([first, sampled], dim=1).unflatten(1, (-1, FRAMES_PER_LATENT)).amax(2)
        return max_pool2d(of_latents, pixels_per_latent)[None]

    def compose(self, piece: Tensor, start: int) -> Tensor:
        """Lay sampled frames [3, f, H, W], the first of which has the number `start`, into the video's."""
        part = slice(start, start + piece.shape[1])
        weights, frames = (whole[:, part].to(piece) for whole in (self.weights, self.frames))
        return torch.lerp(frames, piece, weights)


def keep(frames: Tensor, border: int, mask: Tensor | None = None) -> KeptFrames:
    """Follow the lower face through a chunk, or take a mask instead.

    Args:
        frames: uint8 [F, 3, H, W] of the driving video.
        border: pixels over which the sampled frames go over into the video's, outside of the lower face.
        mask: uint8 [F, 3, H, W], white where the video is sampled anew.

    Raises:
        InvalidRequest: there is no face, or photographs cannot be searched on this machine.
    """
    if mask is None:
        weights = ellipses(find_lower_faces(frames), (frames.shape[-2], frames.shape[-1]), border)
    else:
        weights = mask_weights(mask, border)
    return KeptFrames(to_unit_range(frames).transpose(0, 1), weights.transpose(0, 1))


def mask_weights(mask: Tensor, border: int) -> Tensor:
    """Weights [F, 1, H, W] of a mask uint8 [F, 3, H, W]: 1 where it is white, 0 beyond the border."""
    from scipy.ndimage import distance_transform_edt  # slow to import, and the pipeline imports this module

    inside = (mask.float().mean(1) >= WHITE).numpy()
    # A frame without white has no distance to it.
    distances = [
        distance_transform_edt(~each) if each.any() else np.full(each.shape, np.inf) for each in inside
    ]
    return (1 - torch.from_numpy(np.stack(distances)).float() / border).clamp(0, 1)[:, None]


def masked(framing: Framing) -> Framing:
    """How a mask is brought into the frame of its video: with black around it."""
    return framing if framing.pad is None else replace(framing, pad="#000000")


def check_mask(mask: ReferenceMedia, size: Size) -> ReferenceMedia:
    """Check that a mask is as large as its video and that a still one has white.

    Raises:
        InvalidRequest: it is or has not.
    """
    if mask.size != size:
        raise InvalidRequest(
            "lips_mask must have the size of the driving video",
            received="{}x{} pixels".format(*mask.size),
            allowed="{}x{} pixels".format(*size),
            remedy="Draw it on a frame of the video.",
            field="lips_mask",
        )
    if isinstance(mask, Portrait) and np.asarray(mask.image).mean(2).max() < WHITE:
        raise InvalidRequest(
            "lips_mask has no white part, so nothing would be sampled anew",
            received="a picture that is black or nearly so",
            remedy="Paint white what is to move with the recording.",
            field="lips_mask",
        )
    return mask


def find_lower_faces(frames: Tensor) -> Tensor:
    """The ellipse around mouth and chin in each frame, uint8 [F, 3, H, W]: see `lower_faces`.

    Raises:
        InvalidRequest: there is no face, or photographs cannot be searched on this machine.
    """
    drawn = _drawn_lower_faces(to_unit_range(frames))
    if drawn is not None:
        return drawn
    height, width = frames.shape[-2:]
    try:
        tracker = FaceTracker(len(frames))
        for frame in frames:
            tracker.add(frame.permute(1, 2, 0).numpy())
        boxes = tracker.faces().boxes
    except TalkingHeadError as error:
        raise nobody_found(
            error,
            "lips_only found no face",
            received=f"frames of {width}x{height} pixels",
            instead="leave lips_only out",
            field="lips_only",
        ) from None
    return torch.from_numpy(_lower_parts(boxes, width, height)).float()


def _drawn_lower_faces(frames: Tensor) -> Tensor | None:
    """The ellipses of a cartoon presenter in frames of any shape; None: there is no presenter.

    Of the square windows along the longer side, that counts in which some of the frames differ least from
    presenters: the same for all frames, so that the ellipse moves with the face alone.
    """
    height, width = frames.shape[-2:]
    seen = frames[:: max(1, len(frames) // SEARCHED_FRAMES)]
    places = list(square_windows(width, height))
    differences = [presenter_difference(_window(seen, *place)).median().item() for place in places]
    best = int(np.argmin(differences))
    if differences[best] > LARGEST_DIFFERENCE:
        return None
    left, top, side = places[best]
    found = lower_faces(_window(frames, left, top, side))
    scale = found.new_tensor([side / width, side / height])
    centre = found.new_tensor([(2 * left + side) / width - 1, (2 * top + side) / height - 1])
    return torch.cat([found[:, :2] * scale + centre, found[:, 2:4] * scale, found[:, 4:]], dim=1)


def square_windows(width: int, height: int) -> Iterator[tuple[int, int, int]]:
    """(left, top, side) of the square windows along the longer side of a picture, in pixels."""
    side = min(width, height)
    reach = max(width, height) - side
    count = 1 + round(reach / (side * SEARCH_STEP))
    for place in np.linspace(0, reach, count) if count > 1 else (reach / 2,):
        start = round(float(place))
        yield (start, 0, side) if width > height else (0, start, side)


def _window(frames: Tensor, left: int, top: int, side: int) -> Tensor:
    return frames[..., top : top + side, left : left + side]


def _lower_parts(boxes: np.ndarray, width: int, height: int) -> np.ndarray:
    """The lower half of each face from chin to forehead, in pixels [F, 4], as `lower_faces` has it."""
    left, top, right, bottom = boxes.T
    centre_y, half_height = (top + 3 * bottom) / 4, (bottom - top) / 4
    columns = (left + right) / width - 1, 2 * centre_y / height - 1, (right - left) / width
    return np.stack([*columns, 2 * half_height / height, np.zeros(len(boxes))], axis=1)


def ellipses(found: Tensor, size: tuple[int, int], border: int) -> Tensor:
    """Weights [F, 1, H, W] of ellipses [F, 5] in frames of (H, W): 1 inside, 0 beyond the border."""
    height, width = size
    y, x = (((torch.arange(side) + 0.5) * 2 / side - 1) * side / 2 for side in size)
    scale = found.new_tensor([width, height, width, height, 2.0]) / 2
    across, down, half_width, half_height, tilt = (found * scale)[..., None, None].unbind(1)
    dx, dy = x[None, None, :] - across, y[None, :, None] - down
    u = (tilt.cos() * dx + tilt.sin() * dy) / half_width
    v = (tilt.cos() * dy - tilt.sin() * dx) / half_height
    radius = torch.hypot(u, v).clamp(min=1e-6)
    # To the edge along the line to the centre.
    outside = torch.hypot(dx, dy) * (1 - 1 / radius)
    return (1 - outside / border).clamp(0, 1)[:, None]
