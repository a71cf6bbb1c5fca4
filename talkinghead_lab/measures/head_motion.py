"""How much the head moves."""

import numpy as np
from numpy.typing import NDArray

from talkinghead_lab.measures.measure import Measure


def head_motion(pose: NDArray[np.float64]) -> Measure:
    """Standard deviation of the head's direction over the video (unit: degrees, neither is better).

    Root of the summed variances of turn, nod and tilt. It is the spread of poses, not the speed, which the
    readers' noise from frame to frame would dominate. This package's own measure: a head that stands still is
    as wrong as one that shakes, so compare it with that of the real videos.

    Args:
        pose: turn, nod and tilt in every frame, [F, 3], in degrees.
    """
    if len(pose) < 2:
        return Measure.of("head_motion", None, "the video has fewer than 2 frames")
    return Measure.of("head_motion", float(np.sqrt(pose.var(axis=0).sum())))
