"""Timesteps and adaptive projected guidance against the reference."""

import pytest

from talkinghead_lab.sampling.config import ProjectionConfig
from talkinghead_lab.sampling.guidance import AdaptiveProjection
from talkinghead_lab.sampling.schedule import timesteps
from tests.parity import golden

OUTPUTS, CASE = golden.load("sampler")


@pytest.mark.parametrize("case", [name for name in OUTPUTS if name.startswith("timesteps.")])
def test_timesteps(case: str):
    _, steps, shift = case.split(".")
    golden.compare(f"sampler {case}", timesteps(int(steps), float(shift)), OUTPUTS[case], 1e-4)


def test_adaptive_projected_guidance():
    settings = CASE["apg"]
    assert settings["eta"] == 0, "the only value in use"
    config = ProjectionConfig(settings["momentum"], settings["norm_threshold"])
    projection = AdaptiveProjection(config)
    for i in range(sum(name.startswith("apg.") for name in OUTPUTS)):
        difference = golden.seeded(f"diff{i}", settings["shape"], settings["diff_scale"])
        update = projection(difference, golden.seeded(f"pred{i}", settings["shape"]))
        golden.compare(f"sampler apg.{i}", update, OUTPUTS[f"apg.{i}"], 1e-4)
