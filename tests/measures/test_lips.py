"""Measures of lips give known figures for rendered mouths."""

import numpy as np
import pytest
import torch
from torch import Generator

from talkinghead_lab.foundation import digests
from talkinghead_lab.foundation.paths import local_file
from talkinghead_lab.measures import lips
from talkinghead_lab.measures.cartoon_faces import mouth_truth
from talkinghead_lab.training.avatar import Motion, render, sample_identity
from tests.measures.videos import openings_in, write


def test_lips_that_follow_the_truth_score_well_and_late_ones_worse(tmp_path):
    truth = mouth_truth(digests.known_sha256(local_file("sample:recording-2")))
    opening = torch.from_numpy(truth[:60]).float()
    scores = []
    for late in (0, 4):
        motion = Motion.still(60)
        motion.mouth[:, 0] = opening.roll(late)
        pixels = ((render(sample_identity(Generator().manual_seed(5)), motion) + 1) * 127.5).byte()
        path = write(tmp_path / f"{late}.mp4", pixels.permute(0, 2, 3, 1).numpy())
        read = openings_in(path)
        scores.append([measure(read, truth).value for measure in (lips.lip_correlation, lips.lip_error)])
    assert scores[0][0] > 0.95
    assert scores[0][1] < 0.05
    assert scores[1][0] < 0.7
    assert scores[1][1] > 2 * scores[0][1]


def test_a_mouth_is_held_against_the_loudness_at_the_best_small_lag():
    opening = np.random.default_rng(0).random(50)
    wave = np.repeat(opening, 640).astype(np.float32)
    for lag in (-3, 0, 3):
        assert lips.correlation_with_loudness(np.roll(opening, lag), wave, 16_000) > 0.9
    assert lips.correlation_with_loudness(np.roll(opening, 12), wave, 16_000) < 0.6
    assert lips.correlation_with_loudness(opening, 0 * wave, 16_000) is None


def test_lips_are_watched_only_in_silence():
    """Speech for one second, then silence for two; lips come to rest within 0.2 s."""
    sound = np.zeros((1, 75 * 1920), np.float32)
    sound[:, : 25 * 1920] = np.random.default_rng(0).normal(0, 0.1, 25 * 1920)
    opening = np.zeros(75)
    opening[:29] = np.random.default_rng(1).random(29)
    assert lips.silent_lip_motion(opening, sound).value == 0
    opening[40::2] = 0.1
    assert lips.silent_lip_motion(opening, sound).value == pytest.approx(0.1 * 35 / 44)
    assert lips.silent_lip_motion(opening[:25], sound).why_not == "the sound has no silence"
    assert lips.silent_lip_motion(opening[40:], 0 * sound).value == pytest.approx(0.1)
