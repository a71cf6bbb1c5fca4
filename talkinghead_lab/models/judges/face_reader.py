"""Estimates mouth opening and head pose of cartoon presenters like those the bundled model was trained on."""

from dataclasses import dataclass
from functools import cache

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from talkinghead_lab.foundation.paths import EMBEDDED_FOLDER

READER_SIZE = 128
READINGS = ("opening", "turn", "nod", "tilt", "shift_x", "shift_y", "scale")
# Scale and offset of the network's outputs. Angles are in degrees, shifts in half frame sizes.
READING_SCALES = (0.5, 10.0, 7.0, 4.0, 0.05, 0.04, 0.06)
READING_CENTRES = (0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 1.03)


@dataclass(frozen=True)
class HeadPose:
    """Head pose per frame, [F] each.

    Args:
        turn: degrees towards the right of the frame.
        nod: degrees downwards.
        tilt: degrees.
        shift_x: to the right, in half frame widths.
        shift_y: downwards, in half frame heights.
        scale: size factor.
    """

    turn: Tensor
    nod: Tensor
    tilt: Tensor
    shift_x: Tensor
    shift_y: Tensor
    scale: Tensor


class FaceReader(nn.Module):
    """A small convolutional network that maps a frame of READER_SIZE² pixels to READINGS."""

    def __init__(self, widths: tuple[int, ...] = (24, 40, 64, 80), hidden: int = 96) -> None:
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
        return self.readings(self.features(frames))

    def readings(self, features: Tensor) -> Tensor:
        """Outputs of `features`, [F, 16, 8, 8] or flat → [F, 7] in the units of READINGS."""
        raw = self.readout(features)
        return raw * raw.new_tensor(READING_SCALES) + raw.new_tensor(READING_CENTRES)


def mouth_opening(frames: Tensor) -> Tensor:
    """Mouth opening of a cartoon presenter in each frame, [F], from 0 (closed) to 1 (wide open).

    Args:
        frames: [F, 3, H, W] in [−1, 1], square, preferably of 128 pixels or more.
    """
    return read_faces(frames)[:, 0].clamp(0, 1)


def head_pose(frames: Tensor) -> HeadPose:
    """Head pose of a cartoon presenter in each frame; `frames` as for `mouth_opening`."""
    return HeadPose(*read_faces(frames)[:, 1:].unbind(1))


@torch.no_grad()
def read_faces(frames: Tensor, frames_at_once: int = 64) -> Tensor:
    """READINGS of each frame, [F, 3, H, W] in [−1, 1] → [F, 7], computed on the frames' device."""
    reader = _reader().to(frames.device)
    parts = frames.float().split(frames_at_once)
    return torch.cat([reader(reader_input(part)) for part in parts])


@torch.no_grad()
def face_features(frames: Tensor, frames_at_once: int = 64) -> Tensor:
    """What the reader makes its readings from, [F, 3, H, W] in [−1, 1] → [F, 1024], on the frames' device."""
    features = _reader().to(frames.device).features
    parts = frames.float().split(frames_at_once)
    return torch.cat([features(reader_input(part)).flatten(1) for part in parts])


@torch.no_grad()
def readings_of(features: Tensor) -> Tensor:
    """READINGS of each frame from its `face_features`, [F, 1024] → [F, 7], on their device."""
    return _reader().to(features.device).readings(features)


def reader_input(frames: Tensor) -> Tensor:
    """Resize frames to the input size of the reader."""
    size = (READER_SIZE, READER_SIZE)
    return functional.interpolate(frames, size, mode="bilinear", antialias=True, align_corners=False)


@cache
def _reader() -> FaceReader:
    reader = FaceReader()
    weights = load_file(EMBEDDED_FOLDER / "face_reader.safetensors")
    reader.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    return reader.eval().requires_grad_(False)
