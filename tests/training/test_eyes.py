"""Lid openings are read from drawn presenters, whose blinks are known, and eyes that shut alone are told."""

from types import SimpleNamespace

import pytest
import torch

from talkinghead_lab.training.avatar import FACE_CHANNELS, POSE_CHANNELS, Motion, render, sample_identity
from talkinghead_lab.training.evaluate import Evaluation
from talkinghead_lab.training.eyes import Blinks, lid_openings
from talkinghead_lab.training.train_vae import to_bytes

BLINK = torch.tensor([0.45, 1.0, 1.0, 0.6, 0.2])
FRAMES, FIRST = 30, 12


def presenter(seed: int):
    return sample_identity(torch.Generator().manual_seed(1_000_000 + seed))


def blinking(tilt: float = 0.0) -> Motion:
    motion = Motion.still(FRAMES)
    motion.pose[:, POSE_CHANNELS.index("tilt")] = tilt
    motion.pose[:, POSE_CHANNELS.index("turn")] = torch.linspace(0, 8, FRAMES)
    motion.face[FIRST : FIRST + len(BLINK), FACE_CHANNELS.index("blink")] = BLINK
    return motion


@pytest.mark.parametrize(("seed", "tilt"), [(1, 0.0), (2, 5.0), (5, -5.0)])
def test_a_drawn_blink_is_read(seed, tilt):
    who = presenter(seed)
    openings = lid_openings(render(who, blinking(tilt)), who)
    assert openings[: FIRST - 1].mean() == pytest.approx(1, abs=0.1)
    assert openings[FIRST + 1 : FIRST + 3].amax() < 0.25
    assert (openings[:, 0] - openings[:, 1]).abs().max() < 0.3
    assert Blinks.of(openings) == Blinks(count=1, one_sided=0, seconds=FRAMES / 25)


def test_an_eye_that_shuts_alone_is_told():
    who = presenter(1)
    frames, still = render(who, blinking()), blinking()
    still.face.zero_()
    half = frames.shape[-1] // 2
    frames[..., half:] = render(who, still)[..., half:]
    openings = lid_openings(frames, who)
    assert openings[FIRST + 1, 0] < 0.3
    assert openings[FIRST + 1, 1] > 0.8
    assert Blinks.of(openings) == Blinks(count=1, one_sided=1, seconds=FRAMES / 25)


def test_open_eyes_do_not_blink():
    assert Blinks.of(torch.ones(50, 2)) == Blinks(0, 0, 2.0)
    ending = torch.ones(50, 2)
    ending[48:] = 0.1
    assert Blinks.of(ending).count == 1


def test_the_evaluation_has_blinks():
    who = presenter(2)
    evaluation = Evaluation(sampler=None, cases=SimpleNamespace(identities=[who]), params=None, fast=None)
    evaluation.__dict__["default"] = to_bytes(render([who], Motion.stack([blinking()])))
    table = evaluation.eyes()
    assert table["blinks a minute"]["mean"] == 60 / (FRAMES / 25)
    assert table["blinks of one eye"]["mean"] == 0
