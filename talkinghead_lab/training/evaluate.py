"""Measure the bundled model on sentences, voices and presenters that it was not trained on."""

import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from talkinghead_lab.foundation.latent_grid import FRAMES_PER_SECOND, LatentGrid
from talkinghead_lab.media.colors import match_colors
from talkinghead_lab.models.encoders.text import Tokenizer
from talkinghead_lab.models.judges.face_reader import HeadPose, head_pose, mouth_opening
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.pipeline.request import sampling_config
from talkinghead_lab.sampling.chunk_sampling import ChunkConditions, chunk_noise, sample_chunk
from talkinghead_lab.sampling.chunks import audio_windows, plan_chunks
from talkinghead_lab.sampling.seams import SeamBlend
from talkinghead_lab.training.avatar import Identity, Motion, render
from talkinghead_lab.training.corpus import build_corpus, load_corpus
from talkinghead_lab.training.data import LATENTS_AT_ONCE, VIDEO_FRAMES, with_mask
from talkinghead_lab.training.dataset import ClipMaker
from talkinghead_lab.training.eyes import Blinks, lid_openings
from talkinghead_lab.training.networks import FRAME_SIZE, TEXT_TOKENS
from talkinghead_lab.training.scores import (
    LARGEST_LAG,
    background_drift,
    caption_is_obeyed,
    correlations_at_lags,
    identity_psnr,
    movement,
    seam_jumps,
)
from talkinghead_lab.training.speech import SAMPLES_PER_FRAME
from talkinghead_lab.training.train import load_networks
from talkinghead_lab.training.train_speech import embed
from talkinghead_lab.training.train_vae import reconstruction_psnr, render_clips, to_bytes
from talkinghead_lab.weights import locating
from talkinghead_lab.weights.lora import merge_lora
from talkinghead_lab.weights.writing import Networks

Table = dict[str, dict[str, float]]
OBEYED = ("nodding", "shaking", "left", "right", "up", "leaning")
LONG_FRAMES = 60 * FRAMES_PER_SECOND


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


def readings(videos: Tensor, read: Callable[[Tensor], Tensor]) -> Tensor:
    """[B, F]: `read` applied to the frames of each uint8 video, scaled to [−1, 1]."""
    return torch.stack([read(video.float() / 127.5 - 1) for video in videos])


def interval(values: Sequence[float] | Tensor) -> dict[str, float]:
    """Mean, half-width of its 95 % confidence interval, and count of the finite values."""
    x = torch.as_tensor(values, dtype=torch.float64).flatten()
    x = x[x.isfinite()]
    half = 1.96 * x.std().item() / math.sqrt(len(x)) if len(x) > 1 else math.nan
    return {"mean": x.mean().item(), "interval": half, "count": len(x)}


