"""Training data of the two-speaker adapter: two presenters side by side, each with a voice of its own.

Each half of the frame shows one presenter, as the base model knows them. Both speak at once, take turns, or
one or both are silent; a silent presenter's mouth is shut.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from talkinghead_lab.training.avatar import POSE_CHANNELS, POSE_LIMITS, Identity, Motion, render
from talkinghead_lab.training.data import (
    VIDEO_FRAMES,
    EncodedVideos,
    encode_speech,
    encode_video,
)
from talkinghead_lab.training.dataset import Clip, ClipMaker
from talkinghead_lab.training.motion import sample_performance
from talkinghead_lab.training.networks import FRAME_SIZE
from talkinghead_lab.training.speech import SAMPLES_PER_FRAME
from talkinghead_lab.training.train_vae import to_bytes
from talkinghead_lab.weights.writing import Networks

# Share of each kind of conversation.
KINDS = {"both": 0.4, "turns": 0.25, "first": 0.14, "second": 0.14, "neither": 0.07}
TURN_FRAMES = (15, 60)  # frames of one turn
ROOM = ("backdrop", "backdrop_colour", "light_side", "light_warmth")
SHARED_ROOM_SHARE = 0.5
# Largest constant offset of a presenter from the middle of the half, in half-pictures, and of the scale.
OFFSETS = {"shift_x": 0.08, "shift_y": 0.05, "scale": 0.06}


@dataclass(frozen=True)
class Pair:
    """Two presenters: the clips of the left and the right one, of equal length."""

    left: Clip
    right: Clip

    @property
    def clips(self) -> tuple[Clip, Clip]:
        """Left and right."""
        return self.left, self.right

    @property
    def waves(self) -> Tensor:
        """[2, samples] at 16 kHz; zeros where someone is silent."""
        return torch.stack([clip.wave for clip in self.clips])

    @property
    def openings(self) -> Tensor:
        """True mouth openings [2, F]."""
        return torch.stack([clip.motion.mouth[:, 0] for clip in self.clips])


def draw_pair(maker: ClipMaker, frames: int, kind: str | None = None) -> Pair:
    """A random pair with the same performance, so that one caption describes both.

    Args:
        maker: draws the presenters, their motion and their voices.
        frames: length of the clips.
        kind: one of `KINDS`; None draws one.
    """
    rng = maker.rng
    kind = kind or str(rng.choice(list(KINDS), p=list(KINDS.values())))
    performance = sample_performance(rng)
    left, right = (_placed(maker.clip(frames, performance), rng) for _ in range(2))
    if rng.random() < SHARED_ROOM_SHARE:
        right = replace(right, identity=in_room_of(right.identity, left.identity))
    gates = _gates(kind, frames, rng)
    return Pair(*(_gated(clip, gate) for clip, gate in zip((left, right), gates, strict=True)))


def in_room_of(identity: Identity, host: Identity) -> Identity:
    """The presenter in front of another one's backdrop, in the same light."""
    return replace(identity, **{name: getattr(host, name) for name in ROOM})


def render_pairs(pairs: list[Pair], device: torch.device) -> Tensor:
    """Videos [B, F, 3, 160, 320] uint8."""
    clips = [clip for pair in pairs for clip in pair.clips]
    motion = Motion.stack([clip.motion for clip in clips]).to(device)
    halves = to_bytes(render([clip.identity for clip in clips], motion, FRAME_SIZE))
    return torch.cat([halves[::2], halves[1::2]], dim=-1)


class EncodedPairs(EncodedVideos):
    """Encoded videos of pairs; `speech` is [N, audio variants, F, 2, layers, channels]."""

    AT_ONCE = 8  # as many halves as one-person videos

    @classmethod
    def _encoded(
        cls, maker: ClipMaker, networks: Networks, count: int
    ) -> tuple[tuple[Tensor, ...], list[str]]:
        pairs = [draw_pair(maker, VIDEO_FRAMES) for _ in range(count)]
        return _encode(pairs, maker, networks), [pair.left.performance.caption for pair in pairs]

    @staticmethod
    def _by_speaker(windows: Tensor) -> Tensor:
        """The left presenter's windows are the first."""
        return windows.movedim(3, 1)


@torch.no_grad()
def _encode(pairs: list[Pair], maker: ClipMaker, networks: Networks) -> tuple[Tensor, ...]:
    voices = torch.stack([pair.waves for pair in pairs], dim=1)
    speech = [encode_speech(waves, maker, networks) for waves in voices]
    openings = torch.stack([pair.openings for pair in pairs]).to(maker.device)
    talking = openings.flatten(1).amax(dim=1) > 0
    video = render_pairs(pairs, maker.device)
    return *encode_video(video, networks), talking, torch.stack(speech, dim=3)


def _placed(clip: Clip, rng: np.random.Generator) -> Clip:
    """Move the presenter by a constant offset, within `POSE_LIMITS`."""
    pose = clip.motion.pose.clone()
    for name, largest in OFFSETS.items():
        channel = POSE_CHANNELS.index(name)
        offset = float(rng.uniform(-largest, largest))
        pose[:, channel] = (pose[:, channel] + offset).clamp(*POSE_LIMITS[name])
    return replace(clip, motion=replace(clip.motion, pose=pose))


def _gated(clip: Clip, gate: Tensor) -> Clip:
    """Silence a clip where its gate [F] is 0."""
    samples = gate.repeat_interleave(SAMPLES_PER_FRAME)
    motion = replace(clip.motion, mouth=clip.motion.mouth * gate[:, None])
    return replace(clip, wave=clip.wave * samples, motion=motion)


def _gates(kind: str, frames: int, rng: np.random.Generator) -> Tensor:
    """[2, F]: 1 while someone may speak; turns fade over three frames."""
    if kind != "turns":
        speaks = {"both": (1.0, 1.0), "first": (1.0, 0.0), "second": (0.0, 1.0), "neither": (0.0, 0.0)}
        return torch.tensor(speaks[kind])[:, None].expand(2, frames)
    turns = rng.integers(*TURN_FRAMES, frames // TURN_FRAMES[0] + 1)
    speaker = np.repeat(np.arange(len(turns)) + rng.integers(2), turns)[:frames] % 2
    first = torch.from_numpy(speaker == 0).float()
    gates = torch.stack([first, 1 - first])
    return functional.avg_pool1d(gates, 3, 1, 1, count_include_pad=False)
