"""How much the person in the video still looks like the portrait."""

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from talkinghead_lab.measures.measure import Measure
from talkinghead_lab.media.frame_size import fit
from talkinghead_lab.media.pixels import to_unit_range

Features = Callable[[Tensor], Tensor]


def identity(portrait: Image.Image, frames: Sequence[Image.Image], features: Features | None) -> Measure:
    """Mean cosine similarity of image features of the portrait and of frames (unit 1, higher is better).

    CLIP-I of DreamBooth (arXiv 2208.12242), with the mean over the encoder's tokens in place of its
    projection, which the released file lacks.

    Args:
        portrait: the reference image.
        frames: spread over the video.
        features: an image encoder, [1, 3, H, W] in [−1, 1] → [1, tokens, channels].
    """
    if features is None:
        return Measure.of("identity", None, "no image encoder was given")
    with torch.inference_mode():
        means = [_mean_token(features, fit(picture, *frames[0].size)) for picture in (portrait, *frames)]
        similarity = functional.cosine_similarity(means[0], torch.stack(means[1:]), dim=-1)
    return Measure.of("identity", similarity.mean().item())


def _mean_token(features: Features, pixels: Tensor) -> Tensor:
    return features(to_unit_range(pixels[None]))[0].float().mean(0).cpu()
