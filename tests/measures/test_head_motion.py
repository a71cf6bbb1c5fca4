"""The head's motion is read from drawn presenters to within a degree."""

import numpy as np
import pytest
import torch

from talkinghead_lab.measures.cartoon_faces import MouthReader
from talkinghead_lab.measures.head_motion import head_motion
from talkinghead_lab.training.avatar import Motion, render
from talkinghead_lab.training.samples import presenter
from talkinghead_lab.training.train_vae import to_bytes


def test_the_spread_of_poses_is_measured():
    pose = np.array([[0.0, 0, 0], [6, 0, 8]])
    assert head_motion(pose).value == pytest.approx(5)
    assert head_motion(pose + 20).value == pytest.approx(5)
    assert head_motion(pose[:1]).why_not == "the video has fewer than 2 frames"


@pytest.mark.parametrize("degrees", [0.0, 4.0, 8.0])
def test_a_head_that_sways_is_told_from_one_that_rests(degrees):
    motion = Motion.still(25)
    motion.pose[:, 0] = degrees * torch.sin(torch.arange(25) / 25 * 2 * torch.pi)
    motion.mouth[:, 0] = torch.rand(25, generator=torch.Generator().manual_seed(0))
    reader = MouthReader()
    for frame in to_bytes(render(presenter(0), motion, 160)).permute(0, 2, 3, 1).contiguous().numpy():
        reader.add(frame)
    assert reader.pose().shape == (25, 3)
    wanted = degrees / np.sqrt(2)
    assert head_motion(reader.pose()).value == pytest.approx(wanted, abs=1.0)
