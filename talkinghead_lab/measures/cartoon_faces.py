"""Mouths of cartoon presenters, read from videos."""

import json

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from talkinghead_lab.foundation.paths import EMBEDDED_FOLDER
from talkinghead_lab.media.pixels import to_unit_range
from talkinghead_lab.media.video import Frames
from talkinghead_lab.models.judges.face_reader import READINGS, face_features, readings_of
from talkinghead_lab.models.judges.presenters import COMPONENTS, presenter_components

FRAMES_AT_ONCE = 16  # one by one, the small network takes half as long again


def mouth_truth(recording_sha256: str) -> NDArray[np.float64] | None:
    """The true opening of the mouth in every video frame, 0 shut … 1 wide.

    Known for the recordings that ship with the package; None for others.
    """
    known = json.loads((EMBEDDED_FOLDER / "mouth_truth.json").read_text("utf-8"))
    return np.asarray(known[recording_sha256]) if recording_sha256 in known else None


class MouthReader:
    """Reads the cartoon presenter's mouth, head and looks from one forward pass for each frame of a video."""

    def __init__(self) -> None:
        self._read: list[Tensor] = []
        self._components: list[Tensor] = []
        self._waiting: list[Frames] = []

    def add(self, pixels: Frames) -> None:
        """Add the next frame, uint8 [H, W, 3]."""
        self._waiting.append(pixels)
        if len(self._waiting) == FRAMES_AT_ONCE:
            self._read_waiting()

    def openings(self) -> NDArray[np.float64]:
        """How far the mouth is open in all frames, [F], 0 shut … 1 wide."""
        return self._readings()[:, 0].clip(0, 1)

    def pose(self) -> NDArray[np.float64]:
        """Turn, nod and tilt of the head in all frames, [F, 3], in degrees."""
        return self._readings()[:, 1:4]

    def components(self) -> NDArray[np.float32]:
        """Where all frames lie along the presenters' principal components, [F, 32]."""
        self._read_waiting()
        found: NDArray[np.float32] = torch.cat([torch.zeros(0, COMPONENTS), *self._components]).numpy()
        return found

    def _readings(self) -> NDArray[np.float64]:
        self._read_waiting()
        return torch.cat([torch.zeros(0, len(READINGS)), *self._read]).double().numpy()

    def _read_waiting(self) -> None:
        if self._waiting:
            frames = torch.from_numpy(np.stack(self._waiting)).permute(0, 3, 1, 2)
            features = face_features(to_unit_range(frames))
            self._read.append(readings_of(features))
            self._components.append(presenter_components(features))
            self._waiting.clear()
