"""Measure the bundled model on sentences, voices and presenters that it was not trained on."""

import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from talkinghead_lab.foundation.latent_grid import FRAMES_PER_SECOND
from talkinghead_lab.models.judges.face_reader import HeadPose, head_pose, mouth_opening
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.training.corpus import build_corpus, load_corpus
from talkinghead_lab.training.dataset import ClipMaker
from talkinghead_lab.training.eyes import Blinks, lid_openings
from talkinghead_lab.training.networks import FRAME_SIZE
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
from talkinghead_lab.training.train_vae import reconstruction_psnr, render_clips
from talkinghead_lab.training.video_sampler import EvaluationCases, VideoSampler
from talkinghead_lab.weights.lora import merge_lora

Table = dict[str, dict[str, float]]
OBEYED = ("nodding", "shaking", "left", "right", "up", "leaning")
LONG_FRAMES = 60 * FRAMES_PER_SECOND


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
