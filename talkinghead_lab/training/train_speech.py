"""Teaches the speech encoder what the mouth does: its last layer's states predict the viseme track."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from talkinghead_lab.models.speech_encoder import SpeechEncoder
from talkinghead_lab.training.corpus import Monologue
from talkinghead_lab.training.schedule import Budget, Run, dice
from talkinghead_lab.training.sounds import augment, non_speech
from talkinghead_lab.training.speech import SAMPLES_PER_FRAME

# Opening, width, rounding, teeth, tongue: what shows most weighs most.
CHANNEL_WEIGHTS = (4.0, 1.5, 1.5, 1.0, 0.5)
FRAMES = 129
NON_SPEECH_SHARE = 0.12


def embed(encoder: SpeechEncoder, waves: Tensor, frames: int) -> Tensor:
    """What `SpeechEncoder` gives for each of a batch of short recordings, [B, F, layers, channels].

    Args:
        waves: [B, samples], 16 kHz.
    """
    centred = waves - waves.mean(dim=1, keepdim=True)
    waves = centred / (waves.var(dim=1, keepdim=True, correction=0) + 1e-7).sqrt()
    features = encoder.feature_extractor(waves)
    features = F.interpolate(features.float(), size=frames, mode="linear", align_corners=True)
    rows = encoder.feature_projection(features.transpose(1, 2))[0]
    return torch.stack(list(encoder._layers(rows)), dim=2)


class Speech:
    """The monologues of a corpus on a device, from which stretches are cut at random."""

    def __init__(self, corpus: Sequence[Monologue], device: torch.device | str):
        self.wave = torch.cat([monologue.wave for monologue in corpus]).to(device)
        self.mouth = torch.cat([monologue.mouth for monologue in corpus]).float().to(device)
        self.device = device

    def cut(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """`count` disturbed stretches: waves [B, samples] and mouths [B, F, 5]; some are not speech."""
        start = torch.randint(len(self.mouth) - FRAMES, (count, 1), generator=generator, device=self.device)
        samples = FRAMES * SAMPLES_PER_FRAME
        offsets = torch.arange(samples, device=self.device)
        wave = self.wave[start * SAMPLES_PER_FRAME + offsets].float() / 32768
        mouth = self.mouth[start + torch.arange(FRAMES, device=self.device)]
        other = torch.rand(count, generator=generator, device=self.device) < NON_SPEECH_SHARE
        wave = torch.where(other[:, None], non_speech(count, samples, generator), wave)
        return augment(wave, generator), torch.where(other[:, None, None], 0.0, mouth)


def train_speech(
    encoder: SpeechEncoder,
    corpus: Sequence[Monologue],
    budget: Budget,
    seed: int,
    batch: int = 48,
    **options: Any,
) -> Run:
    """Train; the head that reads the track off the states is thrown away."""
    device = encoder.feature_projection.projection.weight.device
    speech = Speech(corpus, device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = nn.Linear(encoder.config.hidden_size, len(CHANNEL_WEIGHTS)).to(device)
    encoder.train().requires_grad_(True)
    run = Run("speech", nn.ModuleList([encoder, head]), budget, peak=1e-3, **options)
    weights = torch.tensor(CHANNEL_WEIGHTS, device=device)
    for step in run.steps():
        wave, mouth = speech.cut(batch, dice(seed, step, device))
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            states = embed(encoder, wave, FRAMES)
            read = head(states[:, :, -1]).float()
        error = (read - mouth).square().mean(dim=(0, 1))
        run.update(step, (weights * error).mean(), opening=correlation(read[..., 0], mouth[..., 0]))
    encoder.eval().requires_grad_(False)
    run.note(-1, disturbed_anew=mouth_is_heard(encoder, head, speech, seed))
    return run


@torch.no_grad()
def mouth_is_heard(encoder: SpeechEncoder, head: nn.Module, speech: Speech, seed: int) -> float:
    """Correlation of the opening read from the states with the truth, on disturbed stretches."""
    wave, mouth = speech.cut(64, dice(seed + 1, 0, speech.device))
    return float(correlation(head(embed(encoder, wave, FRAMES)[:, :, -1])[..., 0], mouth[..., 0]))


def correlation(first: Tensor, second: Tensor) -> Tensor:
    """Pearson's, over all entries."""
    return torch.corrcoef(torch.stack([first.detach().flatten().float(), second.flatten().float()]))[0, 1]
