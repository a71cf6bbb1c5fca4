"""Loudness of the sound track."""

import math
from pathlib import Path

import pyloudnorm

from talkinghead_lab.measures.measure import Measure
from talkinghead_lab.media import audio


def loudness(path: str | Path) -> Measure:
    """Integrated loudness of the sound track (ITU-R BS.1770-4; unit: LUFS, neither direction is better)."""
    wave = audio.read_soundtrack(path)
    if wave.shape[1] < 0.4 * audio.SOUNDTRACK_RATE:
        return Measure.of("loudness", None, "the sound is shorter than the meter's 0.4 s")
    value = pyloudnorm.Meter(audio.SOUNDTRACK_RATE).integrated_loudness(wave.T)
    if not math.isfinite(value):
        return Measure.of("loudness", None, "the sound is below the meter's gate of −70 LUFS")
    return Measure.of("loudness", float(value))
