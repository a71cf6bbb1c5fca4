"""Measures the embedded model on sentences, voices and presenters that it was not trained on."""

import argparse
import json
import math
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from talkinghead_lab import checkpoints
from talkinghead_lab.image import match_colors
from talkinghead_lab.latent_grid import FRAMES_PER_SECOND, LatentGrid
from talkinghead_lab.lora import merge_lora
from talkinghead_lab.metrics import head_pose, mouth_opening
from talkinghead_lab.models.text_encoder import Tokenizer
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.pipeline import chunk_noise
from talkinghead_lab.sampling import ChunkConditions, sample_chunk
from talkinghead_lab.streaming import audio_windows, plan_chunks
from talkinghead_lab.training.avatar import Identity, Motion, render
from talkinghead_lab.training.corpus import build_corpus, load_corpus
from talkinghead_lab.training.data import VIDEO_FRAMES, with_mask
from talkinghead_lab.training.dataset import ClipMaker
from talkinghead_lab.training.networks import FRAME_SIZE, TEXT_TOKENS, Networks
from talkinghead_lab.training.scores import (
    background_drift,
    caption_is_obeyed,
    correlations_at_lags,
    identity_psnr,
    movement,
    seam_ratio,
)
from talkinghead_lab.training.train import load_networks
from talkinghead_lab.training.train_speech import embed
from talkinghead_lab.training.train_vae import draw_clips, reconstruction_psnr, to_bytes

OBEYED = ("nodding", "shaking", "left", "right", "up", "leaning")
LONG_FRAMES = 60 * FRAMES_PER_SECOND


@dataclass(frozen=True)
class Cases:
    """What is asked for: still frontal portraits [B, 3, H, W] in [−1, 1], sound [B, samples], captions,
    the true opening [B, F], and the action that each caption asks for."""

    identities: list[Identity]
    portraits: Tensor
    waves: Tensor
    captions: list[str]
    openings: Tensor
    actions: list[str]

    @classmethod
    def draw(cls, maker: ClipMaker, count: int, frames: int = VIDEO_FRAMES) -> "Cases":
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

    def part(self, start: int, stop: int) -> "Cases":
        whole = vars(self).values()
        return Cases(*(value[start:stop] for value in whole))


@dataclass
class Studio:
    """Makes the videos of many cases at once, by the sampler of the pipeline.

    Args:
        at_once: videos in a batch.
    """

    networks: Networks
    tokenizer: Tokenizer
    device: torch.device
    at_once: int

    @torch.no_grad()
    def videos(self, cases: Cases, params: GenerationParams) -> Tensor:
        """[B, F, 3, H, W] uint8."""
        parts = range(0, len(cases.captions), self.at_once)
        return torch.cat([self._videos(cases.part(i, i + self.at_once), params, i) for i in parts])

    def _videos(self, cases: Cases, params: GenerationParams, seed: int) -> Tensor:
        cuda = self.device.type == "cuda"
        fast = torch.autocast("cuda", torch.bfloat16) if cuda else nullcontext()
        networks, dit, vae = self.networks, self.networks.dit, self.networks.vae
        count, frames = len(cases.captions), cases.openings.shape[1]
        chunks = plan_chunks(frames, params.chunk_frames, params.motion_frame)
        made: list[Tensor] = []
        with fast:
            speech = embed(networks.speech_encoder, cases.waves, frames).float()
            texts = networks.text_encoder.encode([*cases.captions, params.negative_prompt], self.tokenizer)
            contexts = {True: dit.text_context(texts[:-1]), False: dit.text_context(texts[-1:] * count)}
            image = dit.image_context(networks.image_encoder(cases.portraits))
            picture = vae.encode_first_frame_then_zeros(cases.portraits, params.chunk_frames)
            motion = picture[:, :, :1]
            for chunk in chunks:
                if chunk.repeated:
                    motion = vae.encode(made[-1][:, :, -chunk.repeated :], 100)
                windows = [audio_windows(row, chunk, dit.config.audio_window) for row in speech]
                heard = torch.stack(windows)[:, None]
                grid = LatentGrid(chunk.frames, FRAME_SIZE, FRAME_SIZE)
                shape = grid.latent_shape(vae.config.z_dim)
                noises = [chunk_noise(params.seed + seed + i, chunk.index, shape) for i in range(count)]
                silent = torch.zeros_like(heard)
                conditions = ChunkConditions(
                    picture=with_mask(picture.float()),
                    image=image,
                    texts=contexts,
                    audios={True: dit.audio_context(heard), False: dit.audio_context(silent)},
                    motion=motion.float(),
                    rotation=dit.rotation(shape, self.device),
                    regions=None,
                )
                latent = sample_chunk(dit, torch.stack(noises).to(self.device), conditions, params)
                out = vae.decode(latent, 4)
                if params.use_color_correction:
                    strength = params.color_correction_strength
                    pairs = zip(out, cases.portraits, strict=True)
                    out = torch.stack([match_colors(video, one, strength) for video, one in pairs])
                made.append(out)
        new = [
            video[:, :, chunk.repeated : chunk.repeated + chunk.new]
            for video, chunk in zip(made, chunks, strict=True)
        ]
        return to_bytes(torch.cat(new, dim=2).transpose(1, 2))


