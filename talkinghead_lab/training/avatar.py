"""Cartoon presenters animated by motion tracks, rendered in batches on CPU or GPU.

identity = sample_identity(torch.Generator().manual_seed(3))
frames = render(identity, Motion.still(25), size=160)     # [25, 3, 160, 160] in [−1, 1]
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from talkinghead_lab.training import face, figure
from talkinghead_lab.training.identity import Identity, sample_identity, stack
from talkinghead_lab.training.shapes import Canvas

MOUTH_CHANNELS = ("opening", "width", "rounding", "teeth", "tongue")
POSE_CHANNELS = ("turn", "nod", "tilt", "shift_x", "shift_y", "scale")
FACE_CHANNELS = ("gaze_x", "gaze_y", "blink", "brows", "smile")

# Range of each pose channel: degrees, half-pictures, scale factor.
POSE_LIMITS = {
    "turn": (-20.0, 20.0), "nod": (-14.0, 14.0), "tilt": (-8.0, 8.0),
    "shift_x": (-0.10, 0.10), "shift_y": (-0.08, 0.08), "scale": (0.92, 1.14),
}  # fmt: skip
# [left, top, right, bottom] reached by eyes and glasses, and by nose, beard and mouth, within POSE_LIMITS.
EYES_WINDOW = (-0.85, -0.70, 0.85, 0.45)
MOUTH_WINDOW = (-0.75, -0.50, 0.75, 0.975)


@dataclass(frozen=True)
class Motion:
    """Motion tracks of a presenter at 25 frames per second.

    Args:
        mouth: [..., F, 5]: opening 0 … 1, width −1 … 1, rounding 0 … 1, teeth 0 … 1, tongue 0 … 1.
        pose: [..., F, 6]: turn (positive to the picture's right), nod (positive down) and tilt in degrees,
            shift right and down in half-pictures, scale (1: as drawn).
        face: [..., F, 5]: gaze right and down −1 … 1, blink 0 … 1, brows −1 … 1 (raised), smile −1 … 1.
    """

    mouth: Tensor
    pose: Tensor
    face: Tensor

    @classmethod
    def still(cls, frames: int) -> "Motion":
        """Motion with a closed mouth, a frontal head and open eyes."""
        pose = torch.zeros(frames, len(POSE_CHANNELS))
        pose[:, POSE_CHANNELS.index("scale")] = 1
        return cls(torch.zeros(frames, len(MOUTH_CHANNELS)), pose, torch.zeros(frames, len(FACE_CHANNELS)))

    @classmethod
    def stack(cls, motions: Sequence["Motion"]) -> "Motion":
        """Stack motions of equal length into one batch [N, F, …]."""
        return cls(*(torch.stack([getattr(m, name) for m in motions]) for name in ("mouth", "pose", "face")))

    @property
    def frames(self) -> int:
        """Number of frames F."""
        return self.mouth.shape[-2]

    def to(self, device: torch.device | str) -> "Motion":
        """The same motion on another device."""
        return Motion(self.mouth.to(device), self.pose.to(device), self.face.to(device))

    def cut(self, start: int, stop: int) -> "Motion":
        """Frames `start` … `stop` − 1."""
        return Motion(*(track[..., start:stop, :] for track in (self.mouth, self.pose, self.face)))


@torch.no_grad()
def render(
    identity: Identity | Sequence[Identity],
    motion: Motion,
    size: int = 160,
    frames_at_once: int | None = None,
) -> Tensor:
    """Draw the presenter in every frame of the motion, on the motion's device.

    Args:
        identity: one presenter, or N of them.
        motion: tracks [F, …] for one presenter, [N, F, …] for N.
        size: height and width in pixels.
        frames_at_once: frames drawn together; the default is small on a CPU, so that they fit in its cache.

    Returns:
        [F, 3, size, size] or [N, F, 3, size, size], float32 sRGB in [−1, 1].
    """
    identities = [identity] if isinstance(identity, Identity) else list(identity)
    device = motion.mouth.device
    tracks = torch.cat([motion.mouth, motion.pose, motion.face], -1).float()
    tracks = tracks.reshape(len(identities), -1, tracks.shape[-1])
    count, frames = tracks.shape[:2]
    who = stack(identities, device)
    stage = Canvas.blank(count, size, device)
    figure.draw_backdrop(stage, who)
    output = torch.empty(count * frames, 3, size, size, device=device)
    owner = torch.arange(count, device=device).repeat_interleave(frames)
    step = frames_at_once or (max(1, 4 * 160 * 160 // size**2) if device.type == "cpu" else 512)
    for start in range(0, count * frames, step):
        chunk = slice(start, start + step)
        numbers = {name: value[owner[chunk]] for name, value in who.items()}
        values = tracks.flatten(0, 1)[chunk, :, None, None].unbind(1)
        moves = dict(zip(MOUTH_CHANNELS + POSE_CHANNELS + FACE_CHANNELS, values, strict=True))
        canvas = Canvas(output[chunk], stage.x, stage.y, stage.pixel)
        canvas.colour.copy_(stage.colour[owner[chunk]])
        _draw_presenter(canvas, numbers, moves)
    output = output.clamp_(0, 1).mul_(2).sub_(1).view(count, frames, 3, size, size)
    return output[0] if isinstance(identity, Identity) else output


def _draw_presenter(canvas: Canvas, who: dict[str, Tensor], motion: dict[str, Tensor]) -> None:
    """Paint from back to front; eyes and mouth are painted in windows that contain every allowed pose."""
    space = face.HeadSpace.on(canvas, motion)
    eyes, mouth = canvas.window(*EYES_WINDOW), canvas.window(*MOUTH_WINDOW)
    eyes_space, mouth_space = space.within(eyes), space.within(mouth)
    back_hair = figure.back_hair_distance(space, who)
    figure.draw_back_hair(canvas, space, who, back_hair)
    figure.draw_body(canvas, space, who, motion)
    face.draw_ears(canvas, space, who)
    head = face.draw_head(canvas, space, who, motion)
    face.draw_nose(mouth, mouth_space, who)
    face.draw_eyes(eyes, eyes_space, who, motion)
    face.draw_temples(eyes, eyes_space, who)
    face.draw_beard(mouth, mouth_space, who, motion, mouth.crop(head))
    face.draw_mouth(mouth, mouth_space, who, motion)
    figure.draw_hair(canvas, space, who, motion, head, back_hair)
    face.draw_glasses(eyes, eyes_space, who)


__all__ = ["Identity", "Motion", "render", "sample_identity"]
