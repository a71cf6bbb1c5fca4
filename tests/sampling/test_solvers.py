"""Euler is as released, the solvers of diffusers converge faster, and lcm draws from the chunk's noise."""

import importlib.util
from dataclasses import replace

import diffusers
import pytest
import torch

from talkinghead_lab.errors import InvalidRequest, MissingExtra
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.pipeline.request import sampling_config
from talkinghead_lab.sampling import chunk_sampling
from talkinghead_lab.sampling.chunk_sampling import noise_generator
from talkinghead_lab.sampling.config import SamplingConfig
from talkinghead_lab.sampling.schedule import (
    TRAINED_TIMESTEPS,
    flow_timesteps,
    noised,
    schedule_of,
    timesteps,
)
from talkinghead_lab.sampling.solvers import DiffusersSolver, Euler, check_solver, solver_of
from tests.sampling.test_chunk_sampling import sampled

MEDIA = {"audio_path": "a.wav", "image_path": "b.png"}
GUIDED = SamplingConfig(6, 3.0, 5.0, 4.0)
MEAN, SPREAD = 2.0, 0.5  # of the data of `error_of`


def test_euler_through_diffusers_gives_the_released_numbers(monkeypatch):
    ours, _ = sampled(GUIDED)
    taken = []

    def through_diffusers(name, schedule, generator, first_step):
        taken.append(name)
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
        return DiffusersSolver(scheduler, schedule, None, first_step)

    monkeypatch.setattr(chunk_sampling, "solver_of", through_diffusers)
    theirs, _ = sampled(GUIDED)
    assert taken == ["euler"]
    assert (ours - theirs).abs().max() < 1e-6 * ours.abs().max()


def error_of(name: str, steps: int) -> float:
    """How far a solver ends from the truth where that is known: data with a normal distribution."""
    schedule = torch.cat([torch.linspace(1, 0.05, steps), torch.zeros(1)]) * TRAINED_TIMESTEPS
    latent = noise = torch.linspace(-2, 2, 9).view(1, 1, 1, 3, 3)
    path = solver_of(name, schedule)
    for step, time in enumerate(schedule[:-1]):
        level = time / TRAINED_TIMESTEPS
        variance = (1 - level) ** 2 * SPREAD**2 + level**2
        slope = (level - (1 - level) * SPREAD**2) / variance
        velocity = -MEAN + slope * (latent - (1 - level) * MEAN)
        latent = path.move(latent, velocity, step)
    return float((latent - (MEAN + SPREAD * noise)).abs().max())


@pytest.mark.parametrize("name", ["unipc", "dpm++2m"])
def test_solvers_of_second_order_come_closer_in_fewer_steps(name):
    assert error_of(name, 8) < error_of("euler", 8) / 1.5
    assert error_of(name, 16) < error_of("euler", 32) / 1.5


def test_the_noise_of_lcm_follows_from_the_chunk(monkeypatch):
    schedule = schedule_of(SamplingConfig(4, 3.0, sampler="lcm"))
    latent = torch.ones(1, 4, 3, 4, 4)

    def moved(seed: int, index: int) -> torch.Tensor:
        generator = noise_generator(seed, index)
        torch.randn(3, generator=generator)
        torch.manual_seed(torch.seed())  # the process's own generator has no part in it
        return solver_of("lcm", schedule, generator).move(latent, latent * 0.1, 0)

    assert torch.equal(moved(1, 2), moved(1, 2))
    assert not torch.equal(moved(1, 2), moved(1, 3))
    assert not torch.equal(moved(1, 2), moved(2, 2))


@pytest.mark.parametrize("name", ["unipc", "dpm++2m", "lcm"])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_every_solver_samples_with_any_number_of_steps(name, steps):
    config = replace(GUIDED, steps=steps, sampler=name)
    latent, passes = sampled(config)
    assert latent.isfinite().all()
    assert passes == 3 * steps
    late, passes = sampled(replace(config, steps=steps + 1, zero_star=True, zero_init_steps=1))
    assert late.isfinite().all()
    assert passes == 3 * steps