def readings(videos: Tensor, read: Callable[[Tensor], Tensor]) -> Tensor:
    """What `read` makes of each video's frames in [−1, 1]: [B, F]."""
    return torch.stack([read(video.float() / 127.5 - 1) for video in videos])


def interval(values: Sequence[float] | Tensor) -> dict[str, float]:
    """Mean and the half-width of its 95 % interval."""
    x = torch.as_tensor(values, dtype=torch.float64).flatten()
    x = x[x.isfinite()]
    half = 1.96 * x.std().item() / math.sqrt(len(x)) if len(x) > 1 else math.nan
    return {"mean": x.mean().item(), "interval": half, "count": len(x)}


@torch.no_grad()
def evaluate(
    studio: Studio,
    maker: ClipMaker,
    params: GenerationParams,
    fast: GenerationParams,
    lora: Path | None,
    clips: int,
    long_clips: int,
    frames: int = VIDEO_FRAMES,
    keep: dict[str, Tensor] | None = None,
) -> dict[str, dict[str, float]]:
    """Every measure of the table by name, each with its mean and 95 % interval.

    Args:
        params: the default preset; its paths and prompt are not used.
        fast: the preset of the LoRA at `lora`.
        clips: how many videos of `frames` frames.
        long_clips: how many of a minute.
        keep: gets some of the videos, to look at.
    """
    keep = {} if keep is None else keep
    cases = Cases.draw(maker, clips, frames)
    table: dict[str, dict[str, float]] = {}

    def made(name: str, params: GenerationParams, cases: Cases = cases) -> Tensor:
        videos = studio.videos(cases, params)
        keep[name] = videos[:8]
        print("made", name, flush=True)
        return videos

    default = made("default", params)
    opening = readings(default, mouth_opening)
    table |= _lip_sync(opening, cases.openings, "default")
    table["wrong recording"] = interval(correlations_at_lags(opening, cases.openings.roll(1, 0))[:, 5])
    low, high = (
        correlations_at_lags(
            readings(made(f"audio {scale:g}", params.replace(audio_guide_scale=scale)), mouth_opening),
            cases.openings,
        )[:, 5]
        for scale in (1.0, 4.0)
    )
    table["audio guidance 1"], table["audio guidance 4"] = interval(low), interval(high)
    table["audio guidance 4 less 1"] = interval(high - low)
    table |= _silence(made, cases, params, opening)
    table |= _captions(made, cases, params)
    table["identity PSNR"] = interval(identity_psnr(default, cases.identities))
    unseen = draw_clips(maker, clips, 17, FRAME_SIZE)
    table["VAE PSNR"] = interval(
        [reconstruction_psnr(studio.networks.vae, unseen[i : i + 1]) for i in range(clips)]
    )
    table["seams"] = interval(seam_ratio(default, params.chunk_frames))
    if long_clips:
        long = Cases.draw(maker, long_clips, min(LONG_FRAMES, min(m.frames for m in maker.corpus)))
        repeats = math.ceil(LONG_FRAMES / long.openings.shape[1])
        waves = long.waves.repeat(1, repeats)[:, : LONG_FRAMES * 640]
        openings = long.openings.repeat(1, repeats)[:, :LONG_FRAMES]
        minute = Cases(long.identities, long.portraits, waves, long.captions, openings, long.actions)
        videos = made("minute", params, minute)
        table["drift"] = interval(background_drift(videos))
        table["minute, correlation"] = interval(
            correlations_at_lags(readings(videos, mouth_opening), openings)[:, 5]
        )
        keep["minute"] = videos[:4, ::75]
    if lora is not None:
        merge_lora(studio.networks.dit, lora, 1.0)
        quick = made("fast", fast)
        table |= _lip_sync(readings(quick, mouth_opening), cases.openings, "fast")
        table["fast, identity PSNR"] = interval(identity_psnr(quick, cases.identities))
    return table


