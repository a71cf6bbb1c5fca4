"""Media arithmetic against the reference: loudness, frame sizes, crops and colours."""

import pytest
import torch

from talkinghead_lab.audio import normalize_loudness
from tests.parity import golden

TENSORS, FACTS = golden.load("media")


def test_loudness():
    wave = golden.seeded("wave", [FACTS["wave"]["samples"]], FACTS["wave"]["scale"])
    out = torch.from_numpy(normalize_loudness(wave.numpy(), FACTS["wave"]["lufs"]))
    golden.report("media loudness", golden.relative_error(out, TENSORS["loudness"]), 1e-6)
