"""Identity similarity is 1 for the portrait itself."""

import pytest
import torch
from PIL import Image, ImageOps
from torch.nn import functional

from talkinghead_lab.foundation.paths import local_file
from talkinghead_lab.measures.identity import identity_measures
from talkinghead_lab.media.reference import open_reference


def features(picture: torch.Tensor) -> torch.Tensor:
    return functional.adaptive_avg_pool2d(picture, 8).flatten(1)[:, None]


def test_identity_is_one_for_the_portrait_itself():
    portrait = open_reference(local_file("sample:portrait")).frame_at(0.0)
    same, _ = identity_measures([portrait] * 3, [portrait] * 3, features)
    other, _ = identity_measures([portrait] * 3, [ImageOps.invert(portrait)] * 3, features)
    assert same.value > 0.99 > other.value


def test_drift_is_the_similarity_that_the_end_lacks():
    portrait = open_reference(local_file("sample:portrait")).frame_at(0.0)
    frames = [portrait] * 6 + [ImageOps.invert(portrait)] * 2
    other, _ = identity_measures([portrait], frames[-1:], features)
    _, away = identity_measures([portrait] * len(frames), frames, features)
    _, back = identity_measures([portrait] * len(frames), frames[::-1], features)
    _, steady = identity_measures([portrait] * 4, frames[:4], features)
    _, short = identity_measures([portrait] * 3, frames[:3], features)
    assert away.value == pytest.approx(1 - other.value, abs=1e-4)
    assert back.value == pytest.approx(-away.value, abs=1e-6)
    assert steady.value == 0
    assert short.why_not == "the video has fewer than 4 frames"


def test_without_an_encoder_there_is_a_reason():
    for measure in identity_measures([], [], None):
        assert measure.value is None
        assert measure.why_not == "no image encoder was given"


def test_each_portrait_is_encoded_once():
    seen = []

    def encode(pixels):
        seen.append(pixels)
        return features(pixels)

    portrait, other = (Image.new("RGB", (32, 32), color) for color in ("red", "blue"))
    identity_measures([portrait, portrait, other, other], [other] * 4, encode)
    assert len(seen) == 2 + 4
