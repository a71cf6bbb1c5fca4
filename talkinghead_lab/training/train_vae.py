"""Train the video autoencoder on rendered clips with absolute and squared error."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from talkinghead_lab.models.vae.layers import CausalConv3d, CausalState, Downsample, Upsample
from talkinghead_lab.models.vae.model import VAE
from talkinghead_lab.training.avatar import Motion, render
from talkinghead_lab.training.dataset import ClipMaker
from talkinghead_lab.training.schedule import Budget, NetworkTraining, step_generator

ALL_LATENTS = 1000  # latent frames per piece: more than any clip has
# Noise on the latents, whose standard deviation is about one, and weight of the penalty on their size.
LATENT_NOISE, LATENT_WEIGHT = 0.05, 2e-4
# Rows and columns with eyes and mouth, as shares of the picture; errors there have more weight.
FACE_ROWS, FACE_COLUMNS, FACE_WEIGHT = (0.38, 0.85), (0.25, 0.75), 2.5


@dataclass(frozen=True)
class Phase:
    """Steps until the share `end` of the budget: segments of `frames` frames, cropped to `size` pixels."""

    end: float
    batch: int
    frames: int
    size: int

    def __str__(self) -> str:
        crops = f"{self.size} × {self.size} pixels"
        return f"to {self.end:.0%}: {self.batch} × {self.frames} frames of {crops}"


# Still pictures teach most at the least cost. Video follows: the causal layers look back over many frames, so
# training only near the start of a video would not generalise to later frames.
PHASES = (Phase(0.3, 16, 1, 160), Phase(0.65, 4, 17, 112), Phase(1.0, 2, 49, 112))


@torch.no_grad()
def render_clips(maker: ClipMaker, count: int, frames: int, size: int, at_once: int = 16) -> Tensor:
    """Render clips [count, frames, 3, size, size] uint8 on the maker's device."""
    rendered = []
    for start in range(0, count, at_once):
        clips = [maker.clip(frames) for _ in range(min(at_once, count - start))]
        motion = Motion.stack([clip.motion for clip in clips]).to(maker.device)
        rendered.append(to_bytes(render([clip.identity for clip in clips], motion, size)))
    return torch.cat(rendered)


def to_bytes(frames: Tensor) -> Tensor:
    """Convert [−1, 1] to uint8."""
    return ((frames + 1) * 127.5).round().clamp(0, 255).byte()


def from_bytes(frames: Tensor) -> Tensor:
    """Convert uint8 to float32 in [−1, 1]."""
    return frames.float() / 127.5 - 1


def face_weights(size: int, device: torch.device | str) -> Tensor:
    """Error weights [size, size] of mean 1."""
    weights = torch.ones(size, size, device=device)
    (top, bottom), (left, right) = (
        [round(share * size) for share in shares] for shares in (FACE_ROWS, FACE_COLUMNS)
    )
    weights[top:bottom, left:right] = FACE_WEIGHT
    return weights / weights.mean()


def start_with_still_pictures(vae: VAE) -> None:
    """Initialise the layers so that every frame passes through like a still picture.

    Residual branches start small, and the layers outside them preserve variance. Convolutions mostly use the
    newest frame; temporal downsampling averages, upsampling repeats.
    """
    for name, layer in vae.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Conv3d):
            # PyTorch's default has a third of the variance that preserves the signal's variance.
            layer.weight.data *= 0.3 if name.endswith("residual.6") else 3**0.5
    for layer in vae.modules():
        if isinstance(layer, CausalConv3d) and layer.kernel_size == (3, 3, 3):
            layer.weight.data[:, :, :-1] *= 0.1
        elif isinstance(layer, Downsample) and layer.time_conv is not None:
            _pass_through(layer.time_conv, taps=(0.0, 0.5, 0.5), copies=1)
        elif isinstance(layer, Upsample) and layer.time_conv is not None:
            _pass_through(layer.time_conv, taps=(0.0, 0.0, 1.0), copies=2)


def _pass_through(convolution: nn.Conv3d, taps: tuple[float, ...], copies: int) -> None:
    identity = torch.eye(convolution.in_channels).repeat(copies, 1)
    taught = torch.stack([tap * identity for tap in taps], dim=-1)[..., None, None]
    convolution.weight.data.mul_(0.3).add_(taught.to(convolution.weight))


