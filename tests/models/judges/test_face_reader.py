"""The face reader agrees with the renderer on presenters that it was not trained on."""

import pytest
import torch
from torch import Generator
from torch.nn import functional

from talkinghead_lab.models.judges import face_reader
from talkinghead_lab.training.avatar import render, sample_identity
from talkinghead_lab.training.identity import FIRST_TEST_IDENTITY
from talkinghead_lab.training.readers import random_motion, truth


@pytest.fixture(scope="module")
def drawn() -> tuple[torch.Tensor, torch.Tensor]:
    """160 frames of 40 unseen presenters in any pose, and their truth."""
    motion = random_motion(40, 4, Generator().manual_seed(11))
    people = [sample_identity(Generator().manual_seed(FIRST_TEST_IDENTITY + seed)) for seed in range(40)]
    return render(people, motion).flatten(0, 1), truth(motion).flatten(0, 1)


def blurred(frames: torch.Tensor) -> torch.Tensor:
    """Frames as a weak decoder gives them: half their detail gone, a little noise."""
    coarse = functional.interpolate(functional.avg_pool2d(frames, 2), scale_factor=2, mode="bilinear")
    return coarse + 0.02 * torch.randn(frames.shape, generator=Generator().manual_seed(0))


@pytest.mark.parametrize("change", [lambda frames: frames, blurred], ids=["clean", "blurred"])
def test_readings_agree_with_the_truth(drawn, change):
    frames, wanted = drawn
    frames = change(frames)
    assert (face_reader.mouth_opening(frames) - wanted[:, 0]).abs().mean() < 0.05
    pose = face_reader.head_pose(frames)
    for index, name in enumerate(("turn", "nod", "tilt"), 1):
        assert (getattr(pose, name) - wanted[:, index]).abs().mean() < 1.0, name
    assert (pose.shift_x - wanted[:, 4]).abs().mean() < 0.01
    assert (pose.shift_y - wanted[:, 5]).abs().mean() < 0.01
    assert (pose.scale - wanted[:, 6]).abs().mean() < 0.02


def test_a_shut_mouth_reads_as_shut(drawn):
    frames, wanted = drawn
    shut = wanted[:, 0] == 0
    assert shut.sum() >= 8
    assert face_reader.mouth_opening(frames[shut]).mean() < 0.03


def test_the_size_of_the_frames_does_not_matter(drawn):
    frames, wanted = drawn
    larger = functional.interpolate(frames[:16], scale_factor=2, mode="bilinear")
    assert (face_reader.mouth_opening(larger) - wanted[:16, 0]).abs().mean() < 0.06