@dataclass
class Evaluation:
    """Measures of one checkpoint, in groups.

    Args:
        params: default preset; its paths and prompt are not used.
        fast: preset with the LoRA.
        keep: receives the first videos of every kind for contact sheets.
    """

    sampler: VideoSampler
    cases: EvaluationCases
    params: GenerationParams
    fast: GenerationParams
    keep: dict[str, Tensor] = field(default_factory=dict)

    def make(
        self, name: str, cases: EvaluationCases | None = None, preset: GenerationParams | None = None
    ) -> Tensor:
        """Generate videos of one kind, [B, F, 3, H, W] uint8."""
        videos = self.sampler.videos(cases or self.cases, preset or self.params)
        self.keep[name] = videos[:8]
        print("made", name, file=sys.stderr, flush=True)
        return videos

    @cached_property
    def default(self) -> Tensor:
        """Videos of the default preset."""
        return self.make("default")

    @cached_property
    def opening(self) -> Tensor:
        """Mouth opening [B, F] measured on the default videos."""
        return readings(self.default, mouth_opening)

    def lip_sync(self) -> Table:
        """Correlation with the true opening, and with that of another clip."""
        wrong = correlations_at_lags(self.opening, self.cases.openings.roll(1, 0))[:, LARGEST_LAG]
        return _lip_sync(self.opening, self.cases.openings, "default") | {"wrong recording": interval(wrong)}

    def audio_guidance(self) -> Table:
        """Effect of the audio guidance scale on lip sync."""
        correlations = {}
        for scale in (1.0, 4.0):
            preset = self.params.replace(audio_guide_scale=scale)
            opening = readings(self.make(f"audio {scale:g}", preset=preset), mouth_opening)
            correlations[scale] = correlations_at_lags(opening, self.cases.openings)[:, LARGEST_LAG]
        return {f"audio guidance {scale:g}": interval(values) for scale, values in correlations.items()} | {
            "audio guidance 4 less 1": interval(correlations[4.0] - correlations[1.0])
        }

    def silence(self) -> Table:
        """Mouth opening without speech, excluding the first frames, which still resemble the portrait."""
        noise = 1e-4 * torch.randn(self.cases.waves.shape, generator=torch.Generator().manual_seed(0))
        quiet = replace(self.cases, waves=noise.to(self.cases.waves))
        openings = readings(self.make("silence", quiet), mouth_opening)[:, 5:].mean(dim=1)
        return {
            "silence, opening": interval(openings),
            "silence over speech": interval(openings / self.opening[:, 5:].mean()),
        }

    def captions(self) -> Table:
        """Share of captions whose head motion is followed, at two text guidance scales."""
        asked = [i for i, action in enumerate(self.cases.actions) if action in OBEYED]
        obeyed = {}
        for scale in (1.0, 5.0):
            videos = self.make(f"text {scale:g}", preset=self.params.replace(text_guide_scale=scale))
            done = [caption_is_obeyed(pose_of(videos[i]), self.cases.actions[i]) for i in asked]
            obeyed[scale] = torch.tensor(done).double()
        return {f"captions obeyed, text {scale:g}": interval(done) for scale, done in obeyed.items()} | {
            "captions obeyed, 5 less 1": interval(obeyed[5.0] - obeyed[1.0])
        }

    def liveliness(self) -> Table:
        """Head movement under a caption that asks for stillness, relative to a lively one."""
        moves = {}
        for name, manner in (("still", "keeping still"), ("lively", "lively")):
            captions = [f"a person talks, {manner}"] * len(self.cases.captions)
            videos = self.make(name, replace(self.cases, captions=captions))
            moves[name] = torch.tensor([movement(pose_of(video)) for video in videos])
        return {"still over lively": interval(moves["still"] / moves["lively"].mean())}

    def pictures(self, maker: ClipMaker) -> Table:
        """Identity PSNR, autoencoder PSNR over a full chunk, and seam visibility."""
        count, vae = len(self.cases.captions), self.sampler.networks.vae
        unseen = render_clips(maker, count, self.params.chunk_frames, FRAME_SIZE)
        return {
            "identity PSNR": interval(identity_psnr(self.default, self.cases.identities)),
            "VAE PSNR": interval([reconstruction_psnr(vae, unseen[i : i + 1]) for i in range(count)]),
            "seams": interval(seam_jumps(self.default, self.params.chunk_frames)),
        }

    def eyes(self) -> Table:
        """Blinks a minute, and the share of them that shut one eye alone; drawn presenters blink 15 times."""
        shown = zip(self.default, self.cases.identities, strict=True)
        blinks = [Blinks.of(lid_openings(video.float() / 127.5 - 1, who)) for video, who in shown]
        one_sided = [each.one_sided / each.count for each in blinks if each.count]
        return {
            "blinks a minute": interval([60 * each.count / each.seconds for each in blinks]),
            "blinks of one eye": interval(one_sided or [math.nan]),
        }

    def minute(self, maker: ClipMaker, count: int) -> Table:
        """Colour drift and lip sync of 60-second videos; shorter recordings are looped."""
        frames = min(LONG_FRAMES, *(monologue.frames for monologue in maker.corpus))
        cases = EvaluationCases.draw(maker, count, frames)
        times = math.ceil(LONG_FRAMES / frames)
        waves = cases.waves.repeat(1, times)[:, : LONG_FRAMES * SAMPLES_PER_FRAME]
        openings = cases.openings.repeat(1, times)[:, :LONG_FRAMES]
        videos = self.make("minute", replace(cases, waves=waves, openings=openings))
        self.keep["minute"] = videos[:4, ::75]
        correlations = correlations_at_lags(readings(videos, mouth_opening), openings)[:, LARGEST_LAG]
        return {"drift": interval(background_drift(videos)), "minute, correlation": interval(correlations)}

    def distilled(self, lora: Path) -> Table:
        """Measure the fast preset; the LoRA stays merged into the transformer."""
        merge_lora(self.sampler.networks.dit, lora, 1.0)
        videos = self.make("fast", preset=self.fast)
        table = _lip_sync(readings(videos, mouth_opening), self.cases.openings, "fast")
        return table | {"fast, identity PSNR": interval(identity_psnr(videos, self.cases.identities))}


