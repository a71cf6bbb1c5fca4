"""How far the eyes of a generated presenter are open: blinks, and eyes that close alone."""

from dataclasses import dataclass

import torch
from torch import Tensor

from talkinghead_lab.foundation.latent_grid import FRAMES_PER_SECOND
from talkinghead_lab.models.judges.face_reader import read_faces
from talkinghead_lab.training.avatar import FACE_CHANNELS, MOUTH_CHANNELS, Identity, Motion, render
from talkinghead_lab.training.face import EYE_LINE, FIT

# Half width, height above and depth below an eye's centre, in head units: lids and lashes, without brows.
EYE_BOX = (0.14, 0.10, 0.08)
SURFACE = 0.45  # how far an eye moves with a turn or nod, in head units for each unit of the sine
SHUT = 0.5  # an eye that is less open than this is shut
ONE_SIDED = 0.4  # difference between the eyes from which a blink counts as one-sided


def lid_openings(frames: Tensor, identity: Identity) -> Tensor:
    """How far each eye is open in each frame, [F, 2] for the viewer's left and right: 1 as usual, 0 shut.

    The presenter is drawn in the pose that is read from each frame, with open and with shut eyes. The opening
    is the place of the frame on the line between the two, by least squares over the pixels around the eye,
    relative to the eye's median: gaze, smile and errors of the pose lower it in all frames.

    Args:
        frames: [F, 3, H, W] in [−1, 1], square.
        identity: the presenter that the video shows.
    """
    poses = _smooth(read_faces(frames)[:, 1:])
    mouth = frames.new_zeros(len(frames), len(MOUTH_CHANNELS))
    drawn = []
    for blink in (0.0, 1.0):
        face = frames.new_zeros(len(frames), len(FACE_CHANNELS))
        face[:, FACE_CHANNELS.index("blink")] = blink
        drawn.append(render(identity, Motion(mouth, poses, face), frames.shape[-1]))
    opened, shut = drawn
    boxes = _eye_boxes(poses, identity, frames.shape[-1])
    away = (opened - shut)[:, None] * boxes[:, :, None]
    place = (away * (frames - shut)[:, None]).sum((2, 3, 4)) / away.square().sum((2, 3, 4)).clamp_min(1e-6)
    return place / place.median(0).values.clamp_min(1e-3)


def _smooth(poses: Tensor) -> Tensor:
    """Average over five frames, which removes most of the face reader's noise."""
    padded = torch.cat([poses[:1].expand(2, -1), poses, poses[-1:].expand(2, -1)])
    return padded.unfold(0, 5, 1).mean(-1)


def _eye_boxes(poses: Tensor, identity: Identity, size: int) -> Tensor:
    """Masks [F, 2, H, W] of the pixels around each eye."""
    turn, nod, tilt, right, down, scale = poses.unbind(1)
    axis = (torch.arange(size, device=poses.device) + 0.5) / size * 2 - 1
    masks = []
    for side in (-1.0, 1.0):
        across = side * identity.eye_spacing + SURFACE * torch.deg2rad(turn).sin()
        height = EYE_LINE + SURFACE * torch.deg2rad(nod).sin()
        angle, pivot = torch.deg2rad(tilt), 0.45  # as in `HeadSpace.on`
        x = angle.cos() * across - angle.sin() * (height - pivot)
        y = angle.sin() * across + angle.cos() * (height - pivot) + pivot
        columns = (axis - (right + scale * FIT * x)[:, None]) / (scale * FIT)[:, None]
        rows = (axis - (down + scale * FIT * y)[:, None]) / (scale * FIT)[:, None]
        wide, above, below = EYE_BOX
        inside = ((rows > -above) & (rows < below))[:, :, None] & (columns.abs() < wide)[:, None, :]
        masks.append(inside)
    return torch.stack(masks, 1).float()


@dataclass(frozen=True)
class Blinks:
    """Blinks of a video.

    Args:
        count: stretches of frames in which an eye is shut.
        one_sided: how many of them shut one eye alone.
        seconds: length of the video.
    """

    count: int
    one_sided: int
    seconds: float

    @classmethod
    def of(cls, openings: Tensor) -> "Blinks":
        """Count the blinks in lid openings [F, 2]."""
        count = one_sided = 0
        stretch: list[Tensor] = []
        for both in [*openings, openings.new_ones(2)]:
            if both.min() < SHUT:
                stretch.append(both)
            elif stretch:
                lowest = torch.stack(stretch).amin(0)
                count += 1
                one_sided += int((lowest[0] - lowest[1]).abs() > ONE_SIDED)
                stretch = []
        return cls(count, one_sided, len(openings) / FRAMES_PER_SECOND)
