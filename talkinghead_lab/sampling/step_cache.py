"""Skips forward passes whose output would hardly differ from the last step's.

Two ways to decide: an estimate from the timesteps, as released (TeaCache, arXiv 2411.19108), and the measured
change of the first block's update (first-block cache, as in ParaAttention). Either decides once for all
forward passes of a step, so that guidance never subtracts a skipped pass from a computed one. Each pass keeps
its own residual.
"""

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from talkinghead_lab.models.dit.model import FirstBlockShortcut
from talkinghead_lab.models.dit.sequence_parallel import SequenceParallelGroup
from talkinghead_lab.sampling.config import SamplingConfig, StepCacheConfig
from talkinghead_lab.sampling.guidance import branches_at, planned_passes

# Polynomials that map the change of the time embedding to the change of the output, highest power first. The
# released fits, for the variant that always computes the first five steps.
COEFFICIENTS = {
    "infinitetalk-480": (2.57151496e05, -3.54229917e04, 1.40286849e03, -1.35890334e01, 1.32517977e-01),
    "infinitetalk-720": (8.10705460e03, 2.13393892e03, -3.72934672e02, 1.66203073e01, -4.17769401e-02),
}
FIRST_COMPUTED_STEPS = 5
# Computes the tokens after all blocks, given those before.
Blocks = Callable[[Tensor, FirstBlockShortcut | None], Tensor]


class PassCache(Protocol):
    """What one forward pass keeps from step to step."""

    residual: Tensor | None

    def run(self, tokens: Tensor, blocks: Blocks) -> Tensor:
        """The tokens after all blocks, [B, L, D], computed or from the residual."""


class StepCache(Protocol):
    """Decides for all forward passes of a step whether they reuse what earlier steps computed."""

    skip: bool

    def begin(self, step: int) -> None:
        """Called before the forward passes of a step."""

    def new_pass(self) -> PassCache:
        """A cache for one of the forward passes."""


def step_cache_of(config: SamplingConfig, time_embeddings: Tensor, group: SequenceParallelGroup) -> StepCache:
    """The step cache of one chunk.

    Args:
        config: of sampling.
        time_embeddings: [steps, 6, D], the blocks' modulation inputs.
        group: processes that must decide the same.
    """
    if config.step_cache is not None and config.step_cache.coefficients is None:
        return FirstBlockCache(config.step_cache, group)
    return EstimatedCache(steps_to_skip(time_embeddings, config.step_cache))


def skippable_passes(config: SamplingConfig) -> int:
    """The most forward passes of a chunk that the step cache may skip."""
    if config.step_cache is None:
        return 0
    passes = planned_passes(config)
    first = config.zero_init_steps + 1
    if config.step_cache.coefficients is not None:
        first = max(first, FIRST_COMPUTED_STEPS)
    limit = config.step_cache.max_consecutive_skips or len(passes)
    most = [0.0] + [-math.inf] * limit  # by the number of steps skipped in a row
    for step, count in enumerate(passes):
        skipping = [known + count for known in most[:-1]] if step >= first else [-math.inf] * limit
        most = [max(most), *skipping]
    return int(max(most))


def kept_tensors(config: SamplingConfig) -> int:
    """How many tensors of the size of the tokens the step cache holds at most."""
    if config.step_cache is None:
        return 0
    residuals = len({branch for step in range(config.steps) for branch in branches_at(config, step)})
    # Also the first block's update, and its result while the other blocks run.
    return residuals + (2 if config.step_cache.coefficients is None else 0)


def steps_to_skip(time_embeddings: Tensor, config: StepCacheConfig | None) -> list[bool]:
    """Decide by the estimate for every step whether its forward passes are skipped.

    The decision depends on the timesteps alone. It is made once before sampling, so no step waits for the
    device.

    Args:
        time_embeddings: [steps, 6, D], the blocks' modulation inputs.
        config: None computes every step.
    """
    if config is None:
        return [False] * len(time_embeddings)
    assert config.coefficients is not None, "this cache estimates"
    before, after = time_embeddings[:-1], time_embeddings[1:]
    changes = (after - before).abs().mean(dim=(1, 2)) / before.abs().mean(dim=(1, 2))
    estimates = np.polyval(config.coefficients, changes.double().cpu().numpy())
    skips, accumulated, in_a_row = [False], 0.0, 0
    for step, estimate in enumerate(estimates, start=1):
        accumulated += float(estimate)
        skip = step >= FIRST_COMPUTED_STEPS and accumulated < config.threshold and config.allows(in_a_row)
        skips.append(skip)
        in_a_row = in_a_row + 1 if skip else 0
        if not skip:
            accumulated = 0.0
    return skips


