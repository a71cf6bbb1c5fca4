"""Generates the videos of an evaluation: several cases in a batch, with the sampler of the pipeline."""

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from talkinghead_lab.foundation.latent_grid import LatentGrid
from talkinghead_lab.media.colors import match_colors
from talkinghead_lab.models.encoders.text import Tokenizer
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.pipeline.request import sampling_config
from talkinghead_lab.sampling.chunk_sampling import ChunkConditions, chunk_noise, sample_chunk
from talkinghead_lab.sampling.chunks import audio_windows, plan_chunks
from talkinghead_lab.sampling.seams import SeamBlend
from talkinghead_lab.training.avatar import Identity, Motion, render
from talkinghead_lab.training.data import LATENTS_AT_ONCE, VIDEO_FRAMES, with_mask
from talkinghead_lab.training.dataset import ClipMaker
from talkinghead_lab.training.networks import FRAME_SIZE, TEXT_TOKENS
from talkinghead_lab.training.train import load_networks
from talkinghead_lab.training.train_speech import embed
from talkinghead_lab.training.train_vae import to_bytes
from talkinghead_lab.weights import locating
from talkinghead_lab.weights.writing import Networks


@dataclass(frozen=True)
class EvaluationCases:
    """Inputs and ground truth of the evaluation.

    Args:
        identities: presenter of each case.
        portraits: [B, 3, H, W] in [−1, 1], frontal with a closed mouth.
        waves: [B, samples] at 16 kHz.
        captions: prompt of each case.
        openings: [B, F], true mouth opening.
        actions: the action that each caption describes.
    """

    identities: list[Identity]
    portraits: Tensor
    waves: Tensor
    captions: list[str]
    openings: Tensor
    actions: list[str]

    @classmethod
    def draw(cls, maker: ClipMaker, count: int, frames: int = VIDEO_FRAMES) -> "EvaluationCases":
        """Random cases of `frames` frames."""
        clips = [maker.clip(frames) for _ in range(count)]
        identities = [clip.identity for clip in clips]
        still = Motion.stack([Motion.still(1)] * count).to(maker.device)
        return cls(
            identities,
            render(identities, still, FRAME_SIZE)[:, 0],
            torch.stack([clip.wave for clip in clips]).to(maker.device),
            [clip.performance.caption for clip in clips],
            torch.stack([clip.motion.mouth[:, 0] for clip in clips]).to(maker.device),
            [clip.performance.action for clip in clips],
        )

    def part(self, start: int, stop: int) -> "EvaluationCases":
        """Cases `start` … `stop` − 1."""
        return EvaluationCases(*(value[start:stop] for value in vars(self).values()))


@dataclass
class VideoSampler:
    """Generates videos of several cases in a batch with the pipeline's sampler.

    Args:
        at_once: videos in a batch.
        regions: speaker regions [3, S], with two speakers only.
    """

    networks: Networks
    tokenizer: Tokenizer
    device: torch.device
    at_once: int
    regions: Tensor | None = None

    @classmethod
    def load(cls, weights: Path, device: torch.device, adapter: Path = locating.ADAPTER) -> "VideoSampler":
        """With the networks of a folder in the released layout and one of its adapters."""
        tokenizer = Tokenizer(weights / "ckpt_dir" / locating.TOKENIZER, TEXT_TOKENS)
        networks = load_networks(weights, adapter).to(device)
        return cls(networks, tokenizer, device, 32 if device.type == "cuda" else 2)

    @torch.no_grad()
    def videos(self, cases: EvaluationCases, params: GenerationParams) -> Tensor:
        """Videos [B, F, 3, H, W] uint8."""
        parts = range(0, len(cases.captions), self.at_once)
        return torch.cat([self._videos(cases.part(i, i + self.at_once), params, i) for i in parts])

    def _videos(self, cases: EvaluationCases, params: GenerationParams, seed: int) -> Tensor:
        cuda = self.device.type == "cuda"
        fast = torch.autocast("cuda", torch.bfloat16) if cuda else nullcontext()
        networks, dit, vae = self.networks, self.networks.dit, self.networks.vae
        config = sampling_config(params)
        count, frames = len(cases.captions), cases.openings.shape[-1]
        voices = cases.waves.view(count, -1, cases.waves.shape[-1])
        chunks = plan_chunks(frames, params.chunk_frames, params.motion_frame, params.trim_last_chunk)
        made: list[Tensor] = []
        with fast:
            speech = embed(networks.speech_encoder, voices.flatten(0, 1), frames).float()
            texts = networks.text_encoder.encode([*cases.captions, params.negative_prompt], self.tokenizer)
            contexts = {True: dit.text_context(texts[:-1]), False: dit.text_context(texts[-1:] * count)}
            image = dit.image_context(networks.image_encoder(cases.portraits))
            picture = vae.encode_first_frame_then_zeros(cases.portraits, params.chunk_frames)
            motion = picture[:, :, :1]
            for chunk in chunks:
                if chunk.repeated:
                    motion = vae.encode(made[-1][:, :, -chunk.repeated :], 100)
                windows = [audio_windows(row, chunk, dit.config.audio_window) for row in speech]
                audio = torch.stack(windows).unflatten(0, voices.shape[:2])
                grid = LatentGrid(chunk.frames, *cases.portraits.shape[-2:])
                shape = grid.latent_shape(vae.config.z_dim)
                noises = [chunk_noise(params.drawn_seed + seed + i, chunk.index, shape) for i in range(count)]
                silence = torch.zeros_like(audio[:, :1])
                conditions = ChunkConditions(
                    picture=with_mask(picture[:, :, : grid.latent_frames].float()),
                    image=image,
                    texts=contexts,
                    audios={True: dit.audio_context(audio), False: dit.audio_context(silence)},
                    motion=motion.float(),
                    rotation=dit.rotation(shape, self.device),
                    regions=self.regions,
                )
                latent = sample_chunk(dit, torch.stack(noises).to(self.device), conditions, config)
                out = vae.decode(latent, LATENTS_AT_ONCE)
                if params.use_color_correction:
                    strength = params.color_correction_strength
                    pairs = zip(out, cases.portraits, strict=True)
                    out = torch.stack([match_colors(video, one, strength) for video, one in pairs])
                if made and params.seam_frames:
                    out = SeamBlend(made[-1][:, :, -1:], chunk.repeated, params.seam_frames)(out)
                made.append(out)
        new = [
            video[:, :, chunk.repeated : chunk.repeated + chunk.new]
            for video, chunk in zip(made, chunks, strict=True)
        ]
        return to_bytes(torch.cat(new, dim=2).transpose(1, 2))
