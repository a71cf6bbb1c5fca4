"""Where the lower face of a cartoon presenter is seen: the part that moves when somebody speaks."""

import torch
from torch import Tensor

from talkinghead_lab.models.judges.face_reader import head_pose

# In half frame sizes at scale 1, of the presenters' drawing: a head that is tilted about its neck and whose
# skin turns and nods as an ellipsoid.
HEAD_SIZE = 1.07
NECK = 0.45
DEPTH = 0.52
# The middle between the mouth, which a turn moves by the depth of the skin, and the jaw, which hardly moves.
DEPTH_ACROSS = 0.3
# The ellipse around mouth, chin and jaw, which a wide open mouth moves down.
MOUTH = 0.40
HALF_WIDTH, HALF_HEIGHT = 0.50, 0.37


def lower_faces(frames: Tensor) -> Tensor:
    """The ellipse around mouth and chin in each frame, [F, 5].

    Centre x and y, half width and half height, in half frame sizes from the frame's centre; tilt in radians.

    Args:
        frames: [F, 3, H, W] in [−1, 1], square, as for `head_pose`.
    """
    pose = head_pose(frames)
    turn, nod, tilt = (torch.deg2rad(angle) for angle in (pose.turn, pose.nod, pose.tilt))
    across = DEPTH_ACROSS * turn.sin()
    down = MOUTH * nod.cos() + DEPTH * nod.sin() - NECK
    size = HEAD_SIZE * pose.scale
    x = pose.shift_x + size * (tilt.cos() * across - tilt.sin() * down)
    y = pose.shift_y + size * (tilt.sin() * across + tilt.cos() * down + NECK)
    return torch.stack([x, y, size * HALF_WIDTH, size * HALF_HEIGHT, tilt], dim=1)
