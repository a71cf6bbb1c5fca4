"""Measures of a video's pixels alone: its seams, its steadiness, its colours, motion and sharpness."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from talkinghead_lab.foundation.latent_grid import FRAMES_PER_SECOND
from talkinghead_lab.measures.measure import Measure
from talkinghead_lab.media import video
from talkinghead_lab.media.colors import lab_from_rgb

LAPLACIAN = ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0))
LUMA = (0.2126, 0.7152, 0.0722)  # ITU-R BT.709


@dataclass
class FrameStatistics:
    """What is kept of every frame while a video is read once: single numbers, so that any length fits.

    `luma` is the mean luma of each frame and `change` the mean absolute difference of each frame's luma from
    that of the one before, both in 8-bit levels; `sharpness` is the variance of the luma's Laplacian; `lab`
    the mean CIE Lab colour.
    """

    luma: list[float] = field(default_factory=list)
    change: list[float] = field(default_factory=list)
    sharpness: list[float] = field(default_factory=list)
    lab: list[NDArray[np.float64]] = field(default_factory=list)

    @classmethod
    def of_video(cls, path: str | Path) -> "FrameStatistics":
        """Read a video."""
        statistics, before = cls(), None
        for pixels in video.read_frames(path):
            rgb = torch.from_numpy(pixels).permute(2, 0, 1).float()
            luma = torch.einsum("c,chw->hw", rgb.new_tensor(LUMA), rgb)
            if before is not None:
                statistics.change.append((luma - before).abs().mean().item())
            edges = functional.conv2d(luma[None, None], luma.new_tensor(LAPLACIAN)[None, None])
            statistics.luma.append(luma.mean().item())
            statistics.sharpness.append(edges.var(correction=0).item())
            statistics.lab.append(lab_from_rgb(rgb / 255).mean((1, 2)).double().numpy())
            before = luma
        return statistics


def frame_measures(path: str | Path, seams: Sequence[int]) -> list[Measure]:
    """All of them, from one reading of a video; `seams`: the frames at which a new chunk takes over."""
    frames = FrameStatistics.of_video(path)
    of_all = [measure(frames) for measure in (flicker, color_drift, motion, sharpness)]
    return [seam_jump(frames, seams), *of_all]


def seam_jump(frames: FrameStatistics, seams: Sequence[int]) -> Measure:
    """How much more the picture changes where a chunk takes over: mean change of luma at the seams over the
    median change everywhere else (unit 1; 1 is no jump, lower is better). This package's own measure.
    """
    at = [frames.change[seam - 1] for seam in seams if 0 < seam <= len(frames.change)]
    others = np.delete(frames.change, [seam - 1 for seam in seams if 0 < seam <= len(frames.change)])
    if not at:
        return Measure.of("seam_jump", None, "the video is one chunk")
    usual = float(np.median(others)) if len(others) else 0.0
    if usual == 0.0:
        return Measure.of("seam_jump", None, "the picture does not change between the seams")
    return Measure.of("seam_jump", float(np.mean(at)) / usual)


def flicker(frames: FrameStatistics) -> Measure:
    """How unsteady the brightness is: mean absolute second difference of the frames' mean luma (unit: 8-bit
    levels, lower is better). A steady fade counts nothing. This package's own measure.
    """
    value = float(np.abs(np.diff(frames.luma, 2)).mean()) if len(frames.luma) > 2 else None
    return Measure.of("flicker", value, _needs_frames(frames, 3))


def color_drift(frames: FrameStatistics) -> Measure:
    """How far the colours wander: ΔE between the mean colours of the first and of the last second, or of the
    two halves where the video is shorter (CIE 1976 ΔE*ab; lower is better; 2.3 is just noticeable, Mahy et
    al. 1994).
    """
    span = min(FRAMES_PER_SECOND, len(frames.lab) // 2)
    if not span:
        return Measure.of("color_drift", None, _needs_frames(frames, 2))
    first, last = np.mean(frames.lab[:span], axis=0), np.mean(frames.lab[-span:], axis=0)
    return Measure.of("color_drift", float(np.linalg.norm(last - first)))


def motion(frames: FrameStatistics) -> Measure:
    """How much the picture moves: mean absolute difference of luma between frames that follow each other
    (unit: 8-bit levels; neither direction is better). The frame difference of ITU-T P.910's temporal
    information, with the mean in place of its standard deviation.
    """
    return Measure.of("motion", _mean(frames.change), _needs_frames(frames, 2))


def sharpness(frames: FrameStatistics) -> Measure:
    """How much fine detail there is: variance of the luma's Laplacian, mean over the frames (unit: 8-bit
    levels², higher is better; noise counts too). Pech-Pacheco et al. 2000.
    """
    return Measure.of("sharpness", _mean(frames.sharpness), _needs_frames(frames, 1))


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _needs_frames(frames: FrameStatistics, count: int) -> str | None:
    return None if len(frames.luma) >= count else f"the video has fewer than {count} frames"
