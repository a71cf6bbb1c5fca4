"""The shipped adapter for two speakers: each mouth follows its own voice, and stays shut without one."""

import numpy as np
import pytest

from talkinghead_lab.foundation import digests
from talkinghead_lab.foundation.paths import local_file
from talkinghead_lab.measures.cartoon_faces import MouthReader, mouth_truth
from talkinghead_lab.media.video import read_frames
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.runs.generate import generate
from tests.embedded.test_quality import FRAMES, SAMPLES, correlation

# Alone, the left presenter speaks what the right one says in the other video.
WHO_SPEAKS = {"both": SAMPLES, "alone": SAMPLES[1:]}
SETTLED = 5  # the first frames still resemble the picture


@pytest.fixture(scope="module")
def openings(tmp_path_factory) -> dict[str, list[np.ndarray]]:
    """Of each video, the mouth openings of the left and the right presenter."""
    found = {}
    for name, (first, *second) in WHO_SPEAKS.items():
        said = {"audio_mix": "para", "segments": None, "audio_path": first, "max_frames": FRAMES}
        params = GenerationParams.from_yaml("two-speakers-embedded", **said)
        params = params.replace(second_audio_path=second[0] if second else None)
        made = generate(params, tmp_path_factory.mktemp("pairs") / "run", show_progress=False)
        readers = MouthReader(), MouthReader()
        for frame in read_frames(made.video_path):
            for reader, half in zip(readers, np.split(frame, 2, axis=1), strict=True):
                reader.add(np.ascontiguousarray(half))
        found[name] = [reader.openings() for reader in readers]
    return found


def test_each_mouth_follows_its_own_voice(openings):
    truths = [mouth_truth(digests.known_sha256(local_file(sample))) for sample in SAMPLES]
    own = [correlation(*pair) for pair in zip(openings["both"], truths, strict=True)]
    other = [correlation(*pair) for pair in zip(openings["both"], truths[::-1], strict=True)]
    assert min(own) >= 0.7
    assert np.mean(other) <= 0.3
    assert correlation(openings["alone"][0], truths[1]) >= 0.7


def test_a_mouth_without_a_voice_stays_shut(openings):
    spoken, silent = (opening[SETTLED:].mean() for opening in openings["alone"])
    assert silent <= 0.15 * spoken
