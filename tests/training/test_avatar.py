"""Rendered presenters: parts move as their tracks say, independently of how frames are batched."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Generator

from talkinghead_lab.training import avatar
from talkinghead_lab.training.avatar import POSE_CHANNELS, POSE_LIMITS, Motion, render, sample_identity
from talkinghead_lab.training.identity import FIRST_TEST_IDENTITY, GLASSES, HAIR_STYLES, rgb
from talkinghead_lab.training.motion import ACTIONS, Performance, perform, sample_performance
from talkinghead_lab.training.readers import random_motion


def someone(seed: int = 36) -> avatar.Identity:
    return sample_identity(Generator().manual_seed(seed))


def test_a_seed_determines_the_presenter():
    assert someone(7) == someone(7)
    people = [someone(seed) for seed in range(60)]
    assert len(set(people)) == 60
    assert {person.hair_style for person in people} == set(HAIR_STYLES)
    assert {person.glasses for person in people} == set(GLASSES)
    assert someone(FIRST_TEST_IDENTITY) not in people


def test_frames_have_the_requested_size():
    frames = render(someone(), Motion.still(2), size=64)
    assert frames.shape == (2, 3, 64, 64)
    assert frames.dtype == torch.float32
    assert -1 <= frames.min() < -0.5 < 0.5 < frames.max() <= 1
    assert torch.equal(frames[0], frames[1])


def test_a_batch_equals_single_calls():
    people = [someone(seed) for seed in (1, 20, 36)]
    motion = random_motion(3, 2, Generator().manual_seed(0))
    together = render(people, motion, size=64, frames_at_once=5)
    for index, person in enumerate(people):
        tracks = Motion(motion.mouth[index], motion.pose[index], motion.face[index])
        torch.testing.assert_close(render(person, tracks, size=64), together[index], atol=1e-5, rtol=0)


def test_windows_clip_nothing_in_any_pose(monkeypatch):
    people = [someone(seed) for seed in range(12)]
    motion = random_motion(12, 4, Generator().manual_seed(1))
    limits = torch.tensor(list(POSE_LIMITS.values()))
    ends = torch.cartesian_prod(*[torch.arange(2)] * 6)
    corners = ends[torch.randperm(64, generator=Generator().manual_seed(2))[:48]]
    motion.pose[:] = torch.gather(limits.expand(48, 6, 2), 2, corners[..., None])[..., 0].view(12, 4, 6)
    windowed = render(people, motion, size=64)
    monkeypatch.setattr(avatar, "EYES_WINDOW", (-1, -1, 1, 1))
    monkeypatch.setattr(avatar, "MOUTH_WINDOW", (-1, -1, 1, 1))
    # Not bitwise: vectorised code rounds differently by memory alignment and by the split into threads.
    torch.testing.assert_close(render(people, motion, size=64), windowed, atol=1e-5, rtol=0)


def test_the_backdrop_stays_still():
    motion = random_motion(1, 8, Generator().manual_seed(3))
    frames = render([someone()], motion)[0]
    corners = torch.cat([frames[..., :12, :20], frames[..., :12, -20:]], -1)
    assert (corners - corners[:1]).abs().max() == 0
    assert (frames - frames[:1]).abs().max() > 0.5


def test_the_dark_area_of_the_mouth_grows_with_its_opening():
    motion = Motion.still(6)
    motion.mouth[:, 0] = torch.linspace(0, 1, 6)
    frames = render(replace(someone(37), beard="none", skin=rgb("f1c9ae"), lip_colour=rgb("c4605c")), motion)
    dark = ((frames[:, 0] < -0.2) & (frames[:, 1] < -0.7) & (frames[:, 2] < -0.6))[:, 90:130, 60:100]
    area = dark.float().sum((1, 2))
    assert area[0] < 20
    assert (area.diff() > 0).all()


@pytest.mark.parametrize("action", ACTIONS)
def test_performances_follow_their_action(action):
    rng = np.random.default_rng(5)
    pose, face = perform(Performance(action, "smiling", ""), 250, rng)
    tracks = dict(zip(POSE_CHANNELS, pose.T, strict=True))
    assert pose.shape == (250, 6)
    assert face.shape == (250, 5)
    assert (pose.diff(dim=0).abs().max(0).values < torch.tensor([4.0, 3, 1.5, 0.02, 0.02, 0.02])).all()
    assert face[:, 4].mean() > 0.5
    means = {"left": ("turn", -1), "right": ("turn", 1), "up": ("nod", -1), "leaning": ("scale", 1)}
    if action in means:
        name, sign = means[action]
        assert sign * (tracks[name][50:].mean() - tracks[name][0]) > (0.06 if name == "scale" else 5)
    if action in ("nodding", "shaking"):
        assert tracks["nod" if action == "nodding" else "turn"].std() > 3
    if action == "still":
        assert tracks["turn"].std() < 0.5


def test_captions_describe_their_action():
    rng = np.random.default_rng(0)
    performances = [sample_performance(rng) for _ in range(300)]
    assert {performance.action for performance in performances} == set(ACTIONS)
    for performance in performances:
        assert any(words in performance.caption for words in ACTIONS[performance.action])
        assert 3 < len(performance.caption) < 90
