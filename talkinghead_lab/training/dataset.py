"""Training clips: rendered frames, audio, caption and ground truth, made on demand.

clips = ClipMaker(load_corpus(Path("train.safetensors")), "train", seed=0, device="cuda")
batch = clips.batch(16, frames=81)     # batch.frames: [16, 81, 3, 160, 160] in [−1, 1]
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional

from talkinghead_lab.training.avatar import Identity, Motion, render, sample_identity
from talkinghead_lab.training.corpus import Monologue
from talkinghead_lab.training.identity import FIRST_TEST_IDENTITY
from talkinghead_lab.training.motion import Performance, perform, sample_performance
from talkinghead_lab.training.sounds import augment, non_speech
from talkinghead_lab.training.speech import SAMPLES_PER_FRAME

LONGEST_PERFORMANCE = 500


@dataclass(frozen=True)
class Clip:
    """One clip before rendering: `wave` [F · 640] at 16 kHz, and the motion aligned with it."""

    identity: Identity
    performance: Performance
    motion: Motion
    wave: Tensor


@dataclass(frozen=True)
class ClipBatch:
    """Rendered clips as a batch.

    Args:
        frames: [B, F, 3, H, W] in [−1, 1].
        wave: [B, F · 640] at 16 kHz.
        captions: one per clip, describing the motion.
        motion: the ground truth, [B, F, …].
        identities: presenter of each clip.
    """

    frames: Tensor
    wave: Tensor
    captions: list[str]
    motion: Motion
    identities: list[Identity]


class ClipMaker:
    """Makes new clips from a corpus at every call; the same seed gives the same clips.

    Args:
        corpus: monologues of one split.
        split: `train` or `test`; selects the identities, and `train` augments the audio.
        seed: of all random choices.
        device: where frames are rendered and audio is augmented.
        non_speech_share: share of clips with non-speech audio and a closed mouth.
    """

    def __init__(
        self,
        corpus: list[Monologue],
        split: str,
        seed: int,
        device: torch.device | str = "cpu",
        non_speech_share: float = 0.08,
    ) -> None:
        self.corpus, self.split, self.device = corpus, split, torch.device(device)
        self.non_speech_share = non_speech_share
        self.rng = np.random.default_rng([seed, split == "test"])
        self.generator = Generator(self.device).manual_seed(seed)
        self.weights = np.array([monologue.frames for monologue in corpus], float)
        self.weights /= self.weights.sum()

    def batch(self, count: int, frames: int, size: int = 160) -> ClipBatch:
        """`count` clips of `frames` frames, rendered at `size` pixels, with their audio."""
        clips = [self.clip(frames) for _ in range(count)]
        motion = Motion.stack([clip.motion for clip in clips]).to(self.device)
        identities = [clip.identity for clip in clips]
        wave = torch.stack([clip.wave for clip in clips]).to(self.device)
        if self.split == "train":
            wave = augment(wave, self.generator)
        captions = [clip.performance.caption for clip in clips]
        return ClipBatch(render(identities, motion, size), wave, captions, motion, identities)

    def clip(self, frames: int, performance: Performance | None = None) -> Clip:
        """One clip. Half start with a performance, facing the viewer; half are cut from the middle of one.

        Without a `performance`, a random one is drawn.
        """
        wave, mouth = self._sound(frames)
        performance = performance or sample_performance(self.rng)
        start = 0 if self.rng.random() < 0.5 else int(self.rng.integers(LONGEST_PERFORMANCE - frames))
        pose, face = perform(performance, start + frames, self.rng)
        motion = Motion(mouth, pose[start:], face[start:])
        return Clip(self.identity(), performance, motion, wave)

    def identity(self) -> Identity:
        """A random presenter of this split."""
        offset = FIRST_TEST_IDENTITY if self.split == "test" else 0
        return sample_identity(Generator().manual_seed(offset + int(self.rng.integers(FIRST_TEST_IDENTITY))))

    def _sound(self, frames: int) -> tuple[Tensor, Tensor]:
        if self.rng.random() < self.non_speech_share:
            generator = Generator().manual_seed(int(self.rng.integers(2**31)))
            return non_speech(1, frames * SAMPLES_PER_FRAME, generator)[0], torch.zeros(frames, 5)
        pace = self.rng.uniform(0.8, 1.25) if self.split == "train" and self.rng.random() < 0.7 else 1.0
        wanted = round(frames * pace)
        while True:
            monologue = self.corpus[self.rng.choice(len(self.corpus), p=self.weights)]
            if monologue.frames >= wanted:
                break
        start = int(self.rng.integers(monologue.frames - wanted + 1))
        samples = slice(start * SAMPLES_PER_FRAME, (start + wanted) * SAMPLES_PER_FRAME)
        wave = monologue.wave[samples].float() / 32768
        mouth = monologue.mouth[start : start + wanted]
        return stretch(wave, frames * SAMPLES_PER_FRAME), stretch(mouth.T, frames).T


def stretch(track: Tensor, length: int) -> Tensor:
    """Resample [..., n] to [..., length] linearly; for audio this changes speed and pitch."""
    if track.shape[-1] == length:
        return track
    flat = track.reshape(1, -1, track.shape[-1])
    longer = functional.interpolate(flat, length, mode="linear", align_corners=False)
    return longer.reshape(*track.shape[:-1], length)
