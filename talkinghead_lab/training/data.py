"""Training data of the transformer: rendered videos, encoded once and sampled at random on the device.

Every video lasts two chunks. Its first frame is the portrait; the second chunk starts with the last frames of
the first, as in `sampling.chunks`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from talkinghead_lab.defaults import RELEASED_NEGATIVE_PROMPT
from talkinghead_lab.foundation.latent_grid import FRAMES_PER_LATENT, latent_frames
from talkinghead_lab.models.encoders.text import Tokenizer
from talkinghead_lab.models.vae.model import VAE
from talkinghead_lab.sampling.chunks import audio_windows, plan_chunks
from talkinghead_lab.training.avatar import Motion, render
from talkinghead_lab.training.dataset import Clip, ClipMaker
from talkinghead_lab.training.networks import FRAME_SIZE
from talkinghead_lab.training.sounds import augment
from talkinghead_lab.training.train_speech import embed
from talkinghead_lab.training.train_vae import ALL_LATENTS, from_bytes, to_bytes
from talkinghead_lab.weights.writing import Networks

CHUNK_FRAMES, OVERLAP_FRAMES = 81, 9
VIDEO_FRAMES = 2 * CHUNK_FRAMES - OVERLAP_FRAMES
CHUNKS = plan_chunks(VIDEO_FRAMES, CHUNK_FRAMES, OVERLAP_FRAMES)
LATENTS_AT_ONCE = 4  # latents decoded together: fast, with little memory
# Latents of zero frames stop changing after this many frames.
SETTLED_FRAMES = 45
# Augmented versions of the audio per video.
AUDIO_VARIANTS = 3
TEXT_DROPPED, AUDIO_DROPPED, BOTH_DROPPED = 0.12, 0.12, 0.05
# Share of examples with another speaker's audio, as in narrated films: the model learns to rely only partly
# on the audio, so audio guidance has a measurable effect.
NARRATED_SHARE = 0.5
# Largest standard deviation of the noise on overlap latents, and of a shift per channel: at inference they
# come from generated frames, whose colours may have drifted.
OVERLAP_NOISE, OVERLAP_SHIFT = 0.15, 0.1


@dataclass
class TrainingBatch:
    """Training examples: chunks with all conditions that sampling has.

    Args:
        latent: [B, C, T, h, w], the target.
        motion: [B, C, T, h, w], overlap latents; valid where `given`.
        given: [B, 1, T, 1, 1], true at the latent frames that the chunk starts with.
        condition: [B, 4 + C, T, h, w], mask and encoded portrait.
        portrait: [B, 3, H, W] in [−1, 1].
        windows: [B, P, F, window, layers, channels], speech embeddings of P voices.
        ids, mask: [B, N], tokens of the caption.
    """

    latent: Tensor
    motion: Tensor
    given: Tensor
    condition: Tensor
    portrait: Tensor
    windows: Tensor
    ids: Tensor
    mask: Tensor

    def with_text(self, ids: Tensor, mask: Tensor) -> "TrainingBatch":
        """The same batch with other captions."""
        return replace(self, ids=ids, mask=mask)


@dataclass
class EncodedVideos:
    """Encoded videos on a device.

    Args:
        portraits: [N, 3, H, W] uint8.
        conditions: [N, C, T, h, w], encoding of the portrait followed by zero frames.
        chunks: [N, 2, C, T, h, w] latents.
        motions: [N, C, overlap latents, h, w], start of the second chunk at inference: the last frames of the
            first one, decoded and encoded again.
        talking: [N], false where the audio is not speech.
        speech: [N, audio variants, F, layers, channels].
        ids, mask: [N, tokens] of the captions.
        dropped_ids, dropped_mask: [2, tokens] of the released negative prompt and an empty one.
    """

    portraits: Tensor
    conditions: Tensor
    chunks: Tensor
    motions: Tensor
    talking: Tensor
    speech: Tensor
    ids: Tensor
    mask: Tensor
    dropped_ids: Tensor
    dropped_mask: Tensor

    AT_ONCE: ClassVar[int] = 16  # videos that are rendered and encoded together

    def __post_init__(self) -> None:
        self.talking_videos = self.talking.nonzero().flatten()

    @classmethod
    def make(cls, maker: ClipMaker, networks: Networks, tokenizer: Tokenizer, count: int) -> Self:
        """Render and encode `count` videos."""
        parts: list[tuple[Tensor, ...]] = []
        captions: list[str] = []
        for start in range(0, count, cls.AT_ONCE):
            part, told = cls._encoded(maker, networks, min(cls.AT_ONCE, count - start))
            parts.append(part)
            captions += told
            if (start // cls.AT_ONCE) % 20 == 0:
                print("videos", start, flush=True)
        tokens, dropped = tokenizer(captions), tokenizer([RELEASED_NEGATIVE_PROMPT, ""])
        text = (t.to(maker.device) for t in (tokens.ids, tokens.mask, dropped.ids, dropped.mask))
        return cls(*(torch.cat(part) for part in zip(*parts, strict=True)), *text)

    @classmethod
    def _encoded(
        cls, maker: ClipMaker, networks: Networks, count: int
    ) -> tuple[tuple[Tensor, ...], list[str]]:
        """The fields of `count` new videos from `portraits` to `speech`, and their captions."""
        clips = [maker.clip(VIDEO_FRAMES) for _ in range(count)]
        return _encode(clips, maker, networks), [clip.performance.caption for clip in clips]

    @staticmethod
    def _by_speaker(windows: Tensor) -> Tensor:
        """Windows of speech [B, F, window, …] as [B, speakers, F, window, layers, channels]."""
        return windows[:, None]

    def draw(
        self,
        count: int,
        generator: torch.Generator,
        window: int,
        drops: bool = True,
        narrated: bool = False,
    ) -> TrainingBatch:
        """A batch of `count` random chunks.

        Args:
            window: frames of speech embeddings around each video frame.
            drops: drop text and audio at random, as classifier-free guidance requires.
            narrated: exchange the audio of some chunks for another speaker's.
        """
        device = self.portraits.device

        def chance(share: float, *shape: int) -> Tensor:
            return torch.rand(count, *shape, generator=generator, device=device) < share

        def pick(choices: int) -> Tensor:
            return torch.randint(choices, (count,), generator=generator, device=device)

        chosen, later, variant = pick(len(self.portraits)), pick(2), pick(self.speech.shape[1])
        both = chance(BOTH_DROPPED * drops)
        speaker = chosen
        if len(self.talking_videos):
            exchanged = chance(NARRATED_SHARE * narrated) & self.talking[chosen]
            speaker = torch.where(exchanged, self.talking_videos[pick(len(self.talking_videos))], chosen)
        windows = self.speech[speaker[:, None, None], variant[:, None, None], _windows(window, device)[later]]
        no_audio = (chance(AUDIO_DROPPED * drops) | both).view(-1, *[1] * (windows.ndim - 1))
        no_text = (chance(TEXT_DROPPED * drops) | both)[:, None]
        negative = pick(2)
        latent, overlap = self.chunks[chosen, later].float(), self.motions[chosen].float()
        length = overlap.shape[2]
        spread = torch.rand(2, count, 1, 1, 1, 1, generator=generator, device=device)
        noise = torch.randn(overlap.shape, generator=generator, device=device)
        shift = torch.randn(*overlap.shape[:2], 1, 1, 1, generator=generator, device=device)
        disturbed = overlap + OVERLAP_NOISE * spread[0] * noise + OVERLAP_SHIFT * spread[1] * shift
        overlap = torch.where(chance(0.7).view(-1, 1, 1, 1, 1), disturbed, overlap)
        start = torch.where((later > 0).view(-1, 1, 1, 1, 1), overlap, latent[:, :, :length])
        times = torch.arange(latent.shape[2], device=device)
        motion_latents = torch.where(later > 0, latent_frames(OVERLAP_FRAMES), 1)
        return TrainingBatch(
            latent=latent,
            motion=torch.cat([start, latent[:, :, length:]], dim=2),
            given=(times < motion_latents[:, None])[:, None, :, None, None],
            condition=with_mask(self.conditions[chosen].float()),
            portrait=from_bytes(self.portraits[chosen]),
            windows=self._by_speaker(torch.where(no_audio, 0.0, windows.float())),
            ids=torch.where(no_text, self.dropped_ids[negative], self.ids[chosen]),
            mask=torch.where(no_text, self.dropped_mask[negative], self.mask[chosen]),
        )


def with_mask(encoded: Tensor) -> Tensor:
    """Prepend mask channels, 1 at the first latent frame, to the encoded portrait [B, C, T, h, w]."""
    mask = encoded.new_zeros(len(encoded), FRAMES_PER_LATENT, *encoded.shape[2:])
    mask[:, :, 0] = 1
    return torch.cat([mask, encoded], dim=1)


def _windows(window: int, device: torch.device) -> Tensor:
    """[chunks, F, window]: rows of a video's speech embeddings that each chunk uses."""
    rows = torch.arange(VIDEO_FRAMES).view(-1, 1, 1)
    return torch.stack([audio_windows(rows, chunk, window)[..., 0, 0] for chunk in CHUNKS]).to(device)


