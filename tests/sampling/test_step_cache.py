"""Both step caches: which steps they skip, and what they add instead."""

import copy
import itertools

import pytest
import torch

from talkinghead_lab.foundation.latent_grid import LatentGrid
from talkinghead_lab.models.dit.model import DiT
from talkinghead_lab.offload.residency import on_device
from talkinghead_lab.offload.streamed_blocks import StreamedBlocks
from talkinghead_lab.sampling import step_cache
from talkinghead_lab.sampling.chunk_sampling import chunk_noise
from talkinghead_lab.sampling.config import SamplingConfig, StepCacheConfig
from talkinghead_lab.sampling.guidance import CONDITIONAL, Guidance, branches_at, planned_passes
from talkinghead_lab.sampling.schedule import TRAINED_TIMESTEPS, timesteps
from talkinghead_lab.sampling.step_cache import (
    COEFFICIENTS,
    FIRST_COMPUTED_STEPS,
    EstimatedCache,
    kept_tensors,
    skippable_passes,
    steps_to_skip,
)
from tests.parity.test_dit import build
from tests.sampling.test_chunk_sampling import CACHE, conditions_of, sampled, sampled_by

ALWAYS = StepCacheConfig(float("inf"))
BRANCHES = {"one": (1.0, 1.0), "two": (1.0, 2.0), "two, text": (2.0, 1.0), "three": (5.0, 4.0)}


def embeddings(steps: int) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(steps, 6, 8).cumsum(0) * 0.01 + 1


def test_no_threshold_computes_every_step():
    assert steps_to_skip(embeddings(9), None) == [False] * 9


def test_the_first_steps_are_always_computed():
    skips = steps_to_skip(embeddings(20), StepCacheConfig(1e6, COEFFICIENTS["infinitetalk-480"]))
    assert skips == [False] * FIRST_COMPUTED_STEPS + [True] * (20 - FIRST_COMPUTED_STEPS)


@pytest.mark.parametrize("most", [1, 2, 4])
def test_the_estimate_skips_no_more_steps_in_a_row_than_allowed(most):
    config = StepCacheConfig(1e6, COEFFICIENTS["infinitetalk-480"], most)
    skips = steps_to_skip(embeddings(30), config)[FIRST_COMPUTED_STEPS:]
    assert skips == list(itertools.islice(itertools.cycle([True] * most + [False]), 25))


def test_a_larger_threshold_never_computes_more():
    computed = [
        steps_to_skip(embeddings(30), StepCacheConfig(t, COEFFICIENTS["infinitetalk-720"])).count(False)
        for t in (1e-6, 0.05, 0.5, 50)
    ]
    assert computed == sorted(computed, reverse=True)
    assert computed[0] == 30
    assert computed[-1] < 30


def test_a_skipped_forward_adds_the_last_residual_which_is_kept_only_where_it_is_needed():
    cache, tokens, kept = EstimatedCache([False, False, True, True, False]), torch.arange(4.0), []
    of_pass = cache.new_pass()
    for step in range(5):
        cache.begin(step)
        out = of_pass.run(tokens * step, lambda x, shortcut, step=step: x + step + 2)
        assert torch.equal(out, tokens * step + (3 if cache.skip else step + 2))
        kept.append(of_pass.residual is not None)
    assert kept == [False, True, True, True, False]


def test_a_skipped_step_reuses_no_residual_from_before_the_last_computed_step(monkeypatch):
    """Of a pass that the step before did not have, there is no residual: it is computed."""
    monkeypatch.setattr(step_cache, "steps_to_skip", lambda *_: [False, True, False, True, True, True])
    scale = (5.0, 5.0, 1.0, 5.0, 5.0, 5.0)  # the third step, which is computed, is not guided
    assert sampled(SamplingConfig(6, 3.0, scale, 1.0, step_cache=CACHE))[1] == 2 + 0 + 1 + 1 + 0 + 0


@torch.inference_mode()
def by_hand(model: DiT, config: SamplingConfig, speakers: int) -> tuple[torch.Tensor, list[bool]]:
    """A chunk with the first-block cache, from a whole network and one of a single block; skipped steps."""
    conditions, guidance = conditions_of(model, speakers), Guidance(config)
    one = copy.deepcopy(model)
    one.blocks = one.blocks[:1]
    latent = chunk_noise(0, 0, LatentGrid(9, 32, 32).latent_shape(model.config.out_dim))[None]
    latent[:, :, :1] = conditions.motion
    schedule, residuals, last, skips = timesteps(config.steps, config.shift), {}, None, []
    for step in range(config.steps):
        time, tokens = (
            model.time_embedding_of(schedule[step : step + 1]),
            model.patchify(latent, conditions.picture),
        )
        velocities = {}
        for branch in branches_at(config, step):
            of_branch = conditions.texts[branch.prompt], conditions.image, conditions.audios[branch.audio]
            given = tokens, time, conditions.rotation, *of_branch, conditions.regions
            first = one.run_blocks(*given)
            if branch == CONDITIONAL:
                update, most = first - tokens, config.step_cache.max_consecutive_skips
                exhausted = most is not None and len(skips) >= most and all(skips[-most:])
                change = None if last is None else (update - last).abs().mean() / last.abs().mean()
                small = change is not None and bool(change < config.step_cache.threshold)
                skips.append(small and not exhausted)
                last = last if skips[-1] else update
            if not (skips[-1] and branch in residuals):
                residuals[branch] = model.run_blocks(*given) - first
            out = first + residuals[branch]
            velocities[branch] = model.unpatchify(out, time, latent.shape)
        if not skips[-1]:
            residuals = {branch: residuals[branch] for branch in velocities}
        move = (schedule[step] - schedule[step + 1]) / TRAINED_TIMESTEPS
        latent = latent - guidance.combine(velocities, step) * move
        latent[:, :, :1] = conditions.motion
    return latent, skips


