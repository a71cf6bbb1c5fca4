"""Guidance in all its cases, the sampler's contract, and the step cache."""

import pytest
import torch

from talkinghead_lab.params import GenerationParams
from talkinghead_lab.pipeline.request import sampling_config
from talkinghead_lab.sampling.config import StepCacheConfig
from talkinghead_lab.sampling.euler import timesteps
from talkinghead_lab.sampling.guidance import CONDITIONAL, DROP_AUDIO, DROP_TEXT, UNCONDITIONAL, Guidance
from talkinghead_lab.sampling.step_cache import (
    COEFFICIENTS,
    FIRST_COMPUTED_STEPS,
    ResidualCache,
    steps_to_keep,
    steps_to_skip,
)


def guidance_of(**changes) -> Guidance:
    request = GenerationParams(audio_path="a.wav", image_path="b.png", **changes)
    return Guidance(sampling_config(request))


def velocities(guidance: Guidance) -> dict:
    torch.manual_seed(0)
    every = {b: torch.randn(1, 4, 3, 2, 2) for b in (CONDITIONAL, DROP_TEXT, DROP_AUDIO, UNCONDITIONAL)}
    return {branch: every[branch] for branch in guidance.branches}


@pytest.mark.parametrize(
    ("text", "audio", "branches"),
    [
        (5.0, 4.0, (CONDITIONAL, DROP_TEXT, UNCONDITIONAL)),
        (5.0, 1.0, (CONDITIONAL, DROP_TEXT)),
        (1.0, 4.0, (CONDITIONAL, DROP_AUDIO)),
        (1.0, 1.0, (CONDITIONAL,)),
    ],
)
def test_a_scale_of_one_saves_a_forward(text, audio, branches):
    guidance = guidance_of(text_guide_scale=text, audio_guide_scale=audio)
    assert guidance.branches == branches


def test_three_way_guidance_is_the_published_sum():
    guidance = guidance_of(text_guide_scale=5.0, audio_guide_scale=4.0)
    v = velocities(guidance)
    expected = v[UNCONDITIONAL] + 5 * (v[CONDITIONAL] - v[DROP_TEXT]) + 4 * (v[DROP_TEXT] - v[UNCONDITIONAL])
    torch.testing.assert_close(guidance.combine(v), expected)


def test_audio_alone_is_guided_against_dropped_audio():
    guidance = guidance_of(text_guide_scale=1.0, audio_guide_scale=2.0)
    v = velocities(guidance)
    torch.testing.assert_close(guidance.combine(v), v[DROP_AUDIO] + 2 * (v[CONDITIONAL] - v[DROP_AUDIO]))


@pytest.mark.parametrize("apg", [False, True])
def test_dropping_the_unconditional_forward_changes_nothing(apg):
    """At an audio scale of 1 two forwards must give what three do at a scale just beside it."""
    two = guidance_of(use_apg=apg, text_guide_scale=3.0, audio_guide_scale=1.0)
    three = guidance_of(use_apg=apg, text_guide_scale=3.0, audio_guide_scale=1.0 + 1e-6)
    v = velocities(three)
    torch.testing.assert_close(two.combine(v), three.combine(v), atol=1e-4, rtol=1e-4)


def test_projected_updates_are_bounded_and_orthogonal():
    guidance = guidance_of(use_apg=True, apg_norm_threshold=2.0, text_guide_scale=2.0, audio_guide_scale=1.0)
    v = velocities(guidance)
    update = guidance.combine(v) - v[CONDITIONAL]
    assert update.norm() <= 2.0 + 1e-4
    assert abs((update * v[CONDITIONAL]).sum()) < 1e-3 * update.norm() * v[CONDITIONAL].norm()


def test_timesteps_start_at_1000_and_end_at_0():
    t = timesteps(8, 2.0)
    assert len(t) == 9
    assert t[0] == 1000
    assert t[-1] == 0
    assert (t[:-1] > t[1:]).all()
    assert (timesteps(8, 7.0)[1:-1] > t[1:-1]).all(), "a larger shift stays longer at high noise"


def embeddings(steps: int) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(steps, 6, 8).cumsum(0) * 0.01 + 1


def test_no_threshold_computes_every_step():
    assert steps_to_skip(embeddings(9), None) == [False] * 9


def test_the_first_steps_are_always_computed():
    skips = steps_to_skip(embeddings(20), StepCacheConfig(1e6, COEFFICIENTS["infinitetalk-480"]))
    assert skips == [False] * FIRST_COMPUTED_STEPS + [True] * (20 - FIRST_COMPUTED_STEPS)


def test_a_larger_threshold_never_computes_more():
    computed = [
        steps_to_skip(embeddings(30), StepCacheConfig(t, COEFFICIENTS["infinitetalk-720"])).count(False)
        for t in (1e-6, 0.05, 0.5, 50)
    ]
    assert computed == sorted(computed, reverse=True)
    assert computed[0] == 30
    assert computed[-1] < 30


def test_a_skipped_forward_adds_the_last_residual():
    cache, tokens = ResidualCache(), torch.arange(4.0)
    assert torch.equal(cache.run(tokens, lambda x: x + 3, skip=False, keep=True), tokens + 3)
    later = tokens * 10
    for _ in range(2):
        assert torch.equal(
            cache.run(later, lambda x: pytest.fail("computed"), skip=True, keep=True), later + 3
        )


def test_residuals_are_kept_only_where_the_next_step_needs_them():
    assert steps_to_keep([False, False, True, True, False]) == [False, True, True, False, False]
