"""Features of frames for FID and KID, by the network whose weights the user supplies."""

import os
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from talkinghead_lab.errors import CheckpointError
from talkinghead_lab.foundation.digests import known_sha256
from talkinghead_lab.measures.photographed_faces import model_file
from talkinghead_lab.media.video import Frames
from talkinghead_lab.models.judges.inception import CHANNELS, Inception
from talkinghead_lab.weights.formats.containers import read_tensors
from talkinghead_lab.weights.reading import load_strict

VARIABLE = "INCEPTION_MODEL"
FILE = "torch-fidelity's weights-inception-2015-12-05-6726825d.pth"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"


def inception_digest() -> str | None:
    """Digest of the weights that INCEPTION_MODEL names; None: the variable is not set.

    Raises:
        CheckpointError: it names no file, or other weights, whose distances would not be FID and KID.
    """
    if not os.environ.get(VARIABLE):
        return None
    path = model_file(VARIABLE, FILE)
    digest = known_sha256(path)
    if digest != SHA256:
        raise CheckpointError(
            "not the weights that define FID",
            received=f"{path} with the digest {digest[:12]}…",
            allowed=f"{FILE}, {SHA256[:12]}…",
            remedy=f"Set {VARIABLE} to that file, or unset it.",
        )
    return digest


def inception_features(frames: list[Frames]) -> NDArray[np.float32]:
    """Features [F, 2048] of frames, uint8 [H, W, 3] each; no rows without frames or without weights."""
    if not frames or inception_digest() is None:
        return np.zeros((0, CHANNELS), np.float32)
    network = _network(model_file(VARIABLE, FILE))
    with torch.inference_mode():  # one by one, so that the features do not depend on the batch
        pixels = [torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)[None] for frame in frames]
        return torch.cat([network(each) for each in pixels]).numpy()


@cache
def _network(path: Path) -> Inception:
    network = Inception()
    counters = {name: value for name, value in network.state_dict().items() if name.endswith("_tracked")}
    load_strict(network, counters | read_tensors(path), path.name, torch.float32, "cpu")
    return network.eval()