@pytest.mark.parametrize("shift", [1.0, 3.0, 11.0])
def test_flow_timesteps_are_those_of_diffusers(shift):
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
    )
    scheduler.set_timesteps(8)
    torch.testing.assert_close(
        flow_timesteps(8, shift) / TRAINED_TIMESTEPS, scheduler.sigmas, atol=2e-6, rtol=0
    )


def test_a_list_of_levels_replaces_the_schedule():
    config = sampling_config(GenerationParams(**MEDIA, sigmas=[1.0, 0.9, 0.4]))
    assert config.steps == 3
    torch.testing.assert_close(schedule_of(config), torch.tensor([1000.0, 900.0, 400.0, 0.0]))
    levels = tuple((timesteps(6, 3.0)[:-1] / TRAINED_TIMESTEPS).tolist())
    released, _ = sampled(GUIDED)
    listed, _ = sampled(replace(GUIDED, sigmas=levels, shift=99.0))
    torch.testing.assert_close(listed, released, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sigmas": [0.5, 0.9]}, "must fall"),
        ({"sigmas": [1.1, 0.9]}, "must fall"),
        ({"sigmas": [1.0, 0.5, 0.0]}, "leave it out"),
        ({"sigmas": [1.0, 0.5], "diffusion_steps": 4}, "diffusion_steps is 4, but sigmas has 2 levels"),
        ({"sampler": "lcm", "step_cache_threshold": 0.1}, "lcm draws new noise"),
        (
            {"loras": [{"path": "a", "scale": [1, 0.5]}], "step_cache_threshold": 0.1},
            "step_cache released estimates.*use first_block",
        ),
        ({"loras": [{"path": "a", "scale": [1, 2, 3]}], "diffusion_steps": 2}, "3 values, but there are 2"),
        ({"loras": [{"path": "a", "scale": []}]}, "loras.0.scale"),
        ({"loras": [{"path": "a", "scale": [1, 11]}]}, "loras.0.scale"),
        ({"step_cache": "first_block"}, "first_block requires a step_cache_threshold"),
        ({"max_consecutive_skips": 2}, "max_consecutive_skips requires a step_cache_threshold"),
        ({"max_consecutive_skips": 0, "step_cache_threshold": 0.1}, "max_consecutive_skips"),
        ({"sampler": "heun"}, "'euler', 'unipc', 'dpm\\+\\+2m' or 'lcm'"),
    ],
)
def test_what_does_not_go_together_is_refused(fields, message):
    with pytest.raises(InvalidRequest, match=message):
        GenerationParams(**MEDIA, **fields)


def test_without_diffusers_the_extra_is_named_and_euler_serves(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"unipc needs the extra `samplers`.*talkinghead_lab\[samplers\]"):
        check_solver("unipc")
    assert isinstance(solver_of("euler", timesteps(2, 3.0)), Euler)


@pytest.mark.parametrize("sampler", ["euler", "unipc"])
def test_a_strength_begins_the_same_number_of_steps_at_a_lower_level(sampler):
    whole = SamplingConfig(4, shift=3.0, sampler=sampler)
    half = replace(whole, strength=0.5)
    assert len(schedule_of(half)) == len(schedule_of(whole)) == 5
    level = 3 * 0.5 / (1 + 2 * 0.5)  # the shift of 0.5
    assert schedule_of(half)[0].item() == pytest.approx(level * TRAINED_TIMESTEPS)
    assert (schedule_of(half).diff() < 0).all()
    source, noise = torch.full((2, 2), 4.0), torch.full((2, 2), -1.0)
    assert torch.allclose(noised(source, noise, half), torch.full((2, 2), level * -1 + (1 - level) * 4))
    assert torch.equal(noised(source, noise, whole), noise)


def test_explicit_levels_and_a_strength_contradict_each_other():
    with pytest.raises(InvalidRequest, match="leave one out"):
        GenerationParams(**MEDIA, sigmas=[1.0, 0.5], denoise_strength=0.5)
