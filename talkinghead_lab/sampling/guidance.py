"""Classifier-free guidance by text and audio, and adaptive projected guidance."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from talkinghead_lab.sampling.config import ProjectionConfig, SamplingConfig


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


class Guidance:
    """Which forward passes a step needs, in order, and how their velocities combine.

    v = v(∅, ∅) + text · (v(p, a) − v(∅, a)) + audio · (v(∅, a) − v(∅, ∅)) for prompt p and recording a. A
    scale of 1 makes one of the forward passes unnecessary. With the text scale at 1, the recording is dropped
    from the prompted pass instead, as the model was trained. Holds running averages: use one per chunk.
    """

    def __init__(self, config: SamplingConfig):
        self.config = config
        self.branches: tuple[Branch, ...] = (CONDITIONAL,)
        if config.text_is_guided:
            self.branches += (DROP_TEXT, UNCONDITIONAL) if config.audio_is_guided else (DROP_TEXT,)
        elif config.audio_is_guided:
            self.branches += (DROP_AUDIO,)
        projection = config.projection
        self._text_projection = AdaptiveProjection(projection) if projection else None
        self._audio_projection = AdaptiveProjection(projection) if projection else None

    def combine(self, velocities: Mapping[Branch, Tensor]) -> Tensor:
        """Combine the branches' velocities into one."""
        config, conditional = self.config, velocities[CONDITIONAL]
        guided = conditional
        if config.text_is_guided:
            difference = conditional - velocities[DROP_TEXT]
            guided = guided + _update(difference, config.text_scale, self._text_projection, conditional)
        if config.audio_is_guided:
            with_audio, without = (
                (DROP_TEXT, UNCONDITIONAL) if config.text_is_guided else (CONDITIONAL, DROP_AUDIO)
            )
            difference = velocities[with_audio] - velocities[without]
            guided = guided + _update(difference, config.audio_scale, self._audio_projection, conditional)
        return guided


def _update(
    difference: Tensor, scale: float, projection: AdaptiveProjection | None, conditional: Tensor
) -> Tensor:
    return (scale - 1) * (difference if projection is None else projection(difference, conditional))
