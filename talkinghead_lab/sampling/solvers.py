"""Solvers carry a latent from one noise level to the next: Euler, and those of diffusers."""

import importlib.util
from typing import Any, Protocol

import torch
from torch import Tensor

from talkinghead_lab.errors import MissingExtra
from talkinghead_lab.sampling.schedule import TRAINED_TIMESTEPS

# The first level of solvers that take its logarithmic signal-to-noise ratio, which at 1 is minus infinity.
HIGHEST_LEVEL = 1 - 1e-6


class Solver(Protocol):
    """Moves a latent along the velocities of consecutive steps."""

    def move(self, latent: Tensor, velocity: Tensor, step: int) -> Tensor:
        """The latent at the next noise level."""
        ...


class Euler:
    """The released solver: a straight line at the velocity of the step.

    Args:
        schedule: timesteps, [steps + 1], the last of which is 0.
    """

    def __init__(self, schedule: Tensor) -> None:
        self.moves: list[float] = ((schedule[:-1] - schedule[1:]) / TRAINED_TIMESTEPS).tolist()

    def move(self, latent: Tensor, velocity: Tensor, step: int) -> Tensor:
        """The latent at the next noise level."""
        return latent - velocity * self.moves[step]


class DiffusersSolver:
    """A scheduler of diffusers, on our noise levels.

    Args:
        scheduler: for a flow; it keeps what it needs of earlier steps.
        schedule: as for `Euler`.
        generator: draws the noise that the scheduler adds.
        first_step: the first that moves the latent.
    """

    def __init__(
        self, scheduler: Any, schedule: Tensor, generator: torch.Generator | None = None, first_step: int = 0
    ) -> None:
        levels = schedule.cpu() / TRAINED_TIMESTEPS
        scheduler.set_timesteps(len(levels) - 1)
        if "solver_order" in scheduler.config:
            levels = levels.clamp(max=HIGHEST_LEVEL)
        scheduler.sigmas, scheduler.timesteps = levels, levels[:-1] * TRAINED_TIMESTEPS
        scheduler.set_begin_index(first_step)
        # Only schedulers that add noise take a generator of it.
        self.noise = {"generator": generator} if generator is not None else {}
        self.scheduler = scheduler

    def move(self, latent: Tensor, velocity: Tensor, step: int) -> Tensor:
        """The latent at the next noise level."""
        time = self.scheduler.timesteps[step]
        moved: Tensor = self.scheduler.step(velocity, time, latent, return_dict=False, **self.noise)[0]
        return moved


def check_solver(name: str) -> None:
    """Check that a solver is installed.

    Raises:
        MissingExtra: it is not.
    """
    if name != "euler" and importlib.util.find_spec("diffusers") is None:
        remedy = "Run `pip install 'talkinghead_lab[samplers]'`, or set `sampler: euler`."
        raise MissingExtra(f"the sampler {name} needs the extra `samplers`", remedy=remedy)


def solver_of(
    name: str, schedule: Tensor, generator: torch.Generator | None = None, first_step: int = 0
) -> Solver:
    """Make the solver of a chunk; arguments as for `DiffusersSolver`.

    Raises:
        MissingExtra: it is not installed.
    """
    if name == "euler":
        return Euler(schedule)
    check_solver(name)
    import diffusers  # importing it takes seconds

    multistep: dict[str, Any] = {
        "prediction_type": "flow_prediction", "use_flow_sigmas": True, "solver_order": 2,
    }  # fmt: skip
    if name == "unipc":
        return DiffusersSolver(diffusers.UniPCMultistepScheduler(**multistep), schedule, None, first_step)
    if name == "dpm++2m":
        return DiffusersSolver(diffusers.DPMSolverMultistepScheduler(**multistep), schedule, None, first_step)
    assert generator is not None, "without one, the noise would be that of the process"
    return DiffusersSolver(diffusers.FlowMatchLCMScheduler(), schedule, generator, first_step)