@pytest.mark.parametrize("speakers", [1, 2])
@pytest.mark.parametrize("scales", BRANCHES.values(), ids=BRANCHES)
@pytest.mark.parametrize(
    ("cache", "expected"),
    [
        (ALWAYS, [False] + [True] * 7),
        (StepCacheConfig(float("inf"), None, 2), [False, True, True] * 2 + [False, True]),
    ],
)
def test_each_pass_adds_its_own_residual_to_the_first_block(cache, expected, scales, speakers):
    model, config = build(), SamplingConfig(8, 3.0, *scales, step_cache=cache)
    latent, passes = sampled_by(model, config, speakers)
    wanted, skips = by_hand(model, config, speakers)
    assert skips == expected
    torch.testing.assert_close(latent, wanted, atol=1e-5, rtol=1e-5)
    a_step = planned_passes(config)[0]
    assert (passes.computed, passes.skipped) == (skips.count(False) * a_step, skips.count(True) * a_step)


@pytest.mark.parametrize("changes", [{}, {"guidance_interval": (0.25, 0.75)}, {"audio_scale": (4.0, 1.0)}])
@pytest.mark.parametrize("threshold", [0.02, 0.05])
def test_the_measured_change_decides(threshold, changes):
    """Both outcomes occur, and passes that come and go keep their residuals apart."""
    guided = {"text_scale": 5.0, "audio_scale": 4.0} | changes
    config = SamplingConfig(16, 3.0, **guided, step_cache=StepCacheConfig(threshold))
    model = build()
    wanted, skips = by_hand(model, config, 1)
    assert {True, False} == set(skips[1:])
    latent, passes = sampled_by(model, config)
    torch.testing.assert_close(latent, wanted, atol=1e-4, rtol=1e-4)
    assert passes.computed + passes.skipped == sum(planned_passes(config))


@pytest.mark.parametrize("speakers", [1, 2])
def test_a_threshold_below_every_change_computes_the_uncached_bytes(speakers):
    config = SamplingConfig(4, 3.0, 5.0, 4.0, step_cache=StepCacheConfig(1e-9))
    plain, _ = sampled_by(build(), SamplingConfig(4, 3.0, 5.0, 4.0), speakers)
    latent, passes = sampled_by(build(), config, speakers)
    assert torch.equal(latent, plain)
    assert (passes.computed, passes.skipped) == (12, 0)


def test_streamed_blocks_skip_to_the_same_bytes():
    config = SamplingConfig(6, 3.0, 5.0, 4.0, step_cache=StepCacheConfig(float("inf"), None, 1))
    resident, streamed, device = build(), build(), torch.device("cpu")
    streamed.blocks = StreamedBlocks(streamed.blocks, device, 0)
    with on_device(streamed, device, 0):
        latent, passes = sampled_by(streamed, config)
    assert torch.equal(latent, sampled_by(resident, config)[0])
    assert passes.skipped == 9


@pytest.mark.slow
def test_compiled_blocks_take_no_further_graphs():
    config = SamplingConfig(4, 3.0, 5.0, 4.0, step_cache=StepCacheConfig(float("inf"), None, 1))
    model, counters = build(), torch._dynamo.utils.counters
    torch._dynamo.reset()
    model.compile_blocks()
    sampled_by(model, SamplingConfig(1, 3.0, 5.0, 4.0))
    graphs = counters["stats"]["unique_graphs"]
    latent, passes = sampled_by(model, config)
    assert counters["stats"]["unique_graphs"] == graphs
    torch.testing.assert_close(latent, sampled_by(build(), config)[0], atol=1e-4, rtol=1e-4)
    assert passes.skipped == 6


@pytest.mark.parametrize("most", [None, 1, 2, 3])
@pytest.mark.parametrize("coefficients", [None, COEFFICIENTS["infinitetalk-480"]])
@pytest.mark.parametrize("changes", [{}, {"guidance_interval": (0.5, 1.0)}, {"text_scale": (1.0, 1.0, 5.0)}])
def test_as_many_passes_as_can_be_skipped_are_planned(most, coefficients, changes):
    guided = {"text_scale": 5.0, "audio_scale": 4.0} | changes
    cache = StepCacheConfig(float("inf"), coefficients, most)
    config = SamplingConfig(11, 3.0, **guided, step_cache=cache)
    first = 1 if coefficients is None else FIRST_COMPUTED_STEPS
    passes = planned_passes(config)
    every = [
        sum(itertools.compress(passes, skips))
        for skips in itertools.product([False, True], repeat=11)
        if not any(skips[:first])
        and max((len(list(run)) for skip, run in itertools.groupby(skips) if skip), default=0) <= (most or 11)
    ]
    assert skippable_passes(config) == max(every)


def test_what_a_cache_keeps_is_counted():
    two, three = SamplingConfig(4, 3.0, 5.0, 1.0), SamplingConfig(4, 3.0, 5.0, (4.0, 1.0))
    counts = [
        kept_tensors(SamplingConfig(4, 3.0, config.text_scale, config.audio_scale, step_cache=cache))
        for config in (two, three)
        for cache in (None, CACHE, ALWAYS)
    ]
    assert counts == [0, 2, 4, 0, 3, 5]
