"""How a chunk is sampled: steps, noise schedule, guidance and step cache."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

# A guidance scale, or its schedule: values that are spread evenly over the steps.
Scale = float | Sequence[float]


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
        threshold: change since the last computed step, up to which steps are skipped.
        coefficients: of the polynomial that estimates the change of the output, highest power first; None:
            the change of the first block's update is measured instead, as a share of that update.
        max_consecutive_skips: most steps skipped in a row; None: any number.
    """

    threshold: float
    coefficients: tuple[float, ...] | None = None
    max_consecutive_skips: int | None = None

    def allows(self, skipped: int) -> bool:
        """Whether one more step may be skipped after so many in a row."""
        return self.max_consecutive_skips is None or skipped < self.max_consecutive_skips


@dataclass(frozen=True)
class SamplingConfig:
    """Everything that sampling needs to know of a request.

    Args:
        steps: of the solver.
        shift: timestep shift of the noise schedule.
        text_scale: guidance scale of the prompt; 1 switches this guidance off.
        audio_scale: guidance scale of the recording; likewise.
        guidance_interval: guided steps, as shares of all; outside of them both scales are 1.
        projection: adaptive projected guidance; None: plain classifier-free guidance.
        sampler: the solver; see `solvers`.
        sigmas: noise levels of the steps, without the last 0, instead of a shifted schedule.
        strength: where the schedule begins, before the shift; below 1, sampling starts from a noised source.
        zero_star: CFG-Zero* (arXiv 2503.18886): scale what is subtracted by its projection.
        zero_init_steps: first steps in which the velocity is 0, without a forward pass (likewise).
        step_cache: None computes every forward pass.
        lora_scales: strengths of the LoRAs that are kept beside the weights, in order.
    """

    steps: int
    shift: float
    text_scale: Scale = 1.0
    audio_scale: Scale = 1.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    projection: ProjectionConfig | None = None
    step_cache: StepCacheConfig | None = None
    sampler: str = "euler"
    sigmas: tuple[float, ...] | None = None
    strength: float = 1.0
    zero_star: bool = False
    zero_init_steps: int = 0
    lora_scales: tuple[Scale, ...] = ()

    def text_scale_at(self, step: int) -> float:
        """The guidance scale of the prompt in a step."""
        return self._scale_at(self.text_scale, step)

    def audio_scale_at(self, step: int) -> float:
        """The guidance scale of the recording in a step."""
        return self._scale_at(self.audio_scale, step)

    def lora_scales_at(self, step: int) -> list[float]:
        """The strengths in a step of the LoRAs that are kept beside the weights."""
        return [_of_step(scale, step, self.steps) for scale in self.lora_scales]

    def _scale_at(self, scale: Scale, step: int) -> float:
        if step not in guided_steps(self.guidance_interval, self.steps):
            return 1.0
        return _of_step(scale, step, self.steps)

    @property
    def text_is_guided(self) -> bool:
        """Whether any step needs a forward pass without the prompt."""
        return any(is_guiding(self.text_scale_at(step)) for step in range(self.steps))

    @property
    def audio_is_guided(self) -> bool:
        """Whether any step needs a forward pass without the recording."""
        return any(is_guiding(self.audio_scale_at(step)) for step in range(self.steps))


def _of_step(scale: Scale, step: int, steps: int) -> float:
    return scale if isinstance(scale, int | float) else spread(scale, steps)[step]


def guided_steps(interval: tuple[float, float], steps: int) -> range:
    """The steps in an interval of shares, whose ends are rounded to whole steps."""
    first, last = (round(share * steps) for share in interval)
    return range(first, last)


def is_guiding(scale: float) -> bool:
    """Whether a guidance scale needs a forward pass without its condition."""
    return not math.isclose(scale, 1.0)


def spread(values: Sequence[float], steps: int) -> list[float]:
    """Spread values evenly over the steps: the first and the last step have the first and the last of them.

    Between them, it interpolates linearly; as many values as steps are the steps' own.
    """
    if len(values) == 1 or steps == 1:
        return [float(values[0])] * steps
    found = []
    for step in range(steps):
        below, rest = divmod(step * (len(values) - 1), steps - 1)
        above = min(below + 1, len(values) - 1)
        found.append(values[below] + (values[above] - values[below]) * (rest / (steps - 1)))
    return found
