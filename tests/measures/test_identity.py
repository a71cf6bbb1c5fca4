"""Identity similarity is 1 for the portrait itself."""

import torch
from PIL import Image, ImageOps
from torch.nn import functional

from talkinghead_lab.foundation.paths import local_file
from talkinghead_lab.measures.identity import identity
from talkinghead_lab.media.reference import open_reference


def features(picture: torch.Tensor) -> torch.Tensor:
    return functional.adaptive_avg_pool2d(picture, 8).flatten(1)[:, None]


def test_identity_is_one_for_the_portrait_itself():
    portrait = open_reference(local_file("sample:portrait")).frame_at(0.0)
    same = identity(portrait, [portrait] * 3, features)
    other = identity(portrait, [ImageOps.invert(portrait)] * 3, features)
    assert same.value > 0.99 > other.value


def test_without_an_encoder_there_is_a_reason():
    measure = identity(Image.new("RGB", (32, 32)), [], None)
    assert measure.value is None
    assert measure.why_not == "no image encoder was given"
