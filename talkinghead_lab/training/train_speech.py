"""Train the speech encoder to predict the viseme track from its last layer."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from talkinghead_lab.models.encoders.speech import SpeechEncoder
from talkinghead_lab.training.corpus import Monologue
from talkinghead_lab.training.schedule import Budget, NetworkTraining, step_generator
from talkinghead_lab.training.sounds import augment, non_speech
from talkinghead_lab.training.speech import SAMPLES_PER_FRAME

# Loss weights of opening, width, rounding, teeth and tongue, by visibility.
CHANNEL_WEIGHTS = (4.0, 1.5, 1.5, 1.0, 0.5)
FRAMES = 129
NON_SPEECH_SHARE = 0.12
# Slower or faster playback sounds like a larger or smaller speaker.
PACES = (0.78, 1.28)


def embed(encoder: SpeechEncoder, waves: Tensor, frames: int) -> Tensor:
    """Speech embeddings [B, F, layers, channels] of a batch, equal to `SpeechEncoder` on each recording.

    Args:
        waves: [B, samples] at 16 kHz.
        frames: F, number of video frames.
    """
    centred = waves - waves.mean(dim=1, keepdim=True)
    waves = centred / (waves.var(dim=1, keepdim=True, correction=0) + 1e-7).sqrt()
    features = encoder.feature_extractor(waves)
    features = F.interpolate(features.float(), size=frames, mode="linear", align_corners=True)
    rows = encoder.feature_projection(features.transpose(1, 2))[0]
    return torch.stack(list(encoder.layer_states(rows)), dim=2)


class Speech:
    """All monologues of a corpus on a device, for cutting random segments."""

    def __init__(self, corpus: Sequence[Monologue], device: torch.device | str) -> None:
        self.wave = torch.cat([monologue.wave for monologue in corpus]).to(device)
        self.mouth = torch.cat([monologue.mouth for monologue in corpus]).float().to(device)
        self.device = device

    def cut(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """`count` augmented segments: waves [B, samples] and mouths [B, F, 5]; some are not speech."""

        def uniform(low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(count, 1, generator=generator, device=self.device)

        pace = PACES[0] * (PACES[1] / PACES[0]) ** uniform(0, 1)
        start = uniform(0, len(self.mouth) - 1 - FRAMES * PACES[1]).floor()
        samples = FRAMES * SAMPLES_PER_FRAME
        # A frame shows the mouth at the middle of its samples.
        sample_times = (torch.arange(samples, device=self.device) + 0.5) * pace - 0.5
        frame_times = (torch.arange(FRAMES, device=self.device) + 0.5) * pace - 0.5
        wave = interpolate(self.wave, start * SAMPLES_PER_FRAME, sample_times) / 32768
        mouth = interpolate(self.mouth, start, frame_times)
        other = uniform(0, 1) < NON_SPEECH_SHARE
        wave = torch.where(other, non_speech(count, samples, generator), wave)
        return augment(wave, generator), torch.where(other[..., None], 0.0, mouth)


def interpolate(track: Tensor, start: Tensor, times: Tensor) -> Tensor:
    """Values of track [n, …] at start [B, 1] plus fractional times [B, m], by linear interpolation."""
    # Integer and fractional parts are separate: float32 cannot hold both for an hour of samples.
    integer, fraction = times.floor(), times - times.floor()
    index = (start.long() + integer.long()).clamp(0, len(track) - 2)
    fraction = fraction.view(*fraction.shape, *[1] * (track.ndim - 1))
    return torch.lerp(track[index].float(), track[index + 1].float(), fraction)


def train_speech(
    encoder: SpeechEncoder,
    corpus: Sequence[Monologue],
    budget: Budget,
    seed: int,
    batch: int = 48,
    **options: Any,
) -> NetworkTraining:
    """Train the encoder; the linear head that predicts the track is discarded."""
    device = encoder.feature_projection.projection.weight.device
    speech = Speech(corpus, device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = nn.Linear(encoder.config.hidden_size, len(CHANNEL_WEIGHTS)).to(device)
    encoder.train().requires_grad_(True)
    modules = nn.ModuleList([encoder, head])
    run = NetworkTraining("speech", modules, budget, peak=1e-3, matrix_peak=2e-3, **options)
    weights = torch.tensor(CHANNEL_WEIGHTS, device=device)
    waves, mouths = speech.cut(batch, step_generator(seed, 0, device))

    def compute() -> dict[str, Tensor]:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda", cache_enabled=False):
            predicted = head(embed(encoder, waves, FRAMES)[:, :, -1]).float()
        error = (predicted - mouths).square().mean(dim=(0, 1))
        return {"loss": (weights * error).mean(), "opening": correlation(predicted[..., 0], mouths[..., 0])}

    advance = None
    for step in run.steps():
        advance = advance or run.captured(compute)
        for buffer, drawn in zip(
            (waves, mouths), speech.cut(batch, step_generator(seed, step, device)), strict=True
        ):
            buffer.copy_(drawn)
        run.after_step(step, **advance())
    encoder.eval().requires_grad_(False)
    run.note(-1, disturbed_anew=opening_correlation(encoder, head, speech, seed))
    return run


@torch.no_grad()
def opening_correlation(encoder: SpeechEncoder, head: nn.Module, speech: Speech, seed: int) -> float:
    """Correlation of predicted and true opening on new augmented segments."""
    wave, mouth = speech.cut(64, step_generator(seed + 1, 0, speech.device))
    return float(correlation(head(embed(encoder, wave, FRAMES)[:, :, -1])[..., 0], mouth[..., 0]))


def correlation(first: Tensor, second: Tensor) -> Tensor:
    """Pearson correlation over all entries."""
    # `torch.corrcoef` reads a value on the host, so a CUDA graph cannot capture it.
    x, y = (values.detach().flatten().float() for values in (first, second))
    x, y = x - x.mean(), y - y.mean()
    cosine: Tensor = (x * y).sum() / (x.norm() * y.norm())
    return cosine
