"""Training clips: drawn frames, sound, caption and truth, made as they are needed.

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
    """What makes one clip, before it is drawn: `wave` [F · 640] at 16 kHz and the motion to it."""

    identity: Identity
    performance: Performance
    motion: Motion
    wave: Tensor


@dataclass(frozen=True)
class Batch:
    """Clips side by side.

    Args:
        frames: [B, F, 3, H, W] in [−1, 1].
        wave: [B, F · 640] at 16 kHz.
        captions: what moves, one a clip.
        motion: the truth, [B, F, …].
        identities: who is drawn.
    """

    frames: Tensor
    wave: Tensor
    captions: list[str]
    motion: Motion
    identities: list[Identity]


class ClipMaker:
    """Draws clips from a corpus, new ones at every call; the same seed gives the same clips.

    Args:
        corpus: monologues of one split.
        split: `train` or `test`: which identities may appear, and whether sound is disturbed.
        seed: of everything drawn.
        device: where frames are rendered and sound is disturbed.
        non_speech_share: the share of clips whose sound is not speech, with a shut mouth.
    """

    def __init__(
        self,
        corpus: list[Monologue],
        split: str,
        seed: int,
        device: torch.device | str = "cpu",
        non_speech_share: float = 0.08,
    ):
        self.corpus, self.split, self.device = corpus, split, torch.device(device)
        self.non_speech_share = non_speech_share
        self.dice = np.random.default_rng([seed, split == "test"])
        self.generator = Generator(self.device).manual_seed(seed)
        self.weights = np.array([monologue.frames for monologue in corpus], float)
        self.weights /= self.weights.sum()

    def batch(self, count: int, frames: int, size: int = 160) -> Batch:
        """`count` clips of `frames` frames, drawn at `size` pixels, with the sound to learn them from."""
        clips = [self.clip(frames) for _ in range(count)]
        motion = Motion.stack([clip.motion for clip in clips]).to(self.device)
        identities = [clip.identity for clip in clips]
        wave = torch.stack([clip.wave for clip in clips]).to(self.device)
        if self.split == "train":
            wave = augment(wave, self.generator)
        captions = [clip.performance.caption for clip in clips]
        return Batch(render(identities, motion, size), wave, captions, motion, identities)

    def clip(self, frames: int) -> Clip:
        """One clip: half begin a performance, facing the viewer; half are cut from the middle of one."""
        wave, mouth = self._sound(frames)
        performance = sample_performance(self.dice)
        start = 0 if self.dice.random() < 0.5 else int(self.dice.integers(LONGEST_PERFORMANCE - frames))
        pose, face = perform(performance, start + frames, self.dice)
        motion = Motion(mouth, pose[start:], face[start:])
        return Clip(self.identity(), performance, motion, wave)

    def identity(self) -> Identity:
        """A presenter of this split."""
        offset = FIRST_TEST_IDENTITY if self.split == "test" else 0
        return sample_identity(Generator().manual_seed(offset + int(self.dice.integers(FIRST_TEST_IDENTITY))))

    def _sound(self, frames: int) -> tuple[Tensor, Tensor]:
        if self.dice.random() < self.non_speech_share:
            generator = Generator().manual_seed(int(self.dice.integers(2**31)))
            return non_speech(1, frames * SAMPLES_PER_FRAME, generator)[0], torch.zeros(frames, 5)
        pace = self.dice.uniform(0.8, 1.25) if self.split == "train" and self.dice.random() < 0.7 else 1.0
        wanted = round(frames * pace)
        while True:
            monologue = self.corpus[self.dice.choice(len(self.corpus), p=self.weights)]
            if monologue.frames >= wanted:
                break
        start = int(self.dice.integers(monologue.frames - wanted + 1))
        samples = slice(start * SAMPLES_PER_FRAME, (start + wanted) * SAMPLES_PER_FRAME)
        wave = monologue.wave[samples].float() / 32768
        mouth = monologue.mouth[start : start + wanted]
        return stretch(wave, frames * SAMPLES_PER_FRAME), stretch(mouth.T, frames).T


def stretch(track: Tensor, length: int) -> Tensor:
    """[..., n] → [..., length] by linear interpolation, as a tape played at another speed."""
    if track.shape[-1] == length:
        return track
    flat = track.reshape(1, -1, track.shape[-1])
    longer = functional.interpolate(flat, length, mode="linear", align_corners=False)
    return longer.reshape(*track.shape[:-1], length)
