"""Training from scratch in stages; each stage starts from the checkpoint of the previous one."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch

from talkinghead_lab.models.encoders.text import Tokenizer
from talkinghead_lab.training.corpus import Monologue, build_corpus, load_corpus
from talkinghead_lab.training.data import EncodedVideos
from talkinghead_lab.training.dataset import ClipMaker
from talkinghead_lab.training.networks import (
    FRAME_SIZE,
    TEXT_TOKENS,
    build_untrained,
    vocabulary,
)
from talkinghead_lab.training.pairs import EncodedPairs
from talkinghead_lab.training.schedule import Budget, NetworkTraining
from talkinghead_lab.training.train_dit import train_dit
from talkinghead_lab.training.train_lora import train_lora
from talkinghead_lab.training.train_pairs import train_pairs
from talkinghead_lab.training.train_speech import train_speech
from talkinghead_lab.training.train_vae import PHASES, Phase, reconstruction_psnr, render_clips, train_vae
from talkinghead_lab.weights import checkpoints, locating
from talkinghead_lab.weights.locating import CheckpointFiles
from talkinghead_lab.weights.writing import Networks, write_checkpoint

LORA, PAIRS_LORA = "fast-lora.safetensors", "pairs-lora.safetensors"
STAGES = ("speech", "vae", "dit", "lora", "pairs")


@dataclass(frozen=True)
class TrainingSettings:
    """Amount of data and training; the defaults take under 30 minutes on one data-centre GPU.

    Args:
        minutes: minutes of synthesised training speech.
        speech, vae, dit, lora, pairs: budget of each stage.
        vae_clips, vae_clip_frames: number and length of the autoencoder's training clips.
        videos, pair_videos: training videos of one and of two presenters, two chunks each.
        speech_batch, dit_batch, pairs_batch: examples per step.
        vae_phases: batch size, frames and crop of the autoencoder's steps.
        seed: of data and initial weights.
    """

    minutes: float = 400.0
    speech: Budget = field(default_factory=lambda: Budget(2400))
    vae: Budget = field(default_factory=lambda: Budget(9_000))
    dit: Budget = field(default_factory=lambda: Budget(11_000))
    lora: Budget = field(default_factory=lambda: Budget(500))
    pairs: Budget = field(default_factory=lambda: Budget(4_600))
    vae_clips: int = 1200
    vae_clip_frames: int = 65
    videos: int = 1600
    pair_videos: int = 720
    speech_batch: int = 48
    vae_phases: tuple[Phase, ...] = PHASES
    dit_batch: int = 32
    pairs_batch: int = 16
    seed: int = 0

    def in_words(self) -> dict[str, str]:
        """What is trained on what, and for how long."""
        clips = f"{self.vae_clips} clips of {self.vae_clip_frames} frames"
        return {
            "Synthesised speech": f"{self.minutes:g} min",
            "Speech encoder": f"{self.speech}, batch size {self.speech_batch}",
            "Video autoencoder": f"{self.vae} on {clips}; {', '.join(map(str, self.vae_phases))}",
            "Transformer": f"{self.dit} on {self.videos} videos, batch size {self.dit_batch}",
            "LoRA for fast sampling": str(self.lora),
            "Two speakers": f"{self.pairs} on {self.pair_videos} videos, batch size {self.pairs_batch}",
            "Seed": str(self.seed),
        }


SMOKE = TrainingSettings(
    minutes=1.0,
    speech=Budget(4),
    vae=Budget(4),
    dit=Budget(3),
    lora=Budget(2),
    pairs=Budget(2),
    vae_clips=2,
    vae_clip_frames=17,
    videos=1,
    pair_videos=1,
    speech_batch=2,
    vae_phases=(Phase(0.5, 1, 5, 32), Phase(1.0, 1, 5, 64)),
    dit_batch=1,
    pairs_batch=1,
)


@dataclass
class Training:
    """A resumable training in a folder.

    The folder receives the corpus, `weights/` in the released layout, the LoRA, and a curve for each stage.
    """

    folder: Path
    settings: TrainingSettings
    device: torch.device

    def run(self, stages: Sequence[str] = STAGES) -> None:
        """Run stages in order, skipping those that are finished in the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for stage in stages:
            if not (self.folder / f"curve-{stage}.json").exists():
                getattr(self, stage)().write_curve(self.folder)

    @property
    def weights(self) -> Path:
        """Folder of the checkpoint."""
        return self.folder / "weights"

    @cached_property
    def corpus(self) -> list[Monologue]:
        """Training speech, synthesised on first use."""
        path = self.folder / "corpus-train.safetensors"
        if not path.exists():
            build_corpus(path, "train", self.settings.minutes, self.settings.seed)
        return load_corpus(path)

    @cached_property
    def videos(self) -> EncodedVideos:
        """Training videos of the transformer and of its LoRA."""
        tokenizer = Tokenizer(self.weights / "ckpt_dir" / locating.TOKENIZER, TEXT_TOKENS)
        return EncodedVideos.make(self._maker("train"), self._networks(), tokenizer, self.settings.videos)

    def _networks(self) -> Networks:
        known = self.weights.exists()
        networks = load_networks(self.weights) if known else build_untrained(self.settings.seed)
        return networks.to(self.device)

    def _maker(self, split: str) -> ClipMaker:
        return ClipMaker(self.corpus, split, self.settings.seed, self.device)

    def speech(self) -> NetworkTraining:
        """Train the speech encoder."""
        networks, settings = self._networks(), self.settings
        encoder, batch = networks.speech_encoder, settings.speech_batch
        run = train_speech(encoder, self.corpus, settings.speech, settings.seed, batch, folder=self.folder)
        write_checkpoint(self.weights, networks, vocabulary())
        return run

    def vae(self) -> NetworkTraining:
        """Train the autoencoder, and note its PSNR on unseen clips."""
        networks, settings = self._networks(), self.settings
        count, frames = settings.vae_clips, settings.vae_clip_frames
        clips = render_clips(self._maker("train"), count, frames, FRAME_SIZE)
        vae, phases = networks.vae, settings.vae_phases
        run = train_vae(vae, clips, settings.vae, settings.seed, phases, folder=self.folder)
        unseen = render_clips(
            self._maker("test"), min(32, settings.vae_clips), settings.vae_clip_frames, FRAME_SIZE
        )
        run.note(-1, unseen_decibels=reconstruction_psnr(vae, unseen))
        write_checkpoint(self.weights, networks, vocabulary())
        return run

    def dit(self) -> NetworkTraining:
        """Train the transformer with the text and image encoders."""
        networks, settings = self._networks(), self.settings
        batch = settings.dit_batch
        run = train_dit(networks, self.videos, settings.dit, settings.seed, batch, folder=self.folder)
        write_checkpoint(self.weights, networks, vocabulary())
        return run

    def lora(self) -> NetworkTraining:
        """Distil guidance into the LoRA."""
        settings = self.settings
        path, batch = self.folder / LORA, settings.dit_batch
        return train_lora(self._networks(), self.videos, settings.lora, settings.seed, path, batch)

    def pairs(self) -> NetworkTraining:
        """Train the two-speaker adapter and the LoRA for frames with two people."""
        networks, settings = self._networks(), self.settings
        tokenizer = Tokenizer(self.weights / "ckpt_dir" / locating.TOKENIZER, TEXT_TOKENS)
        pairs = EncodedPairs.make(self._maker("train"), networks, tokenizer, settings.pair_videos)
        adapter = self.weights / "infinitetalk_dir" / locating.PAIRS_ADAPTER
        return train_pairs(
            networks,
            pairs,
            settings.pairs,
            settings.seed,
            adapter,
            self.folder / PAIRS_LORA,
            settings.pairs_batch,
            folder=self.folder,
        )


def load_networks(folder: Path, adapter: Path = locating.ADAPTER) -> Networks:
    """Load a checkpoint written by `write_checkpoint`, in float32 on the CPU; one of its adapters."""
    files = CheckpointFiles(
        folder / "ckpt_dir", folder / "wav2vec_dir", folder / "infinitetalk_dir" / adapter
    )
    return Networks(
        checkpoints.load_dit(files, torch.float32, "cpu"),
        checkpoints.load_vae(files, torch.float32, "cpu"),
        checkpoints.load_text_encoder(files, torch.float32, "cpu"),
        checkpoints.load_image_encoder(files, torch.float32, "cpu"),
        checkpoints.load_speech_encoder(files, torch.float32, "cpu"),
    )


def within(settings: TrainingSettings, **seconds: float) -> TrainingSettings:
    """The same settings with a time limit in seconds on some stages."""
    limited = {stage: replace(getattr(settings, stage), seconds=limit) for stage, limit in seconds.items()}
    return replace(settings, **limited)
