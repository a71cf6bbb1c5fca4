"""Samples one latent chunk, step by step from noise."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import chain

import torch
from torch import Tensor

from talkinghead_lab.models.dit.conditions import AudioContext, CrossAttentionContext, TimeEmbedding
from talkinghead_lab.models.dit.model import DiT, FirstBlockShortcut
from talkinghead_lab.models.kernels.attention import Rotation
from talkinghead_lab.sampling.config import SamplingConfig
from talkinghead_lab.sampling.guidance import Branch, Guidance, branches_at
from talkinghead_lab.sampling.schedule import TRAINED_TIMESTEPS, schedule_of
from talkinghead_lab.sampling.solvers import solver_of
from talkinghead_lab.sampling.step_cache import PassCache, step_cache_of


def noise_generator(seed: int, index: int) -> torch.Generator:
    """The generator of all noise of one chunk, on the CPU, so devices agree.

    Its seed is a hash of seed and chunk number, so any chunk can be reproduced alone.
    """
    digest = hashlib.sha256(f"{seed}/{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def chunk_noise(seed: int, index: int, shape: tuple[int, ...]) -> Tensor:
    """Draw the standard normal noise that a chunk starts from, float32."""
    return torch.randn(shape, generator=noise_generator(seed, index))


@dataclass(frozen=True)
class KeptLatent:
    """What stays of a source latent; all [1, C or 1, T, h, w].

    Args:
        source: the latent.
        noise: that the chunk starts from.
        sampled: 1 where the chunk is sampled, 0 where the source is kept.
    """

    source: Tensor
    noise: Tensor
    sampled: Tensor

    def apply(self, latent: Tensor, level: float) -> Tensor:
        """Put the source, at a noise level from 0 to 1, where it is kept."""
        return torch.where(self.sampled > 0, latent, torch.lerp(self.source, self.noise, level))


@dataclass
class ChunkConditions:
    """Everything that stays constant while a chunk is sampled.

    Args:
        picture: mask and encoded first frame, [1, 4 + C, T, h, w].
        image: context of the picture.
        texts: contexts of the prompt (True) and the negative prompt (False).
        audios: contexts of the recording (True) and of silence (False).
        motion: latents of the overlap frames, [1, C, motion latents, h, w], or of the picture.
        rotation: rotary positions of the chunk.
        regions: speaker regions [3, S], or None for one speaker.
        kept: what stays of a source latent at every step.
    """

    picture: Tensor
    image: CrossAttentionContext
    texts: Mapping[bool, CrossAttentionContext]
    audios: Mapping[bool, AudioContext]
    motion: Tensor
    rotation: Rotation
    regions: Tensor | None
    kept: KeptLatent | None = None


@dataclass
class PassCount:
    """Counts the forward passes that are computed, and those that a step cache skips."""

    computed: int = 0
    skipped: int = 0


@dataclass
class _Step:
    """The forward passes of one step, each with the cache of its branch.

    `spread`: processes may compute whole passes of their own; otherwise they share the tokens of each.
    """

    model: DiT
    conditions: ChunkConditions
    caches: Mapping[Branch, PassCache]
    latent: Tensor
    time: TimeEmbedding
    spread: bool
    tokens: Tensor = field(init=False)
    without_residual: int = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = self.model.patchify(self.latent, self.conditions.picture)
        self.without_residual = sum(cache.residual is None for cache in self.caches.values())

    def computed(self, skip: bool) -> int:
        """The number of forward passes that all processes together computed."""
        if not skip:
            return len(self.caches)
        return 0 if self.spread else self.without_residual  # others have those of other processes' passes

    def velocities(self) -> dict[Branch, Tensor]:
        """Compute the velocity of every branch.

        With several processes, each computes one branch, for as many full rounds as there are. The processes
        share the tokens of the remaining branches.
        """
        velocities: dict[Branch, Tensor] = {}
        branches, share = list(self.caches), self.model.group
        together = len(branches) % share.size if self.spread else len(branches)
        for first in range(0, len(branches) - together, share.size):
            at_once = branches[first : first + share.size]
            own = self.velocity(at_once[share.rank], alone=True)
            velocities |= zip(at_once, share.all_gather(own), strict=True)
        for branch in branches[len(branches) - together :]:
            velocities[branch] = self.velocity(branch, alone=False)
        return velocities

    def velocity(self, branch: Branch, alone: bool) -> Tensor:
        run = partial(self._run_blocks, branch, alone)
        out = self.caches[branch].run(self.tokens, run)
        return self.model.unpatchify(out, self.time, self.latent.shape)

    def _run_blocks(
        self, branch: Branch, alone: bool, tokens: Tensor, shortcut: FirstBlockShortcut | None
    ) -> Tensor:
        conditions = self.conditions
        return self.model.run_blocks(
            tokens,
            self.time,
            conditions.rotation,
            conditions.texts[branch.prompt],
            conditions.image,
            conditions.audios[branch.audio],
            conditions.regions,
            alone,
            shortcut,
        )


def _time_embeddings(model: DiT, timesteps: Tensor, config: SamplingConfig) -> TimeEmbedding:
    """The embeddings of all steps, each with the LoRA strengths of its step."""
    if not config.lora_scales:
        return model.time_embedding_of(timesteps)
    of_steps = []
    for step, timestep in enumerate(timesteps.split(1)):
        model.lora_strengths.set(config.lora_scales_at(step))
        of_steps.append(model.time_embedding_of(timestep))
    return TimeEmbedding(*(torch.cat([getattr(e, part) for e in of_steps]) for part in ("head", "blocks")))


@torch.inference_mode()
def sample_chunk(
    model: DiT,
    noise: Tensor,
    conditions: ChunkConditions,
    config: SamplingConfig,
    on_step: Callable[[int], None] = lambda step: None,
    passes: PassCount | None = None,
    generator: torch.Generator | None = None,
    embed_again: Callable[[], ChunkConditions] | None = None,
) -> Tensor:
    """Integrate from noise to a latent chunk, both [1, C, T, h, w] in float32.

    Args:
        model: predicts the velocity.
        noise: the starting point.
        conditions: constant during the chunk.
        config: solver, steps, noise schedule, guidance and step cache.
        on_step: called with the number of finished steps; an exception that it raises ends the sampling.
        passes: counts the forward passes.
        generator: draws the noise that solvers add on their way.
        embed_again: makes the conditions again once the LoRA strengths of a step are set.
    """
    passes = passes or PassCount()
    schedule = schedule_of(config).to(noise.device)
    times = _time_embeddings(model, schedule[:-1], config)
    cache = step_cache_of(config, times.blocks, model.group)
    guidance, branches = Guidance(config), [branches_at(config, step) for step in range(config.steps)]
    caches: dict[Branch, PassCache] = {branch: cache.new_pass() for branch in dict.fromkeys(chain(*branches))}
    # Only the process that computed a whole pass has its residual. Where the passes change from step to step,
    # another process may have to compute that pass later, and would wait forever for those that skip it.
    spread = config.step_cache is None or len(set(branches)) == 1
    solver = solver_of(config.sampler, schedule, generator, config.zero_init_steps)
    latent, motion_latents = noise.clone(), conditions.motion.shape[2]
    levels = (schedule / TRAINED_TIMESTEPS).tolist()
    if conditions.kept is not None:
        latent = conditions.kept.apply(latent, levels[0])
    latent[:, :, :motion_latents] = conditions.motion
    for step in range(config.steps):
        of_step = {branch: caches[branch] for branch in branches[step]}
        if of_step:
            if config.lora_scales:
                model.lora_strengths.set(config.lora_scales_at(step))
                conditions = conditions if embed_again is None else embed_again()
            cache.begin(step)
            step_passes = _Step(model, conditions, of_step, latent, times.at(step), spread)
            latent = solver.move(latent, guidance.combine(step_passes.velocities(), step), step)
            passes.computed += step_passes.computed(cache.skip)
            passes.skipped += len(of_step) - step_passes.computed(cache.skip)
        if not cache.skip:  # a pass that this step leaves out must not reuse the residual of an older step
            for branch in caches.keys() - of_step.keys():
                caches[branch].residual = None
        if conditions.kept is not None:
            latent = conditions.kept.apply(latent, levels[step + 1])
        latent[:, :, :motion_latents] = conditions.motion
        on_step(step + 1)
    return latent
