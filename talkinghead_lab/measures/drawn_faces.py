"""Mouths of cartoon presenters, read from videos."""

import itertools
import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from talkinghead_lab.foundation.paths import EMBEDDED_FOLDER
from talkinghead_lab.media import video
from talkinghead_lab.models.judges.face_reader import mouth_opening

READ_AT_ONCE = 16  # frames; one by one the small network takes half as long again


def mouth_truth() -> dict[str, list[float]]:
    """The mouth's opening in every video frame, for each shipped recording by its file's digest."""
    return json.loads((EMBEDDED_FOLDER / "mouth_truth.json").read_text("utf-8"))


def read_openings(path: str | Path, frames: int) -> NDArray[np.float64]:
    """How far the drawn presenter's mouth is open in each of a video's first frames, 0 shut … 1 wide."""
    shown = itertools.islice(video.read_frames(path), frames)
    openings: list[Tensor] = []
    while some := list(itertools.islice(shown, READ_AT_ONCE)):
        openings.append(mouth_opening(torch.from_numpy(np.stack(some)).permute(0, 3, 1, 2) / 127.5 - 1))
    return torch.cat(openings).double().numpy()
