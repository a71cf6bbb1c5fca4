"""Loudness is that of the standard's own test tone."""

import numpy as np
import pytest

from talkinghead_lab.measures.loudness import loudness
from talkinghead_lab.media.audio import read_soundtrack
from tests.measures.videos import grey, write


def test_loudness_is_that_of_the_standard_s_tone(tmp_path):
    # EBU Tech 3341, case 1: a stereo sine of 1 kHz at −23 dBFS reads −23 LUFS.
    tone = 10 ** (-23 / 20) * np.sin(2 * np.pi * 1000 * np.arange(96_000) / 48_000)
    sound = np.stack([tone, tone]).astype(np.float32)
    measured = loudness(read_soundtrack(write(tmp_path / "tone.mp4", grey([90] * 50, 32), sound)))
    assert measured.value == pytest.approx(-23, abs=0.2)
    silent = loudness(read_soundtrack(write(tmp_path / "silent.mp4", grey([90] * 50, 32), 0 * sound)))
    assert silent.value is None
    assert "gate" in silent.why_not
