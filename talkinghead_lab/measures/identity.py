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


def identity_measures(
    portraits: Sequence[Image.Image], frames: Sequence[Image.Image], features: Features | None
) -> list[Measure]:
    """`identity` and `identity_drift` from cosine similarities of image features (unit 1).

    `identity` is the mean similarity of the portrait and the frames, higher is better: CLIP-I of DreamBooth
    (arXiv 2208.12242), with the mean over the encoder's tokens in place of its projection, which the released
    file lacks. `identity_drift` is how much less the last quarter of the frames resembles the portrait than
    the first quarter does, lower is better. This package's own measure.

    Args:
        portraits: the reference image of each frame.
        frames: spread over the video, in order.
        features: an image encoder, [1, 3, H, W] in [−1, 1] → [1, tokens, channels].
    """
    if features is None:
        reason = "no image encoder was given"
        return [Measure.of(name, None, reason) for name in ("identity", "identity_drift")]
    with torch.inference_mode():
        different = {id(portrait): portrait for portrait in portraits}  # mostly a single one
        of_portraits = {
            key: _mean_token(features, fit(portrait, *frames[0].size)) for key, portrait in different.items()
        }
        wanted = torch.stack([of_portraits[id(portrait)] for portrait in portraits])
        found = torch.stack([_mean_token(features, fit(frame, *frames[0].size)) for frame in frames])
        similarity = functional.cosine_similarity(wanted, found, dim=-1)
    quarter = len(frames) // 4
    drift = (
        Measure.of("identity_drift", (similarity[:quarter].mean() - similarity[-quarter:].mean()).item())
        if quarter
        else Measure.of("identity_drift", None, "the video has fewer than 4 frames")
    )
    return [Measure.of("identity", similarity.mean().item()), drift]


def _mean_token(features: Features, pixels: Tensor) -> Tensor:
    return features(to_unit_range(pixels[None]))[0].float().mean(0).cpu()
