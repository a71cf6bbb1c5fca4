"""Skips forward passes whose output would hardly differ from the last step's (TeaCache, arXiv 2411.19108)."""

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from talkinghead_lab.sampling.config import StepCacheConfig

# Polynomials that map the change of the time embedding to the change of the output, highest power first. The
# released fits, for the variant that always computes the first five steps.
COEFFICIENTS = {
    "infinitetalk-480": (2.57151496e05, -3.54229917e04, 1.40286849e03, -1.35890334e01, 1.32517977e-01),
    "infinitetalk-720": (8.10705460e03, 2.13393892e03, -3.72934672e02, 1.66203073e01, -4.17769401e-02),
}
FIRST_COMPUTED_STEPS = 5


def steps_to_skip(time_embeddings: Tensor, config: StepCacheConfig | None) -> list[bool]:
    """Decide for every step whether its forward passes are skipped.

    The decision depends on the timesteps alone. It is made once before sampling and holds for all branches,
    so no step waits for the device.

    Args:
        time_embeddings: [steps, 6, D], the blocks' modulation inputs.
        config: None computes every step.
    """
    if config is None:
        return [False] * len(time_embeddings)
    before, after = time_embeddings[:-1], time_embeddings[1:]
    changes = (after - before).abs().mean(dim=(1, 2)) / before.abs().mean(dim=(1, 2))
    estimates = np.polyval(config.coefficients, changes.double().cpu().numpy())
    skips, accumulated = [False], 0.0
    for step, estimate in enumerate(estimates, start=1):
        accumulated += float(estimate)
        skip = step >= FIRST_COMPUTED_STEPS and accumulated < config.threshold
        skips.append(skip)
        if not skip:
            accumulated = 0.0
    return skips


class ResidualCache:
    """The sum of all blocks' updates to the tokens, kept for one guidance branch."""

    def __init__(self) -> None:
        self.residual: Tensor | None = None

    def run(self, tokens: Tensor, blocks: Callable[[Tensor], Tensor], skip: bool, keep: bool) -> Tensor:
        """Run the blocks, or add the last residual again.

        Args:
            tokens: [B, L, D].
            blocks: computes the tokens after all blocks.
            skip: reuse the residual.
            keep: store the residual for a later step.

        Returns:
            Tokens after the blocks, [B, L, D].
        """
        if skip and self.residual is not None:
            return tokens + self.residual
        out = blocks(tokens)
        self.residual = out - tokens if keep else None
        return out


def steps_to_keep(skips: Sequence[bool]) -> list[bool]:
    """Tell for every step whether the next one is skipped, which needs its residual."""
    return [*skips[1:], False]