def _lip_sync(opening: Tensor, truth: Tensor, name: str) -> dict[str, dict[str, float]]:
    lagged = correlations_at_lags(opening, truth)
    slope = (opening * truth).sum(1) / truth.square().sum(1)
    return {
        f"{name}, correlation": interval(lagged[:, 5]),
        f"{name}, lag": interval(lagged.argmax(dim=1).float() - 5),
        f"{name}, opening over truth": interval(slope),
    }


def _silence(
    made: Callable[..., Tensor], cases: Cases, params: GenerationParams, speaking: Tensor
) -> dict[str, dict[str, float]]:
    quiet = Cases(
        cases.identities,
        cases.portraits,
        1e-4 * torch.randn(cases.waves.shape).to(cases.waves),
        cases.captions,
        torch.zeros_like(cases.openings),
        cases.actions,
    )
    from_frame = 5  # the portrait itself, and what it eases from
    openings = readings(made("silence", params, quiet), mouth_opening)[:, from_frame:]
    return {
        "silence, opening": interval(openings.mean(1)),
        "silence over speech": interval(openings.mean(1) / speaking[:, from_frame:].mean()),
    }


def _captions(
    made: Callable[..., Tensor], cases: Cases, params: GenerationParams
) -> dict[str, dict[str, float]]:
    asked = [i for i, action in enumerate(cases.actions) if action in OBEYED]
    obeyed = {}
    for scale in (1.0, 5.0):
        videos = made(f"text {scale:g}", params.replace(text_guide_scale=scale))
        poses = [head_pose(videos[i].float() / 127.5 - 1) for i in asked]
        actions = [cases.actions[i] for i in asked]
        obeyed[scale] = torch.tensor([caption_is_obeyed(*pair) for pair in zip(poses, actions, strict=True)])
    moves = {}
    for caption in ("still", "lively"):
        prompts = [f"a person talks, {'keeping still' if caption == 'still' else 'lively'}"] * len(
            cases.captions
        )
        same = Cases(cases.identities, cases.portraits, cases.waves, prompts, cases.openings, cases.actions)
        videos = made(caption, params, same)
        moves[caption] = torch.tensor([movement(head_pose(video.float() / 127.5 - 1)) for video in videos])
    return {
        "captions obeyed, text 1": interval(obeyed[1.0].double()),
        "captions obeyed, text 5": interval(obeyed[5.0].double()),
        "captions obeyed, 5 less 1": interval(obeyed[5.0].double() - obeyed[1.0].double()),
        "still over lively": interval(moves["still"] / moves["lively"].mean()),
    }


def evaluate_checkpoint(options: argparse.Namespace) -> None:
    """The command `evaluate`: see `__main__`."""
    device = torch.device(options.device)
    torch.set_float32_matmul_precision("high")
    with tempfile.TemporaryDirectory() as folder:
        corpus = options.corpus or Path(folder) / "corpus.safetensors"
        if options.corpus is None:
            build_corpus(corpus, "test", minutes=max(1.5, options.clips / 8), seed=options.seed)
        maker = ClipMaker(load_corpus(corpus), "test", options.seed, device, non_speech_share=0.0)
    tokenizer = Tokenizer(options.weights / "ckpt_dir" / checkpoints.TOKENIZER, TEXT_TOKENS)
    networks = load_networks(options.weights).to(device)
    studio = Studio(networks, tokenizer, device, at_once=32 if device.type == "cuda" else 2)
    params, fast = (
        GenerationParams.from_yaml(path, image_path="unused", audio_path="unused", loras=())
        for path in (options.params, options.fast_params)
    )
    lora = options.lora if options.lora.exists() else None
    keep: dict[str, Tensor] = {}
    table = evaluate(studio, maker, params, fast, lora, options.clips, options.long_clips, keep=keep)
    if options.keep:
        write_pictures(options.keep, keep)
    if options.json:
        print(json.dumps(table, indent=1))
    else:
        for name, row in table.items():
            print(f"{name:32} {row['mean']:8.3f} ± {row['interval']:.3f}  ({row['count']})")


def write_pictures(folder: Path, videos: dict[str, Tensor]) -> None:
    """One picture for each kind of video: a video a row, twelve moments across."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, video in videos.items():
        moments = torch.linspace(0, video.shape[1] - 1, 12).long()
        rows = video[:6, moments].cpu().permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
        Image.fromarray(rows.numpy()).save(folder / f"{name.replace(' ', '-')}.jpg", quality=92)
