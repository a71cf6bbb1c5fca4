"""How much the person in the video still looks like the portrait."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from talkinghead_lab.foundation.paths import local_file
from talkinghead_lab.measures.measure import Measure
from talkinghead_lab.media import video
from talkinghead_lab.media.frame_size import fit
from talkinghead_lab.media.reference import open_reference
from talkinghead_lab.params import GenerationParams

FRAMES_FOR_IDENTITY = 8

Features = Callable[[Tensor], Tensor]


def identity(path: str | Path, params: GenerationParams, features: Features | None) -> Measure:
    """How alike the person stays: mean cosine similarity between the image encoder's features of the portrait
    and of frames spread over the video (unit 1, higher is better).

    CLIP-I of DreamBooth (arXiv 2208.12242), with the mean over the encoder's tokens in place of its
    projection, which the released file has not.
    """
    if features is None:
        return Measure.of("identity", None, "no image encoder was given")
    pictures = [picture for _, picture in video.evenly_spaced(path, FRAMES_FOR_IDENTITY)]
    portrait = open_reference(local_file(params.image_path)).frame_at(0.0)
    with torch.inference_mode():
        seen = [_summary(features, fit(picture, *pictures[0].size)) for picture in (portrait, *pictures)]
        alike = functional.cosine_similarity(seen[0], torch.stack(seen[1:]), dim=-1)
    return Measure.of("identity", alike.mean().item())


def _summary(features: Features, pixels: Tensor) -> Tensor:
    return features(pixels[None].float() / 127.5 - 1)[0].float().mean(0).cpu()
