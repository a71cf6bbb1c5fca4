"""Distils guidance into a LoRA, so that one forward does what three did (Meng et al., arXiv 2210.03142)."""

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
from talkinghead_lab.training.data import Videos
from talkinghead_lab.training.schedule import Budget, Run
from talkinghead_lab.training.train_dit import Examples
from talkinghead_lab.weights.writing import Networks

RANK = 32
# Of the prompt and the recording: those of the preset without the LoRA.
TEXT_SCALE, AUDIO_SCALE = 2.0, 4.0
LAYERS = (
    *("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "cross_attn.q", "cross_attn.o"),
    *("audio_cross_attn.q_linear", "audio_cross_attn.proj", "ffn.0", "ffn.2"),
)


class LowRank(nn.Module):
    """Adds up @ down to a weight while `strength` is 1."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.down = nn.Parameter(torch.empty(RANK, weight.shape[1], device=weight.device))
        self.up = nn.Parameter(torch.zeros(weight.shape[0], RANK, device=weight.device))
        nn.init.normal_(self.down, std=weight.shape[1] ** -0.5)
        self.strength = 1.0

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down if self.strength else weight


def add_low_rank(dit: DiT, seed: int) -> dict[str, LowRank]:
    """Put an update that is zero at first on the LAYERS of every block."""
    updates = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for number, block in enumerate(dit.blocks):
            for name in LAYERS:
                layer = block.get_submodule(name)
                update = LowRank(layer.get_parameter("weight"))
                parametrize.register_parametrization(layer, "weight", update)
                updates[f"blocks.{number}.{name}"] = update
    return updates


def train_lora(
    networks: Networks, videos: Videos, budget: Budget, seed: int, path: Path, batch: int = 32, **options: Any
) -> Run:
    """Teach the LoRA the guided velocity of the transformer without it, and write it to `path`."""
    for module in networks.modules().values():
        module.requires_grad_(False)
    updates = add_low_rank(networks.dit, seed)
    run = Run(
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
    """The velocity under guidance by prompt and recording."""
    batch, videos = examples.batch, examples.videos
    unread = batch.with_text(
        *(x[:1].expand(len(noisy), -1) for x in (videos.dropped_ids, videos.dropped_mask))
    )
    unheard = replace(unread, windows=torch.zeros_like(batch.windows))
    branches = {CONDITIONAL: batch, DROP_TEXT: unread, UNCONDITIONAL: unheard}
    guidance = Guidance(SamplingConfig(1, 1.0, TEXT_SCALE, AUDIO_SCALE))
    return guidance.combine({branch: examples.velocity(noisy, one) for branch, one in branches.items()})


def _switch(updates: dict[str, LowRank], strength: float) -> None:
    for update in updates.values():
        update.strength = strength


def save_low_rank(updates: dict[str, LowRank], path: Path) -> None:
    """Write the pairs as `lora` reads them."""
    tensors = {}
    for name, update in updates.items():
        tensors[f"{name}.lora_down.weight"] = update.down.detach().half().cpu().contiguous()
        tensors[f"{name}.lora_up.weight"] = update.up.detach().half().cpu().contiguous()
        tensors[f"{name}.alpha"] = torch.tensor(float(RANK))
    save_file(tensors, path)
