"""The shipped weights: the mouth follows the given recording and no other."""

from pathlib import Path

import numpy as np
import pytest

from talkinghead_lab.foundation import digests
from talkinghead_lab.foundation.paths import local_file
from talkinghead_lab.measures.cartoon_faces import mouth_truth
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.runs.generate import generate
from tests.measures.videos import openings_in

PRESET = Path(__file__).parents[2] / "params" / "embedded.yaml"
FRAMES = 77
SAMPLES = ("sample:recording", "sample:recording-2")


def correlation(opening: np.ndarray, truth: np.ndarray) -> float:
    return float(np.corrcoef(opening[:FRAMES], truth[:FRAMES])[0, 1])


@pytest.fixture(scope="module")
def openings(tmp_path_factory):
    """For each sample: the measured mouth opening of its video, and the ground truth."""
    pairs = []
    for sample in SAMPLES:
        changes = {"audio_path": sample, "max_frames": FRAMES, "trim_last_chunk": True}
        params = GenerationParams.from_yaml(PRESET, **changes)
        made = generate(params, tmp_path_factory.mktemp("quality") / "run", show_progress=False)
        truth = mouth_truth(digests.known_sha256(local_file(params.audio_path)))
        pairs.append((openings_in(made.video_path), truth))
    return pairs


def test_the_mouth_follows_its_recording(openings):
    for opening, truth in openings:
        assert correlation(opening, truth) >= 0.7


def test_the_mouth_does_not_follow_another_recording(openings):
    (first, its_truth), (second, other_truth) = openings
    wrong = [correlation(first, other_truth), correlation(second, its_truth)]
    assert np.mean(wrong) <= 0.3
