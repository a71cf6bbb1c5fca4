"""Classifier-free guidance by text and audio, and adaptive projected guidance."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from talkinghead_lab.sampling.config import ProjectionConfig, SamplingConfig, is_guiding


@dataclass(frozen=True)
class Branch:
    """The conditions of one forward pass: prompt or negative prompt, recording or silence."""

    prompt: bool
    audio: bool


CONDITIONAL = Branch(prompt=True, audio=True)
DROP_TEXT = Branch(prompt=False, audio=True)
DROP_AUDIO = Branch(prompt=True, audio=False)
UNCONDITIONAL = Branch(prompt=False, audio=False)


@dataclass
class AdaptiveProjection:
    """Adaptive projected guidance (arXiv 2410.02416).

    Updates are averaged, bounded in length, and made orthogonal to the prediction.
    """

    config: ProjectionConfig
    average: Tensor | float = 0.0

    def __call__(self, update: Tensor, prediction: Tensor) -> Tensor:
        """Turn a guidance difference into an update; the running average carries over between calls."""
        self.average = update + self.config.momentum * self.average
        update = self.average
        if self.config.norm_threshold > 0:
            update = update * (self.config.norm_threshold / update.norm()).clamp(max=1.0)
        direction = prediction.double() / prediction.double().norm().clamp(min=1e-12)
        along = (update.double() * direction).sum() * direction
        projected: Tensor = update.double() - along
        return projected.to(update.dtype)


def branches_at(config: SamplingConfig, step: int) -> tuple[Branch, ...]:
    """The forward passes of a step, in order; none while the velocity is 0."""
    if step < config.zero_init_steps:
        return ()
    if is_guiding(config.text_scale_at(step)):
        audio_is_guided = is_guiding(config.audio_scale_at(step))
        return (CONDITIONAL, DROP_TEXT, UNCONDITIONAL) if audio_is_guided else (CONDITIONAL, DROP_TEXT)
    return (CONDITIONAL, DROP_AUDIO) if is_guiding(config.audio_scale_at(step)) else (CONDITIONAL,)


def planned_passes(config: SamplingConfig) -> tuple[int, ...]:
    """The number of forward passes of every step of a chunk; a step cache may skip some of them."""
    return tuple(len(branches_at(config, step)) for step in range(config.steps))


class Guidance:
    """How the velocities of a step's forward passes combine.

    v = v(∅, ∅) + text · (v(p, a) − v(∅, a)) + audio · (v(∅, a) − v(∅, ∅)) for prompt p and recording a. A
    scale of 1 makes one of the forward passes unnecessary. With the text scale at 1, the recording is dropped
    from the prompted pass instead, as the model was trained. Holds running averages over the guided steps:
    use one per chunk.
    """

    def __init__(self, config: SamplingConfig):
        self.config = config
        projection = config.projection
        self._text_projection = AdaptiveProjection(projection) if projection else None
        self._audio_projection = AdaptiveProjection(projection) if projection else None

    def combine(self, velocities: Mapping[Branch, Tensor], step: int = 0) -> Tensor:
        """Combine the velocities of the step's branches into one."""
        conditional = velocities[CONDITIONAL]
        text, audio = self.config.text_scale_at(step), self.config.audio_scale_at(step)
        guided = conditional
        if is_guiding(text):
            difference = self._difference(conditional, velocities[DROP_TEXT])
            guided = guided + _update(difference, text, self._text_projection, conditional)
        if is_guiding(audio):
            pair = (DROP_TEXT, UNCONDITIONAL) if is_guiding(text) else (CONDITIONAL, DROP_AUDIO)
            difference = self._difference(*(velocities[branch] for branch in pair))
            guided = guided + _update(difference, audio, self._audio_projection, conditional)
        return guided

    def _difference(self, with_condition: Tensor, without: Tensor) -> Tensor:
        """What a condition changes; CFG-Zero* leaves out the part that both have in common."""
        if not self.config.zero_star:
            return with_condition - without
        flat = without.double().flatten()
        share = with_condition.double().flatten().dot(flat) / flat.dot(flat).clamp(min=1e-12)
        return with_condition - share.to(without.dtype) * without


def _update(
    difference: Tensor, scale: float, projection: AdaptiveProjection | None, conditional: Tensor
) -> Tensor:
    return (scale - 1) * (difference if projection is None else projection(difference, conditional))