@torch.no_grad()
def _encode(clips: Sequence[Clip], maker: ClipMaker, networks: Networks) -> tuple[Tensor, ...]:
    motion = Motion.stack([clip.motion for clip in clips]).to(maker.device)
    video = to_bytes(render([clip.identity for clip in clips], motion, FRAME_SIZE))
    speech = encode_speech(torch.stack([clip.wave for clip in clips]), maker, networks)
    talking = motion.mouth[..., 0].amax(dim=1) > 0
    return *encode_video(video, networks), talking, speech


def encode_speech(waves: Tensor, maker: ClipMaker, networks: Networks) -> Tensor:
    """Speech embeddings [B, audio variants, F, layers, channels] of waves [B, samples]."""
    waves = waves.to(maker.device)
    versions = [waves, *(augment(waves, maker.generator) for _ in range(AUDIO_VARIANTS - 1))]
    with torch.autocast(maker.device.type, torch.bfloat16, enabled=maker.device.type == "cuda"):
        rows = [embed(networks.speech_encoder, wave, VIDEO_FRAMES) for wave in versions]
    return torch.stack(rows, dim=1).half()


def encode_video(video: Tensor, networks: Networks) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The `portraits`, `conditions`, `chunks` and `motions` of videos [B, F, 3, H, W] uint8."""
    device = video.device
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        frames = from_bytes(video).transpose(1, 2)
        portrait = frames[:, :, :SETTLED_FRAMES] * (torch.arange(SETTLED_FRAMES, device=device) == 0).view(
            -1, 1, 1
        )
        chunks = [frames[:, :, chunk.start : chunk.start + chunk.frames] for chunk in CHUNKS]
        latents = torch.stack([encode(networks.vae, chunk) for chunk in chunks], dim=1)
        settled = encode(networks.vae, portrait)
        decoded = networks.vae.decode(latents[:, 0], LATENTS_AT_ONCE)
        motions = encode(networks.vae, decoded[:, :, -OVERLAP_FRAMES:])
        rest = latents.shape[3] - settled.shape[2]
        conditions = torch.cat([settled, settled[:, :, -1:].expand(-1, -1, rest, -1, -1)], dim=2)
    return video[:, 0], conditions.half(), latents.half(), motions.half()


def encode(vae: VAE, video: Tensor) -> Tensor:
    """`VAE.encode` in one piece: [B, 3, F, H, W] → [B, C, T, h, w]."""
    return vae.encode(video, ALL_LATENTS)