class EstimatedCache:
    """Skips the steps of a list.

    Args:
        skips: for every step, whether it is skipped.
    """

    def __init__(self, skips: Sequence[bool]) -> None:
        self.skips = list(skips)
        # Whether the present step is skipped, and whether the next one, which needs the residuals.
        self.skip = self.keep = False

    def begin(self, step: int) -> None:
        """Called before the forward passes of a step."""
        self.skip, self.keep = [*self.skips, False][step : step + 2]

    def new_pass(self) -> "AllBlocksResidual":
        """A cache for one of the forward passes."""
        return AllBlocksResidual(self)


class AllBlocksResidual:
    """The sum of all blocks' updates to the tokens, of one forward pass."""

    def __init__(self, cache: EstimatedCache) -> None:
        self.cache = cache
        self.residual: Tensor | None = None

    def run(self, tokens: Tensor, blocks: Blocks) -> Tensor:
        """The tokens after all blocks, [B, L, D], computed or from the residual."""
        if self.cache.skip and self.residual is not None:
            return tokens + self.residual
        out = blocks(tokens, None)
        self.residual = out - tokens if self.cache.keep else None
        return out


class FirstBlockCache:
    """Skips a step if the first block's update has hardly changed since the last computed step.

    The first pass of a step measures and decides. Of several processes, the first decides for all where each
    computes a pass of its own.

    Args:
        config: its threshold bounds Σ|update − last| / Σ|last|.
        group: processes that must decide the same.
    """

    def __init__(self, config: StepCacheConfig, group: SequenceParallelGroup) -> None:
        self.config, self.group = config, group
        self.skip = self._decided = False
        self._in_a_row = 0
        self._update: Tensor | None = None  # of the last computed step

    def begin(self, step: int) -> None:
        """Called before the forward passes of a step."""
        self.skip = self._decided = False

    def new_pass(self) -> "OtherBlocksResidual":
        """A cache for one of the forward passes."""
        return OtherBlocksResidual(self)

    def skips(self, before: Tensor, after: Tensor, sharing: SequenceParallelGroup) -> bool:
        """Whether the present step is skipped, given a pass's tokens before and after the first block.

        Args:
            before, after: [B, l, D].
            sharing: the processes that hold the tokens of this pass.
        """
        if not self._decided:
            update = after - before
            self.skip = self.config.allows(self._in_a_row) and self._has_hardly_changed(update, sharing)
            self._in_a_row = self._in_a_row + 1 if self.skip else 0
            self._update, self._decided = self._update if self.skip else update, True
        return self.skip

    def _has_hardly_changed(self, update: Tensor, sharing: SequenceParallelGroup) -> bool:
        if self._update is None:
            return False
        sums = [(update - self._update).abs_(), self._update.abs()]
        gathered = self.group.all_gather(torch.stack([each.sum(dtype=torch.float64) for each in sums]))
        change, size = (torch.stack(gathered).sum(0) if sharing.size > 1 else gathered[0]).tolist()
        return bool(change < self.config.threshold * size)


class OtherBlocksResidual:
    """The sum of the updates of all blocks but the first, of one forward pass."""

    def __init__(self, cache: FirstBlockCache) -> None:
        self.cache = cache
        self.residual: Tensor | None = None  # of this process's tokens
        self._first: Tensor | None = None

    def run(self, tokens: Tensor, blocks: Blocks) -> Tensor:
        """The tokens after all blocks, [B, L, D], computed or from the residual."""
        return blocks(tokens, self)

    def after_first(self, before: Tensor, tokens: Tensor, group: SequenceParallelGroup) -> Tensor | None:
        """What comes out of all blocks, [B, l, D], if the others are skipped."""
        if self.cache.skips(before, tokens, group) and self.residual is not None:
            return tokens + self.residual
        self.residual, self._first = None, tokens
        return None

    def after_all(self, tokens: Tensor) -> None:
        """Keep the residual for later steps."""
        assert self._first is not None
        self.residual, self._first = tokens - self._first, None
