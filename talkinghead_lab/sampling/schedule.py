"""Noise schedules: the timesteps of a chunk's steps."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from talkinghead_lab.sampling.config import SamplingConfig

TRAINED_TIMESTEPS = 1000


def schedule_of(config: SamplingConfig) -> Tensor:
    """The noise schedule of a request: [steps + 1] timesteps down to 0, float32."""
    if config.sigmas:
        return explicit_timesteps(config.sigmas)
    if config.sampler == "euler":
        return timesteps(config.steps, config.shift, config.strength)
    return flow_timesteps(config.steps, config.shift, config.strength)


def noised(source: Tensor, noise: Tensor, config: SamplingConfig) -> Tensor:
    """A source latent at the first noise level of the schedule, both float32 of one shape."""
    level = schedule_of(config)[0].item() / TRAINED_TIMESTEPS
    return level * noise + (1 - level) * source


def timesteps(steps: int, shift: float, strength: float = 1.0) -> Tensor:
    """Compute the released noise schedule: [steps + 1] timesteps from 1000 down to 0, float32.

    Even steps from 1000 to 1 and a last one at 0, shifted by t ← shift · t / (1 + (shift − 1) · t) on [0, 1]
    (Stable Diffusion 3, arXiv 2403.03206, section 5.3.2). A `strength` below 1 is the share of the 1000 from
    which the same number of steps begins.
    """
    even = torch.from_numpy(np.linspace(strength * TRAINED_TIMESTEPS, 1, steps, dtype=np.float32))
    return _shifted(torch.cat([even, torch.zeros(1)]), shift)


def flow_timesteps(steps: int, shift: float, strength: float = 1.0) -> Tensor:
    """Compute the noise schedule of diffusers' flow sigmas, in the form of `timesteps`.

    Even steps from the first on, of which the last one to 0 is as long as the others. The released schedule
    ends with a step from 1 to 0, where solvers of higher order gain nothing.
    """
    first = strength * TRAINED_TIMESTEPS
    even = torch.from_numpy(np.linspace(first, 1, steps + 1, dtype=np.float32)[:-1])
    return _shifted(torch.cat([even, torch.zeros(1)]), shift)


def explicit_timesteps(sigmas: Sequence[float]) -> Tensor:
    """The noise schedule of a list of noise levels, without the last, which is 0; they are not shifted."""
    return torch.tensor([*sigmas, 0.0]) * TRAINED_TIMESTEPS


def _shifted(times: Tensor, shift: float) -> Tensor:
    t = times / TRAINED_TIMESTEPS
    return shift * t / (1 + (shift - 1) * t) * TRAINED_TIMESTEPS
