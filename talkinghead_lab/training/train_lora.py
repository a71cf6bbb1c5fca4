"""Distil guidance into a LoRA: one forward pass replaces three (Meng et al., arXiv 2210.03142)."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

from talkinghead_lab.models.dit.model import DiT
from talkinghead_lab.sampling.config import SamplingConfig
from talkinghead_lab.sampling.guidance import CONDITIONAL, DROP_TEXT, UNCONDITIONAL, Guidance
from talkinghead_lab.training.data import EncodedVideos
from talkinghead_lab.training.schedule import Budget, NetworkTraining
from talkinghead_lab.training.train_dit import Examples
from talkinghead_lab.weights.writing import Networks

RANK = 32
# Guidance scales of the preset without the LoRA.
TEXT_SCALE, AUDIO_SCALE = 2.0, 4.0
LAYERS = (
    *("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "cross_attn.q", "cross_attn.o"),
    *("audio_cross_attn.q_linear", "audio_cross_attn.proj", "ffn.0", "ffn.2"),
)


class LowRank(nn.Module):
    """Adds up @ down to a weight unless `strength` is 0."""

    def __init__(self, weight: Tensor, rank: int = RANK) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, weight.shape[1], device=weight.device))
        self.up = nn.Parameter(torch.zeros(weight.shape[0], rank, device=weight.device))
        nn.init.normal_(self.down, std=weight.shape[1] ** -0.5)
        self.strength = 1.0

    def forward(self, weight: Tensor) -> Tensor:
        """The updated weight."""
        return weight + self.up @ self.down if self.strength else weight


def add_low_rank(dit: DiT, seed: int, layers: Sequence[str] = LAYERS, rank: int = RANK) -> dict[str, LowRank]:
    """Add a low-rank update, initially zero, to some layers of every block."""
    updates: dict[str, LowRank] = {}
    kind: type[nn.Module] | None = None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for number, block in enumerate(dit.blocks):
            for name in layers:
                layer = block.get_submodule(name)
                update = LowRank(layer.get_parameter("weight"), rank)
                parametrize.register_parametrization(layer, "weight", update)
                # Each layer got a class of its own. Equal ones let compiled blocks share one graph.
                layer.__class__ = kind = kind or type(layer)
                updates[f"blocks.{number}.{name}"] = update
    return updates


def train_lora(
    networks: Networks,
    videos: EncodedVideos,
    budget: Budget,
    seed: int,
    path: Path,
    batch: int = 32,
    **options: Any,
) -> NetworkTraining:
    """Train the LoRA on the guided velocity of the transformer without it; write it to `path`."""
    for module in networks.modules().values():
        module.requires_grad_(False)
    updates = add_low_rank(networks.dit, seed)
    run = NetworkTraining(
        "lora", nn.ModuleList(updates.values()), budget, peak=1e-3, decay=0.99, weight_decay=0.0, **options
    )
    examples, advance = Examples(networks, videos, batch, seed, drops=False), None

    def compute() -> dict[str, Tensor]:
        noisy = examples.noisy()
        with torch.no_grad():
            _switch(updates, 0.0)
            target = guided(examples, noisy)
            _switch(updates, 1.0)
        return {"loss": examples.error(examples.velocity(noisy, examples.batch), target)}

    for step in run.steps():
        examples.fill(step)
        advance = advance or run.captured(compute)
        run.after_step(step, **advance())
    save_low_rank(updates, path)
    return run


def guided(examples: Examples, noisy: Tensor) -> Tensor:
    """Velocity under text and audio guidance."""
    batch, videos = examples.batch, examples.videos
    no_text = batch.with_text(
        *(x[:1].expand(len(noisy), -1) for x in (videos.dropped_ids, videos.dropped_mask))
    )
    no_audio = replace(no_text, windows=torch.zeros_like(batch.windows))
    branches = {CONDITIONAL: batch, DROP_TEXT: no_text, UNCONDITIONAL: no_audio}
    guidance = Guidance(SamplingConfig(1, 1.0, TEXT_SCALE, AUDIO_SCALE))
    return guidance.combine({branch: examples.velocity(noisy, one) for branch, one in branches.items()})


def _switch(updates: dict[str, LowRank], strength: float) -> None:
    for update in updates.values():
        update.strength = strength


def save_low_rank(updates: dict[str, LowRank], path: Path) -> None:
    """Write the pairs in the format that `weights.lora` reads."""
    tensors = {}
    for name, update in updates.items():
        tensors[f"{name}.lora_down.weight"] = update.down.detach().half().cpu().contiguous()
        tensors[f"{name}.lora_up.weight"] = update.up.detach().half().cpu().contiguous()
        tensors[f"{name}.alpha"] = torch.tensor(float(len(update.down)))
    save_file(tensors, path)