def reconstruct(vae: VAE, video: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Reconstructed frames [B, 3, F, H, W], not clamped, and the latent without added noise."""
    encoder_state: CausalState = {}
    latent = vae.conv1(vae.encoder(video, encoder_state), encoder_state).chunk(2, dim=1)[0].float()
    noisy = latent if noise is None else latent + LATENT_NOISE * noise
    decoder_state: CausalState = {}
    return vae.decoder(vae.conv2(noisy, decoder_state), decoder_state).float(), latent


def train_vae(
    vae: VAE, clips: Tensor, budget: Budget, seed: int, phases: Sequence[Phase] = PHASES, **options: Any
) -> NetworkTraining:
    """Train on random segments of clips [N, F, 3, H, W] uint8, then measure the latent statistics."""
    start_with_still_pictures(vae)
    vae.train().requires_grad_(True)
    run = NetworkTraining(
        "vae", nn.ModuleList([vae]), budget, peak=1.5e-3, matrix_peak=4e-3, weight_decay=0.0, **options
    )
    phase, phase_steps = None, None
    for step in run.steps():
        wanted = next(phase for phase in phases if run.progress < phase.end)
        if wanted is not phase:
            phase, phase_steps = wanted, _PhaseSteps(run, vae, clips, wanted)
            phase_steps.prepare(step, seed)
        assert phase_steps is not None
        phase_steps.fill(step, seed)
        run.after_step(step, **phase_steps.advance())
    vae.eval().requires_grad_(False)
    measure_latents(vae, clips[:256])
    return run


class _PhaseSteps:
    """Steps of one phase, computed from buffers of fixed size."""

    def __init__(self, run: NetworkTraining, vae: VAE, clips: Tensor, phase: Phase) -> None:
        self.run, self.vae, self.clips, self.phase = run, vae, clips, phase
        device, per_latent = clips.device, vae.config.frames_per_latent
        small = phase.size // vae.config.pixels_per_latent
        shape = (phase.batch, vae.config.z_dim, 1 + (phase.frames - 1) // per_latent, small, small)
        self.video = torch.zeros(phase.batch, 3, phase.frames, phase.size, phase.size, device=device)
        self.noise = torch.zeros(shape, device=device)
        self.weights = torch.ones(phase.size, phase.size, device=device)

    def prepare(self, step: int, seed: int) -> None:
        """Capture the step, with filled buffers because capturing performs a few optimiser steps."""
        self.fill(step, seed)
        self.advance = self.run.captured(self._compute)

    def _compute(self) -> dict[str, Tensor]:
        device = self.video.device.type
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda", cache_enabled=False):
            frames, latent = reconstruct(self.vae, self.video, self.noise)
        error = frames - self.video
        weighted = (self.weights * (0.5 * error.abs() + 8 * error.square())).mean()
        loss = weighted + LATENT_WEIGHT * latent.square().mean()
        return {"loss": loss, "decibels": psnr(frames, self.video), "spread": latent.square().mean().sqrt()}

    def fill(self, step: int, seed: int) -> None:
        """Write the random examples of a step into the buffers."""
        generator, phase = step_generator(seed, step, self.clips.device), self.phase
        room = self.clips.shape[-1] - phase.size + 1
        top, left = (int(x) for x in torch.randint(room, (2,), generator=step_generator(seed, step)))
        cut = (..., slice(top, top + phase.size), slice(left, left + phase.size))
        self.weights.copy_(face_weights(self.clips.shape[-1], self.clips.device)[cut])
        self.video.copy_(random_segments(self.clips[cut], phase.batch, phase.frames, generator))
        self.noise.copy_(torch.randn(self.noise.shape, generator=generator, device=self.noise.device))


def random_segments(clips: Tensor, batch: int, frames: int, generator: torch.Generator) -> Tensor:
    """Segments [batch, 3, frames, H, W] in [−1, 1] of clips [N, F, 3, H, W] uint8; half are mirrored."""
    device = clips.device
    chosen = torch.randint(len(clips), (batch,), generator=generator, device=device)
    start = torch.randint(clips.shape[1] - frames + 1, (batch, 1), generator=generator, device=device)
    video = from_bytes(clips[chosen[:, None], start + torch.arange(frames, device=device)])
    mirrored = torch.rand(batch, 1, 1, 1, 1, generator=generator, device=device) < 0.5
    return torch.where(mirrored, video.flip(-1), video).transpose(1, 2)


def psnr(frames: Tensor, truth: Tensor) -> Tensor:
    """PSNR in dB of frames in [−1, 1]."""
    return -10 * ((frames.detach().clamp(-1, 1) - truth).float().square().mean() / 4).log10()


@torch.no_grad()
def measure_latents(vae: VAE, clips: Tensor) -> None:
    """Measure the mean and standard deviation with which `VAE.encode` normalises each latent channel."""
    means = torch.cat(
        [
            vae.posterior(from_bytes(part).transpose(1, 2), ALL_LATENTS)[0].cpu()
            for part in torch.split(clips, 16)
        ]
    )
    vae.config = replace(
        vae.config,
        latent_mean=tuple(round(x, 4) for x in means.mean(dim=(0, 2, 3, 4)).tolist()),
        latent_std=tuple(round(x, 4) for x in means.std(dim=(0, 2, 3, 4)).tolist()),
    )


@torch.no_grad()
def reconstruction_psnr(vae: VAE, clips: Tensor) -> float:
    """Mean PSNR in dB over clips [N, F, 3, H, W] uint8, with the calls of the pipeline."""
    values = []
    for part in torch.split(clips, 4):
        video = from_bytes(part).transpose(1, 2)
        out = vae.decode(vae.encode(video, ALL_LATENTS), ALL_LATENTS)
        values += [float(psnr(one, truth)) for one, truth in zip(out, video, strict=True)]
    return sum(values) / len(values)
