"""Cartoon presenters are told from other pictures, within the error rates of the model card."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Generator

from talkinghead_lab.foundation.paths import local_file
from talkinghead_lab.media.frame_size import fit
from talkinghead_lab.media.pixels import to_unit_range
from talkinghead_lab.media.reference import open_reference
from talkinghead_lab.models.judges.face_reader import face_features
from talkinghead_lab.models.judges.presenters import LARGEST_DIFFERENCE, presenter_difference, unexplained
from talkinghead_lab.training.avatar import render, sample_identity
from talkinghead_lab.training.identity import FIRST_TEST_IDENTITY
from talkinghead_lab.training.presenters import presenter_features, principal_components
from talkinghead_lab.training.readers import random_motion


def difference(picture: Image.Image) -> float:
    return presenter_difference(to_unit_range(fit(picture.convert("RGB"), 160, 160))[None]).item()


def text() -> Image.Image:
    page = Image.new("RGB", (320, 320), "white")
    for row in range(0, 320, 14):
        ImageDraw.Draw(page).text(
            (4, row), "The quick brown fox jumps over the lazy dog again.", fill="black"
        )
    return page


def landscape() -> Image.Image:
    sky = np.linspace([90, 150, 230], [220, 230, 240], 320)[:, None].repeat(320, axis=1)
    picture = Image.fromarray(sky.astype(np.uint8))
    ImageDraw.Draw(picture).polygon(
        [(0, 320), (0, 220), (120, 150), (320, 240), (320, 320)], fill=(60, 110, 50)
    )
    return picture


def gradient() -> Image.Image:
    return Image.fromarray(np.linspace(0, 255, 160 * 160 * 3).reshape(160, 160, 3).astype(np.uint8))


OTHERS = {
    "plain": lambda: Image.new("RGB", (160, 160), "#7fa8b8"),
    "black": lambda: Image.new("RGB", (160, 160)),
    "noise": lambda: Image.fromarray(np.random.default_rng(0).integers(0, 256, (160, 160, 3), np.uint8)),
    "text": text,
    "landscape": landscape,
    "gradient": gradient,
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_pictures_differ(name):
    assert difference(OTHERS[name]()) > LARGEST_DIFFERENCE


@pytest.mark.parametrize("sample", ["sample:portrait", "sample:portrait-2", "sample:driving"])
def test_the_samples_are_presenters(sample):
    assert difference(open_reference(local_file(sample)).frame_at(0.0)) < LARGEST_DIFFERENCE


@pytest.fixture(scope="module")
def presenters() -> torch.Tensor:
    """Frames of 60 unseen presenters in any pose."""
    people = [sample_identity(Generator().manual_seed(FIRST_TEST_IDENTITY + seed)) for seed in range(60)]
    return render(people, random_motion(60, 1, Generator().manual_seed(2)))[:, 0]


def test_unseen_presenters_are_known_and_upside_down_they_are_not(presenters):
    assert (presenter_difference(presenters) > LARGEST_DIFFERENCE).sum() <= 1
    assert (presenter_difference(presenters.flip(-2)) > LARGEST_DIFFERENCE).float().mean() > 0.9


def test_components_that_are_computed_again_tell_presenters_from_noise(presenters):
    mean, components = principal_components(presenter_features(60, 0))
    torch.testing.assert_close(components @ components.T, torch.eye(len(components)), atol=1e-4, rtol=0)
    known, noise = (
        unexplained(face_features(frames), mean, components)
        for frames in (presenters, torch.rand(8, 3, 160, 160, generator=Generator().manual_seed(0)) * 2 - 1)
    )
    assert known.quantile(0.9) < noise.min()
