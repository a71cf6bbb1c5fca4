"""Loudness of the sound track."""

import math

import pyloudnorm

from talkinghead_lab.measures.measure import Measure
from talkinghead_lab.media import audio

METER_BLOCK = 0.4  # seconds, of ITU-R BS.1770-4


def loudness(soundtrack: audio.Wave) -> Measure:
    """Integrated loudness (ITU-R BS.1770-4; unit: LUFS, neither direction is better)."""
    if soundtrack.shape[1] < METER_BLOCK * audio.SOUNDTRACK_RATE:
        return Measure.of("loudness", None, "the sound is shorter than the meter's 0.4 s")
    value = pyloudnorm.Meter(audio.SOUNDTRACK_RATE).integrated_loudness(soundtrack.T)
    if not math.isfinite(value):
        return Measure.of("loudness", None, "the sound is below the meter's gate of −70 LUFS")
    return Measure.of("loudness", float(value))
