"""How a chunk is sampled: steps, noise schedule, guidance and step cache."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class ProjectionConfig:
    """Adaptive projected guidance (arXiv 2410.02416).

    Args:
        momentum: of the running average of guidance updates.
        norm_threshold: longest update; 0 leaves the length alone.
    """

    momentum: float
    norm_threshold: float


@dataclass(frozen=True)
class StepCacheConfig:
    """When forward passes are skipped; see `step_cache`.

    Args:
        threshold: estimated change that may accumulate before a forward pass is computed again.
        coefficients: of the polynomial that estimates the change of the output, highest power first.
    """

    threshold: float
    coefficients: tuple[float, ...]


@dataclass(frozen=True)
class SamplingConfig:
    """Everything that sampling needs to know of a request.

    Args:
        steps: Euler steps.
        shift: timestep shift of the noise schedule.
        text_scale: guidance scale of the prompt; 1 switches this guidance off.
        audio_scale: guidance scale of the recording; likewise.
        projection: adaptive projected guidance; None: plain classifier-free guidance.
        step_cache: None computes every forward pass.
    """

    steps: int
    shift: float
    text_scale: float = 1.0
    audio_scale: float = 1.0
    projection: ProjectionConfig | None = None
    step_cache: StepCacheConfig | None = None

    @property
    def text_is_guided(self) -> bool:
        """Whether a step needs a forward pass without the prompt."""
        return not math.isclose(self.text_scale, 1.0)

    @property
    def audio_is_guided(self) -> bool:
        """Whether a step needs a forward pass without the recording."""
        return not math.isclose(self.audio_scale, 1.0)
