"""Classifier-free guidance by text and audio, and adaptive projected guidance."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from talkinghead_lab.params import GenerationParams


@dataclass(frozen=True)
class Branch:
    """What one forward of a step is told: the prompt or the negative prompt, the recording or silence."""

    prompt: bool
    audio: bool


CONDITIONAL = Branch(prompt=True, audio=True)
DROP_TEXT = Branch(prompt=False, audio=True)
DROP_AUDIO = Branch(prompt=True, audio=False)
UNCONDITIONAL = Branch(prompt=False, audio=False)


@dataclass
class AdaptiveProjection:
    """Adaptive projected guidance (arXiv 2410.02416).

    Updates are averaged, bounded, and keep only `eta` of their part along the prediction.
    """

    momentum: float
    norm_threshold: float
    eta: float = 0.0
    average: Tensor | float = 0.0

    def __call__(self, update: Tensor, prediction: Tensor) -> Tensor:
        """Turn a guidance difference into an update; `momentum` carries over between calls."""
        self.average = update + self.momentum * self.average
        update = self.average
        if self.norm_threshold > 0:
            update = update * (self.norm_threshold / update.norm()).clamp(max=1.0)
        direction = prediction.double() / prediction.double().norm().clamp(min=1e-12)
        along = (update.double() * direction).sum() * direction
        return (update.double() - (1 - self.eta) * along).to(update.dtype)


@dataclass
class Guidance:
    """Which forwards a step needs, in order, and how their velocities combine.

    v = v(∅, ∅) + text · (v(p, a) − v(∅, a)) + audio · (v(∅, a) − v(∅, ∅)) for prompt p and recording a. A
    scale of 1 makes one of the forwards unnecessary; with the text scale at 1 the recording is dropped from
    the prompted forward instead, as the model was trained.
    """

    text_scale: float
    audio_scale: float
    text_guided: bool
    audio_guided: bool
    text_projection: AdaptiveProjection | None = None
    audio_projection: AdaptiveProjection | None = None
    branches: tuple[Branch, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.branches = (CONDITIONAL,)
        if self.text_guided:
            self.branches += (DROP_TEXT, UNCONDITIONAL) if self.audio_guided else (DROP_TEXT,)
        elif self.audio_guided:
            self.branches += (DROP_AUDIO,)

    @classmethod
    def of(cls, params: GenerationParams) -> "Guidance":
        """A fresh guidance for one chunk of a request."""
        projections = [
            AdaptiveProjection(params.apg_momentum, params.apg_norm_threshold) if params.use_apg else None
            for _ in range(2)
        ]
        return cls(
            params.text_guide_scale,
            params.audio_guide_scale,
            params.text_is_guided,
            params.audio_is_guided,
            *projections,
        )

    def combine(self, velocities: Mapping[Branch, Tensor]) -> Tensor:
        """One velocity from those of the branches."""
        conditional = velocities[CONDITIONAL]
        guided = conditional
        if self.text_guided:
            difference = conditional - velocities[DROP_TEXT]
            guided = guided + self._update(difference, self.text_scale, self.text_projection, conditional)
        if self.audio_guided:
            heard, unheard = (DROP_TEXT, UNCONDITIONAL) if self.text_guided else (CONDITIONAL, DROP_AUDIO)
            difference = velocities[heard] - velocities[unheard]
            guided = guided + self._update(difference, self.audio_scale, self.audio_projection, conditional)
        return guided

    @staticmethod
    def _update(
        difference: Tensor, scale: float, projection: AdaptiveProjection | None, conditional: Tensor
    ) -> Tensor:
        return (scale - 1) * (difference if projection is None else projection(difference, conditional))
