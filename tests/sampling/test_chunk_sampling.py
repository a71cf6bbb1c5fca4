"""Guidance in all its cases, and the sampler's contract."""

from dataclasses import replace

import pytest
import torch

from talkinghead_lab.bench.sizes import random_conditions
from talkinghead_lab.foundation.latent_grid import LatentGrid
from talkinghead_lab.models.dit.model import DiT
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.pipeline.request import sampling_config
from talkinghead_lab.sampling.chunk_sampling import ChunkConditions, PassCount, noise_generator, sample_chunk
from talkinghead_lab.sampling.config import SamplingConfig, StepCacheConfig, spread
from talkinghead_lab.sampling.guidance import (
    CONDITIONAL,
    DROP_AUDIO,
    DROP_TEXT,
    UNCONDITIONAL,
    Guidance,
    branches_at,
    planned_passes,
)
from talkinghead_lab.sampling.schedule import timesteps
from talkinghead_lab.sampling.step_cache import COEFFICIENTS
from tests.parity.test_dit import build


def guidance_of(**changes) -> Guidance:
    request = GenerationParams(audio_path="a.wav", image_path="b.png", **changes)
    return Guidance(sampling_config(request))


def velocities(guidance: Guidance) -> dict:
    torch.manual_seed(0)
    every = {b: torch.randn(1, 4, 3, 2, 2) for b in (CONDITIONAL, DROP_TEXT, DROP_AUDIO, UNCONDITIONAL)}
    return {branch: every[branch] for branch in branches_at(guidance.config, 0)}


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
    assert branches_at(guidance.config, 0) == branches


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


def test_a_list_of_scales_is_spread_over_the_steps():
    assert spread([5, 1], 5) == [5, 4, 3, 2, 1]
    assert spread([4, 1, 2], 5) == [4, 2.5, 1, 1.5, 2]
    assert spread([3, 7, 2], 3) == [3, 7, 2]
    assert spread([3], 4) == [3] * 4
    assert spread([5, 1], 1) == [5]


@pytest.mark.parametrize(
    ("changes", "passes"),
    [
        ({}, (3, 3, 3, 3, 3, 3)),
        ({"guidance_interval": (0, 0.5)}, (3, 3, 3, 1, 1, 1)),
        ({"guidance_interval": (0.3, 0.7)}, (1, 1, 3, 3, 1, 1)),
        ({"text_guide_scale": (3, 1)}, (3, 3, 3, 3, 3, 2)),
        ({"audio_guide_scale": (1, 1, 1, 4, 4, 4)}, (2, 2, 2, 3, 3, 3)),
        ({"text_guide_scale": 1, "audio_guide_scale": 1, "guidance_interval": (0, 0.5)}, (1,) * 6),
        ({"cfg_zero_star": True, "zero_init_steps": 2}, (0, 0, 3, 3, 3, 3)),
    ],
)
def test_the_passes_of_every_step_are_planned(changes, passes):
    assert planned_passes(guidance_of(diffusion_steps=6, **changes).config) == passes


@pytest.mark.parametrize("apg", [False, True])
def test_a_schedule_that_does_not_change_is_the_scale(apg):
    scalar = guidance_of(use_apg=apg, text_guide_scale=3.0, audio_guide_scale=2.0)
    listed = guidance_of(
        use_apg=apg, text_guide_scale=[3.0] * 2, audio_guide_scale=[2.0] * 4, guidance_interval=[0, 1]
    )
    v = velocities(scalar)
    for step in range(4):
        assert torch.equal(scalar.combine(v, step), listed.combine(v, step))


def test_zero_star_subtracts_the_projection_of_the_pass_without_the_condition():
    guidance = guidance_of(cfg_zero_star=True, text_guide_scale=5.0, audio_guide_scale=4.0)
    v = velocities(guidance)
    of = {pair: (v[pair[0]] * v[pair[1]]).sum() / v[pair[1]].square().sum() for pair in PAIRS}
    text, audio = (v[with_it] - of[with_it, without] * v[without] for with_it, without in PAIRS)
    torch.testing.assert_close(guidance.combine(v), v[CONDITIONAL] + 4 * text + 3 * audio)
    assert abs((text * v[DROP_TEXT]).sum()) < 1e-4, "what is left is orthogonal to it"


PAIRS = ((CONDITIONAL, DROP_TEXT), (DROP_TEXT, UNCONDITIONAL))


def sampled(config: SamplingConfig) -> tuple[torch.Tensor, int]:
    """A chunk of a tiny model, and the passes that were computed for it."""
    latent, passes = sampled_by(build(), config)
    return latent, passes.computed


def sampled_by(model: DiT, config: SamplingConfig, speakers: int = 1) -> tuple[torch.Tensor, PassCount]:
    """A chunk of a model, and its passes."""
    grid, generator, passes = LatentGrid(9, 32, 32), noise_generator(0, 0), PassCount()
    noise = torch.randn((1, *grid.latent_shape(model.config.out_dim)), generator=generator)
    conditions = conditions_of(model, speakers)
    return sample_chunk(model, noise, conditions, config, passes=passes, generator=generator), passes


@torch.inference_mode()
def conditions_of(model: DiT, speakers: int = 1) -> ChunkConditions:
    """Random conditions, with a prompt and a negative prompt of its own."""
    conditions = random_conditions(model, LatentGrid(9, 32, 32), torch.device("cpu"), speakers=speakers)
    negative = torch.randn(3, model.config.text_dim, generator=noise_generator(1, 0))
    return replace(conditions, texts={True: conditions.texts[True], False: model.text_context([negative])})


CACHE = StepCacheConfig(float("inf"), COEFFICIENTS["infinitetalk-480"])


def test_computed_passes_are_counted():
    guided = SamplingConfig(7, 3.0, 5.0, 4.0)
    assert sampled(guided)[1] == 21
    assert sampled(replace(guided, step_cache=CACHE))[1] == 15, "the last two steps are skipped"
    assert sampled(replace(guided, guidance_interval=(0, 3 / 7)))[1] == 13
    assert sampled(replace(guided, zero_star=True, zero_init_steps=2))[1] == 15


def test_an_interval_of_all_steps_changes_nothing_and_half_of_them_does():
    guided = SamplingConfig(4, 3.0, 5.0, 4.0)
    every, _ = sampled(guided)
    assert torch.equal(sampled(replace(guided, guidance_interval=(0.0, 1.0)))[0], every)
    assert torch.equal(sampled(replace(guided, text_scale=(5.0, 5.0)))[0], every)
    half, _ = sampled(replace(guided, guidance_interval=(0.5, 1.0)))
    assert not torch.equal(half, every)
    own, _ = sampled(replace(guided, text_scale=(1.0, 1.0, 5.0, 5.0), audio_scale=(1.0, 1.0, 4.0, 4.0)))
    assert torch.equal(half, own)
