"""Measure the bundled model on pairs of speakers: whether each mouth follows its own voice alone."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from talkinghead_lab.media.speaker_masks import speaker_masks
from talkinghead_lab.models.dit.conditions import speaker_regions
from talkinghead_lab.models.judges.face_reader import mouth_opening
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.training.avatar import Motion
from talkinghead_lab.training.data import VIDEO_FRAMES
from talkinghead_lab.training.dataset import ClipMaker
from talkinghead_lab.training.evaluate import (
    Table,
    interval,
    readings,
    unseen_clips,
    write_pictures,
)
from talkinghead_lab.training.networks import FRAME_SIZE
from talkinghead_lab.training.pairs import Pair, draw_pair, render_pairs
from talkinghead_lab.training.scores import LARGEST_LAG, correlations_at_lags, seam_jumps
from talkinghead_lab.training.train_vae import from_bytes
from talkinghead_lab.training.video_sampler import EvaluationCases, VideoSampler
from talkinghead_lab.weights import locating
from talkinghead_lab.weights.lora import merge_lora

# The first frames still resemble the picture.
SETTLED = 5


def pair_cases(maker: ClipMaker, count: int, frames: int = VIDEO_FRAMES) -> EvaluationCases:
    """Random pairs who both speak: `waves` [B, 2, samples], `openings` [B, 2, F], left presenter first."""
    pairs = [draw_pair(maker, frames, "both") for _ in range(count)]
    still = [Pair(*(replace(clip, motion=Motion.still(1)) for clip in pair.clips)) for pair in pairs]
    return EvaluationCases(
        [clip.identity for pair in pairs for clip in pair.clips],
        from_bytes(render_pairs(still, maker.device)[:, 0]),
        torch.stack([pair.waves for pair in pairs]).to(maker.device),
        [pair.left.performance.caption for pair in pairs],
        torch.stack([pair.openings for pair in pairs]).to(maker.device),
        [pair.left.performance.action for pair in pairs],
    )


def pair_regions(sampler: VideoSampler) -> Tensor:
    """Regions [3, S] of a request without boxes: half of the picture for each speaker."""
    size = (2 * FRAME_SIZE, FRAME_SIZE)
    masks = speaker_masks(size, None, size)
    return speaker_regions(masks, sampler.networks.dit.config.patch_size).to(sampler.device)


@dataclass
class PairEvaluation:
    """Measures of a checkpoint with the two-speaker adapter.

    Args:
        sampler: its `regions` are those of `pair_regions`.
        cases: from `pair_cases`.
        params: preset; its paths and prompt are not used.
        keep: receives the first videos of every kind for contact sheets.
    """

    sampler: VideoSampler
    cases: EvaluationCases
    params: GenerationParams
    keep: dict[str, Tensor] = field(default_factory=dict)

    def make(self, name: str, waves: Tensor) -> Tensor:
        """Generate videos with these voices, [B, F, 3, H, W] uint8."""
        videos = self.sampler.videos(replace(self.cases, waves=waves), self.params)
        self.keep[name] = videos[:8]
        return videos

    @torch.no_grad()
    def measure(self) -> Table:
        """Correlations with the truth of both voices; openings of the silent, relative to speech; seams.

        Both presenters and, where voices are swapped, both orders count as cases of their own.
        """
        waves, truth = self.cases.waves, self.cases.openings
        videos = self.make("pair", waves)
        both = _openings(videos)
        swapped = _openings(self.make("pair, voices swapped", waves.flip(1)))
        quiet = []
        for silent in range(2):
            alone = waves.clone()
            alone[:, silent] = 0
            shown = self.make(f"pair, speaker {silent + 1} silent", alone)
            quiet.append(_openings(shown)[:, silent, SETTLED:])
        spoken = both[..., SETTLED:].mean()
        return {
            "pair, own voice": _correlation(both, truth),
            "pair, other voice": _correlation(both, truth.flip(1)),
            "pair swapped, own voice": _correlation(swapped, truth.flip(1)),
            "pair swapped, other voice": _correlation(swapped, truth),
            "pair, silent over speech": interval(torch.stack(quiet, dim=1).mean(dim=-1) / spoken),
            "pair, seams": interval(seam_jumps(videos, self.params.chunk_frames)),
        }


def evaluate_pairs(
    weights: Path,
    lora: Path,
    params: GenerationParams,
    count: int,
    device: torch.device,
    seed: int = 1,
    corpus: Path | None = None,
    pictures: Path | None = None,
) -> Table:
    """Run `PairEvaluation` on weights on disk.

    Args:
        weights: folder in the released layout.
        lora: LoRA for frames with two people.
        params: preset; its paths, prompt and LoRAs are not used.
        count: pairs, who are not in the training data.
        device, seed, corpus, pictures: as for `evaluate_checkpoint`.

    Raises:
        MissingExtra: `corpus` is None, and espeak-ng or flite is not installed.
    """
    maker = unseen_clips(corpus, 2 * count, seed, device)
    sampler = VideoSampler.load(weights, device, locating.PAIRS_ADAPTER)
    merge_lora(sampler.networks.dit, lora, 1.0)
    sampler.regions = pair_regions(sampler)
    evaluation = PairEvaluation(sampler, pair_cases(maker, count), params)
    table = evaluation.measure()
    if pictures is not None:
        write_pictures(pictures, evaluation.keep)
    return table


def _openings(videos: Tensor) -> Tensor:
    """Mouth openings [B, 2, F], left and right."""
    halves = videos.split(FRAME_SIZE, dim=-1)
    return torch.stack([readings(half, mouth_opening) for half in halves], dim=1)


def _correlation(opening: Tensor, truth: Tensor) -> dict[str, float]:
    return interval(correlations_at_lags(opening.flatten(0, 1), truth.flatten(0, 1))[:, LARGEST_LAG])
