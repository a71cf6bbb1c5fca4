"""Every measure of a finished video."""

from collections.abc import Sequence
from pathlib import Path

from talkinghead_lab.measures.frames import frame_measures
from talkinghead_lab.measures.identity import Features, identity
from talkinghead_lab.measures.lips import lip_measures
from talkinghead_lab.measures.loudness import loudness
from talkinghead_lab.measures.measure import Measure
from talkinghead_lab.params import GenerationParams


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
    return [
        *lip_measures(path, params),
        identity(path, params, features),
        *frame_measures(path, seams),
        loudness(path),
    ]