@torch.no_grad()
def evaluate(evaluation: Evaluation, maker: ClipMaker, lora: Path | None, long_clips: int) -> Table:
    """All measures by name, each with mean and 95 % confidence interval.

    Args:
        maker: makes further clips.
        lora: the distilled LoRA, or None to skip it.
        long_clips: number of one-minute videos.
    """
    table = evaluation.lip_sync() | evaluation.audio_guidance() | evaluation.silence()
    table |= evaluation.captions() | evaluation.liveliness() | evaluation.pictures(maker)
    table |= evaluation.eyes()
    if long_clips:
        table |= evaluation.minute(maker, long_clips)
    if lora is not None:
        table |= evaluation.distilled(lora)
    return table


def pose_of(video: Tensor) -> HeadPose:
    """Head pose in the frames [F, 3, H, W] uint8 of a video."""
    return head_pose(video.float() / 127.5 - 1)


def _lip_sync(opening: Tensor, truth: Tensor, name: str) -> Table:
    lagged = correlations_at_lags(opening, truth)
    slope = (opening * truth).sum(1) / truth.square().sum(1).clamp_min(1e-6)
    return {
        f"{name}, correlation": interval(lagged[:, LARGEST_LAG]),
        f"{name}, lag": interval(lagged.argmax(dim=1).float() - LARGEST_LAG),
        f"{name}, opening over truth": interval(slope),
    }


def evaluate_checkpoint(
    weights: Path,
    lora: Path,
    params: GenerationParams,
    fast: GenerationParams,
    clips: int,
    long_clips: int,
    device: torch.device,
    seed: int = 1,
    corpus: Path | None = None,
    pictures: Path | None = None,
) -> Table:
    """Run `evaluate` on weights on disk.

    Args:
        weights: folder in the released layout.
        lora: LoRA file; skipped if it does not exist.
        params, fast: presets; their paths, prompts and LoRAs are not used.
        clips, long_clips: number of six-second and of one-minute videos.
        corpus: speech of the test split; None synthesises it with espeak-ng and flite.
        pictures: folder for contact sheets of some videos.

    Raises:
        MissingExtra: `corpus` is None, and espeak-ng or flite is not installed.
    """
    maker = unseen_clips(corpus, clips, seed, device)
    sampler = VideoSampler.load(weights, device)
    evaluation = Evaluation(sampler, EvaluationCases.draw(maker, clips), params, fast)
    table = evaluate(evaluation, maker, lora if lora.exists() else None, long_clips)
    if pictures is not None:
        write_pictures(pictures, evaluation.keep)
    return table


def unseen_clips(corpus: Path | None, clips: int, seed: int, device: torch.device) -> ClipMaker:
    """A maker of clips of the test split, all with speech; arguments and errors as `evaluate_checkpoint`."""
    with tempfile.TemporaryDirectory() as folder:
        file = corpus or Path(folder) / "corpus.safetensors"
        if corpus is None:
            build_corpus(file, "test", minutes=max(1.5, clips / 8), seed=seed)
        return ClipMaker(load_corpus(file), "test", seed, device, non_speech_share=0.0)


def as_text(table: Table) -> str:
    """The table as text, one line per measure."""
    lines = [f"{name:32} {row['mean']:8.3f} ± {row['interval']:.3f}" for name, row in table.items()]
    return "\n".join(lines)


def write_pictures(folder: Path, videos: dict[str, Tensor]) -> None:
    """Write a contact sheet for each kind of video: one row per video, twelve moments across."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, video in videos.items():
        moments = torch.linspace(0, video.shape[1] - 1, 12).long()
        rows = video[:6, moments].cpu().permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
        Image.fromarray(rows.numpy()).save(folder / f"{name.replace(' ', '-')}.jpg", quality=92)
