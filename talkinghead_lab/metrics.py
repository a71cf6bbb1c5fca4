"""How good a video is, measured on its pixels and its sound.

`measure_video` takes every measure that a video allows; of the others it says why not. The readers see the
drawn presenter of the embedded checkpoint: a small network, trained on renderings whose truth is known, reads
the opening of the mouth and the pose of the head from single frames.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Literal

import numpy as np
import pyloudnorm
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from talkinghead_lab import audio, fingerprints, video
from talkinghead_lab.image import fit, lab_from_rgb
from talkinghead_lab.latent_grid import FRAMES_PER_SECOND
from talkinghead_lab.params import GenerationParams, local_file
from talkinghead_lab.source import open_source

READER_SIZE = 128
READINGS = ("opening", "turn", "nod", "tilt", "shift_x", "shift_y", "scale")
# What one unit of the network's output stands for, and what zero does: degrees, half-pictures, times.
READING_SCALES = (0.5, 10.0, 7.0, 4.0, 0.05, 0.04, 0.06)
READING_CENTRES = (0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 1.03)


LAPLACIAN = ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0))
LUMA = (0.2126, 0.7152, 0.0722)  # ITU-R BT.709
FRAMES_FOR_IDENTITY = 8
LONGEST_READ = 2000  # frames whose mouths are read; longer videos are read at their start

Features = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Measure:
    """One figure about a video, or why it could not be taken.

    Args:
        name: what is measured.
        value: in `unit`; None where it could not be taken.
        unit: `1` for plain ratios.
        better: which direction is better; `neither` where a video may be either.
        why_not: why there is no value.
    """

    name: str
    value: float | None
    unit: str
    better: Literal["higher", "lower", "neither"]
    why_not: str | None = None


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


def measure_video(
    path: str | Path, params: GenerationParams, seams: Sequence[int], features: Features | None = None
) -> list[Measure]:
    """Every measure of a finished video.

    Args:
        path: the video.
        params: the request that it was made from.
        seams: the numbers of the frames at which a new chunk takes over.
        features: an image encoder, [1, 3, H, W] in [−1, 1] → [1, tokens, channels], for `identity`.
    """
    frames = FrameStatistics.of_video(path)
    return [
        *lip_sync(path, params),
        identity(path, params, features),
        seam_jump(frames, seams),
        flicker(frames),
        color_drift(frames),
        Measure("motion", _mean(frames.change), "levels", "neither", _needs_frames(frames, 2)),
        Measure("sharpness", _mean(frames.sharpness), "levels²", "higher"),
        loudness(path),
    ]


def lip_sync(path: str | Path, params: GenerationParams) -> tuple[Measure, Measure]:
    """How the mouth follows the truth: Pearson's correlation of the openings (unit 1, higher is better), and
    their mean absolute difference (unit: opening, 0 shut … 1 wide; lower is better).

    The drawn presenter's mouth is read from the video; the truth is what the shipped recordings' synthesiser
    said. For other pictures and recordings there is neither a reader nor a truth.
    """
    why = _why_no_truth(params)
    correlation = error = None
    if why is None:
        truth = mouth_truth()[fingerprints.known_sha256(local_file(params.audio_path))]
        opening = _read_openings(path, min(len(truth), LONGEST_READ))
        wanted = np.asarray(truth[: len(opening)])
        error = float(np.abs(opening - wanted).mean())
        if min(opening.std(), wanted.std()) > 1e-6:
            correlation = float(np.corrcoef(opening, wanted)[0, 1])
    still = "the mouth does not move" if why is None and correlation is None else why
    return (
        Measure("lip_correlation", correlation, "1", "higher", still),
        Measure("lip_error", error, "opening", "lower", why),
    )


def mouth_truth() -> dict[str, list[float]]:
    """The mouth's opening in every video frame, for each shipped recording by its file's digest."""
    return json.loads((files("talkinghead_lab") / "embedded" / "mouth_truth.json").read_text("utf-8"))


def _why_no_truth(params: GenerationParams) -> str | None:
    if params.checkpoint != "embedded":
        return "the reader knows only the drawn presenter of the embedded checkpoint"
    if params.speakers > 1:
        return "the reader sees one face"
    if fingerprints.known_sha256(local_file(params.audio_path)) not in mouth_truth():
        return "how the mouth should move is known only for the recordings that ship with the package"
    return None


def _read_openings(path: str | Path, frames: int) -> NDArray[np.float64]:
    openings: list[Tensor] = []
    for pixels in video.read_frames(path):
        if len(openings) == frames:
            break
        openings.append(mouth_opening(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1))
    return torch.cat(openings).double().numpy()


def identity(path: str | Path, params: GenerationParams, features: Features | None) -> Measure:
    """How alike the person stays: mean cosine similarity between the image encoder's features of the portrait
    and of frames spread over the video (unit 1, higher is better).

    CLIP-I of DreamBooth (arXiv 2208.12242), with the mean over the encoder's tokens in place of its
    projection, which the released file has not.
    """
    if features is None:
        return Measure("identity", None, "1", "higher", "no image encoder was given")
    pictures = [picture for _, picture in video.evenly_spaced(path, FRAMES_FOR_IDENTITY)]
    portrait = open_source(local_file(params.image_path)).frame_at(0.0)
    with torch.inference_mode():
        seen = [_summary(features, fit(picture, *pictures[0].size)) for picture in (portrait, *pictures)]
        alike = functional.cosine_similarity(seen[0], torch.stack(seen[1:]), dim=-1)
    return Measure("identity", alike.mean().item(), "1", "higher")


def _summary(features: Features, pixels: Tensor) -> Tensor:
    return features(pixels[None].float() / 127.5 - 1)[0].float().mean(0).cpu()


def seam_jump(frames: FrameStatistics, seams: Sequence[int]) -> Measure:
    """How much more the picture changes where a chunk takes over: mean change of luma at the seams over the
    median change everywhere else (unit 1; 1 is no jump, lower is better). This package's own measure.
    """
    at = [frames.change[seam - 1] for seam in seams if 0 < seam <= len(frames.change)]
    others = np.delete(frames.change, [seam - 1 for seam in seams if 0 < seam <= len(frames.change)])
    if not at:
        return Measure("seam_jump", None, "1", "lower", "the video is one chunk")
    usual = float(np.median(others)) if len(others) else 0.0
    if usual == 0.0:
        return Measure("seam_jump", None, "1", "lower", "the picture does not change between the seams")
    return Measure("seam_jump", float(np.mean(at)) / usual, "1", "lower")


def flicker(frames: FrameStatistics) -> Measure:
    """How unsteady the brightness is: mean absolute second difference of the frames' mean luma (unit: 8-bit
    levels, lower is better). A steady fade counts nothing. This package's own measure.
    """
    value = float(np.abs(np.diff(frames.luma, 2)).mean()) if len(frames.luma) > 2 else None
    return Measure("flicker", value, "levels", "lower", _needs_frames(frames, 3))


def color_drift(frames: FrameStatistics) -> Measure:
    """How far the colours wander: ΔE between the mean colours of the first and of the last second, or of the
    two halves where the video is shorter (CIE 1976 ΔE*ab; lower is better; 2.3 is just noticeable, Mahy et
    al. 1994).
    """
    span = min(FRAMES_PER_SECOND, len(frames.lab) // 2)
    if not span:
        return Measure("color_drift", None, "ΔE", "lower", _needs_frames(frames, 2))
    first, last = np.mean(frames.lab[:span], axis=0), np.mean(frames.lab[-span:], axis=0)
    return Measure("color_drift", float(np.linalg.norm(last - first)), "ΔE", "lower")


def loudness(path: str | Path) -> Measure:
    """Integrated loudness of the sound track (ITU-R BS.1770-4; unit: LUFS, neither direction is better)."""
    wave = audio.read_soundtrack(path)
    if wave.shape[1] < 0.4 * audio.SOUNDTRACK_RATE:
        return Measure("loudness", None, "LUFS", "neither", "the sound is shorter than the meter's 0.4 s")
    value = pyloudnorm.Meter(audio.SOUNDTRACK_RATE).integrated_loudness(wave.T)
    if not math.isfinite(value):
        return Measure("loudness", None, "LUFS", "neither", "the sound is below the meter's gate of −70 LUFS")
    return Measure("loudness", float(value), "LUFS", "neither")


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _needs_frames(frames: FrameStatistics, count: int) -> str | None:
    return None if len(frames.luma) >= count else f"the video has fewer than {count} frames"


@dataclass(frozen=True)
class HeadPose:
    """The pose in each frame, [F] each: degrees (turn to the picture's right, nod down, tilt),
    half-pictures (shift right, down) and times (scale)."""

    turn: Tensor
    nod: Tensor
    tilt: Tensor
    shift_x: Tensor
    shift_y: Tensor
    scale: Tensor


class FaceReader(nn.Module):
    """A small convolutional network from a frame of READER_SIZE² pixels to READINGS."""

    def __init__(self, widths: tuple[int, ...] = (24, 40, 64, 80), hidden: int = 96):
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for index, width in enumerate(widths):
            size = 5 if index == 0 else 3
            layers += [
                nn.Conv2d(before, width, size, stride=2, padding=size // 2),
                nn.GroupNorm(4, width),
                nn.SiLU(),
            ]
            before = width
        grid = READER_SIZE >> len(widths)
        layers += [nn.Conv2d(before, before, 3, padding=1), nn.SiLU(), nn.Conv2d(before, 16, 1)]
        self.features = nn.Sequential(*layers)
        self.readout = nn.Sequential(
            nn.Flatten(), nn.Linear(16 * grid**2, hidden), nn.SiLU(), nn.Linear(hidden, len(READINGS))
        )

    def forward(self, frames: Tensor) -> Tensor:
        """[F, 3, 128, 128] in [−1, 1] → [F, 7] in the units of READINGS."""
        raw = self.readout(self.features(frames))
        return raw * raw.new_tensor(READING_SCALES) + raw.new_tensor(READING_CENTRES)


def mouth_opening(frames: Tensor) -> Tensor:
    """How far the drawn presenter's mouth is open in each frame: [F], 0 shut … 1 wide open.

    Args:
        frames: [F, 3, H, W] in [−1, 1], square, best of 128 pixels or more.
    """
    return read_faces(frames)[:, 0].clamp(0, 1)


def head_pose(frames: Tensor) -> HeadPose:
    """The drawn presenter's head pose in each frame; `frames` as for `mouth_opening`."""
    return HeadPose(*read_faces(frames)[:, 1:].unbind(1))


@torch.no_grad()
def read_faces(frames: Tensor, frames_at_once: int = 64) -> Tensor:
    """[F, 7]: READINGS of each frame, [F, 3, H, W] in [−1, 1], on the frames' device."""
    reader = _reader().to(frames.device)
    parts = frames.float().split(frames_at_once)
    return torch.cat([reader(reader_input(part)) for part in parts])


def reader_input(frames: Tensor) -> Tensor:
    """Frames at the size that the reader sees."""
    size = (READER_SIZE, READER_SIZE)
    return functional.interpolate(frames, size, mode="bilinear", antialias=True, align_corners=False)


@cache
def _reader() -> FaceReader:
    reader = FaceReader()
    with as_file(files("talkinghead_lab") / "embedded" / "face_reader.safetensors") as path:
        weights = load_file(path)
    reader.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    return reader.eval().requires_grad_(False)
