"""Measures of pixels alone: jumps at seams, flicker, colour drift, motion and sharpness."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from talkinghead_lab.foundation.latent_grid import FRAMES_PER_SECOND
from talkinghead_lab.measures.measure import Measure
from talkinghead_lab.media.colors import lab_from_rgb
from talkinghead_lab.media.video import Frames

LAPLACIAN = ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0))
UNKNOWN_CHANGES = "it is measured before encoding, and an earlier version made some of the chunks"
LUMA = (0.2126, 0.7152, 0.0722)  # ITU-R BT.709


class LumaChanges:
    """Mean absolute differences of luma between consecutive frames, in 8-bit levels.

    Args:
        before: the frame before the first that is added, uint8 [H, W, 3]; None: there is none.
    """

    def __init__(self, before: Frames | None = None) -> None:
        self.values: list[float] = []
        self._previous = None if before is None else _luma(before)

    def add(self, pixels: Frames) -> None:
        """Add the next frame, uint8 [H, W, 3]."""
        luma = _luma(pixels)
        if self._previous is not None:
            self.values.append(float(np.abs(luma - self._previous).mean()))
        self._previous = luma


@dataclass
class FrameStatistics:
    """A few numbers per frame, collected in one pass, so that videos of any length fit into memory.

    `luma` is each frame's mean luma in 8-bit levels, `sharpness` the variance of the luma's Laplacian, `lab`
    the mean CIE Lab colour.
    """

    luma: list[float] = field(default_factory=list)
    sharpness: list[float] = field(default_factory=list)
    lab: list[NDArray[np.float64]] = field(default_factory=list)
    _changes: LumaChanges = field(default_factory=LumaChanges)

    def add(self, pixels: Frames) -> None:
        """Add the next frame, uint8 [H, W, 3]."""
        self._changes.add(pixels)
        luma = torch.from_numpy(_luma(pixels))
        edges = functional.conv2d(luma[None, None], luma.new_tensor(LAPLACIAN)[None, None])
        self.luma.append(luma.mean().item())
        self.sharpness.append(edges.var(correction=0).item())
        rgb = torch.from_numpy(pixels).permute(2, 0, 1).float()
        self.lab.append(lab_from_rgb(rgb / 255).mean((1, 2)).double().numpy())

    @property
    def change(self) -> list[float]:
        """Mean absolute difference of each frame's luma from the previous frame's, in 8-bit levels."""
        return self._changes.values


def frame_measures(frames: FrameStatistics, cuts: Sequence[int] = ()) -> list[Measure]:
    """Take every measure of the encoded video's pixels; `cuts` are the frames at which new shots begin."""
    return [flicker(frames, cuts), color_drift(frames, cuts), motion(frames, cuts), sharpness(frames)]


def seam_jump(changes: Sequence[float] | None, seams: Sequence[int], cuts: Sequence[int] = ()) -> Measure:
    """Mean change of luma at the seams over the median change elsewhere (unit 1, lower is better).

    1 is no jump. This package's own measure. It is taken before encoding, which changes key frames in a way
    of its own, and chunks start with key frames.

    Args:
        changes: of `LumaChanges`, from the first frame of the video to its last; None: unknown.
        seams: the numbers of the frames that start a new chunk.
        cuts: those that start a new shot, whose changes do not count.
    """
    if not seams:
        reason = "every shot is one chunk" if cuts else "the video is one chunk"
        return Measure.of("seam_jump", None, reason)
    if changes is None:
        return Measure.of("seam_jump", None, UNKNOWN_CHANGES)
    at = [changes[seam - 1] for seam in seams]
    others = np.delete(changes, [number - 1 for number in (*seams, *cuts)])
    usual = float(np.median(others)) if len(others) else 0.0
    if usual == 0.0:
        return Measure.of("seam_jump", None, "the picture does not change between the seams")
    return Measure.of("seam_jump", float(np.mean(at)) / usual)


def flicker(frames: FrameStatistics, cuts: Sequence[int] = ()) -> Measure:
    """Mean absolute second difference of the frames' mean luma (unit: 8-bit levels, lower is better).

    A steady fade gives 0. This package's own measure. Differences across a cut do not count.
    """
    shots = np.split(frames.luma, list(cuts))
    value = _mean(np.concatenate([np.abs(np.diff(luma, 2)) for luma in shots]))
    reason = None if value is not None else _needs_frames(frames, 3) or "no shot has 3 frames"
    return Measure.of("flicker", value, reason)


def color_drift(frames: FrameStatistics, cuts: Sequence[int] = ()) -> Measure:
    """ΔE between the mean colours of the first and the last second (CIE 1976 ΔE*ab, lower is better).

    Shorter videos are compared half against half. 2.3 is just noticeable (Mahy et al. 1994).
    """
    if len(cuts):
        return Measure.of("color_drift", None, "the video has several shots")
    span = min(FRAMES_PER_SECOND, len(frames.lab) // 2)
    if not span:
        return Measure.of("color_drift", None, _needs_frames(frames, 2))
    first, last = np.mean(frames.lab[:span], axis=0), np.mean(frames.lab[-span:], axis=0)
    return Measure.of("color_drift", float(np.linalg.norm(last - first)))


def motion(frames: FrameStatistics, cuts: Sequence[int] = ()) -> Measure:
    """Mean absolute difference of luma between consecutive frames (unit: 8-bit levels, neither is better).

    The frame difference of ITU-T P.910's temporal information, with the mean in place of the standard
    deviation. Differences across a cut do not count.
    """
    value = _mean(np.delete(frames.change, [cut - 1 for cut in cuts]))
    reason = None if value is not None else _needs_frames(frames, 2) or "every shot is one frame"
    return Measure.of("motion", value, reason)


def sharpness(frames: FrameStatistics) -> Measure:
    """Variance of the luma's Laplacian, mean over the frames (unit: 8-bit levels², higher is better).

    Measures fine detail, noise included (Pech-Pacheco et al. 2000).
    """
    return Measure.of("sharpness", _mean(frames.sharpness), _needs_frames(frames, 1))


def _luma(pixels: Frames) -> NDArray[np.float32]:
    """NumPy computes it in the calling thread alone, which may run beside the sampling."""
    red, green, blue = (np.float32(weight) * pixels[..., i] for i, weight in enumerate(LUMA))
    luma: NDArray[np.float32] = red + green + blue
    return luma


def _mean(values: Sequence[float] | NDArray[np.float64]) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _needs_frames(frames: FrameStatistics, count: int) -> str | None:
    return None if len(frames.luma) >= count else f"the video has fewer than {count} frames"
