"""Skips transformer forwards that would hardly differ from the step before (TeaCache, arXiv 2411.19108)."""

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

# Polynomials from the change of the time embedding to that of the output, highest power first: the released
# fits for the variant that always computes the first five steps.
COEFFICIENTS = {
    "infinitetalk-480": (2.57151496e05, -3.54229917e04, 1.40286849e03, -1.35890334e01, 1.32517977e-01),
    "infinitetalk-720": (8.10705460e03, 2.13393892e03, -3.72934672e02, 1.66203073e01, -4.17769401e-02),
}
FIRST_COMPUTED_STEPS = 5


def steps_to_skip(time_embeddings: Tensor, threshold: float | None, resolution: str) -> list[bool]:
    """Decide for every step whether its forwards are skipped.

    The decision depends on the timesteps alone, so it is made once before sampling and holds for every branch
    and every chunk: nothing waits for the device inside a step.

    Args:
        time_embeddings: [steps, 6, D], as the blocks take them.
        threshold: estimated change that may build up before a forward is computed again; None computes all.
    """
    if threshold is None:
        return [False] * len(time_embeddings)
    before, after = time_embeddings[:-1], time_embeddings[1:]
    changes = (after - before).abs().mean(dim=(1, 2)) / before.abs().mean(dim=(1, 2))
    estimates = np.polyval(COEFFICIENTS[resolution], changes.double().cpu().numpy())
    skips, built_up = [False], 0.0
    for step, estimate in enumerate(estimates, start=1):
        built_up += float(estimate)
        skip = step >= FIRST_COMPUTED_STEPS and built_up < threshold
        skips.append(skip)
        if not skip:
            built_up = 0.0
    return skips


class ResidualCache:
    """What the blocks added to the tokens when one guidance branch was last computed."""

    def __init__(self) -> None:
        self.residual: Tensor | None = None

    def run(self, tokens: Tensor, blocks: Callable[[Tensor], Tensor], skip: bool, keep: bool) -> Tensor:
        """Tokens after the blocks: computed, or the last residual added again.

        Args:
            tokens: [B, L, D].
            skip: reuse the residual.
            keep: a later step will reuse this one's residual.
        """
        if skip and self.residual is not None:
            return tokens + self.residual
        out = blocks(tokens)
        self.residual = out - tokens if keep else None
        return out


def steps_to_keep(skips: Sequence[bool]) -> list[bool]:
    """For every step whether the next one is skipped, so that its residual must be kept."""
    return [*skips[1:], False]
