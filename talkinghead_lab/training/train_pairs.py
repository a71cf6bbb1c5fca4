"""Train the two-speaker adapter, and a LoRA that makes the one-person transformer draw two."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from talkinghead_lab.foundation.latent_grid import PIXELS_PER_LATENT, PIXELS_PER_TOKEN
from talkinghead_lab.models.dit.model import DiT
from talkinghead_lab.training.networks import FRAME_SIZE
from talkinghead_lab.training.pairs import EncodedPairs
from talkinghead_lab.training.schedule import Budget, NetworkTraining, step_generator
from talkinghead_lab.training.train_dit import Examples, compile_blocks, mouth_weights
from talkinghead_lab.training.train_lora import add_low_rank, save_low_rank
from talkinghead_lab.training.voice_binding import bind_voices
from talkinghead_lab.weights.writing import ADAPTER_PARTS, Networks, save_tensors

RANK = 64
LAYERS = (
    *("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "cross_attn.q", "cross_attn.o"),
    *("cross_attn.k", "cross_attn.v", "cross_attn.k_img", "cross_attn.v_img", "ffn.0", "ffn.2"),
)
SIDE = FRAME_SIZE // PIXELS_PER_TOKEN  # tokens of a half, across and down
# Share of steps whose second speaker has all of the frame but the first one's region, as a single box or mask
# in a request means.
REST_SHARE = 0.15


class PairExamples(Examples):
    """Examples with speaker regions, which are drawn anew for every step.

    The first voice is the left presenter's in half of the steps, the right one's in the others.
    """

    def __init__(self, networks: Networks, pairs: EncodedPairs, count: int, seed: int) -> None:
        super().__init__(networks, pairs, count, seed)
        device = self.times.device
        half = FRAME_SIZE // PIXELS_PER_LATENT
        self.weights = mouth_weights(half, half, device).repeat(1, 2)
        self.regions: Tensor = torch.zeros(3, SIDE * 2 * SIDE, device=device)

    def noisy(self) -> Tensor:
        """As for one speaker; with gradients, so that the first block shares the others' compiled graph."""
        return super().noisy().requires_grad_()

    def fill(self, step: int, narrated: bool = False) -> None:
        """Write new random examples and regions into the buffers."""
        super().fill(step, narrated)
        generator = step_generator(self.seed, step)
        regions = random_regions(generator)
        if torch.rand((), generator=generator) < 0.5:
            regions = regions[[1, 0, 2]]
            self.batch.windows.copy_(self.batch.windows.flip(1))
        self.regions.copy_(regions.flatten(1))


def random_regions(generator: torch.Generator) -> Tensor:
    """Regions [3, rows, columns] in tokens: left presenter, right presenter, background."""

    def whole(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    regions = torch.zeros(3, SIDE, 2 * SIDE)
    for speaker in range(2):
        left, right = whole(0, 3) + speaker * SIDE, whole(SIDE - 3, SIDE) + speaker * SIDE
        regions[speaker, whole(0, 2) : whole(SIDE - 2, SIDE), left:right] = 1
    if torch.rand((), generator=generator) < REST_SHARE:
        alone = whole(0, 1)
        regions[1 - alone] = 1 - regions[alone]
    regions[2] = 1 - regions[:2].amax(dim=0)
    return regions


def adapter_modules(dit: DiT) -> list[nn.Module]:
    """The modules that an adapter file holds."""
    return [dit.audio_proj, *(m for block in dit.blocks for m in (block.norm_x, block.audio_cross_attn))]


def train_pairs(
    networks: Networks,
    pairs: EncodedPairs,
    budget: Budget,
    seed: int,
    adapter: Path,
    lora: Path,
    batch: int = 16,
    **options: Any,
) -> NetworkTraining:
    """Train adapter and LoRA together, from the one-speaker adapter; write them to `adapter` and `lora`."""
    for module in networks.modules().values():
        module.requires_grad_(False)
    bind_voices(networks.dit)
    updates = add_low_rank(networks.dit, seed, LAYERS, RANK)
    trained = nn.ModuleList([*adapter_modules(networks.dit), *updates.values()]).requires_grad_(True)
    if pairs.portraits.is_cuda:
        compile_blocks(networks.dit)
    run = NetworkTraining(
        "pairs", trained, budget, peak=1e-3, matrix_peak=1e-3, decay=0.995, weight_decay=0.0, **options
    )
    examples, advance = PairExamples(networks, pairs, batch, seed), None
    for step in run.steps():
        examples.fill(step)
        advance = advance or run.captured(examples.loss)
        run.after_step(step, **advance())
    adapter.parent.mkdir(parents=True, exist_ok=True)
    state = networks.dit.state_dict()
    of_adapter = [name for name in state if any(part in name for part in ADAPTER_PARTS)]
    save_tensors(adapter, {name: state[name] for name in of_adapter}, torch.float16)
    save_low_rank(updates, lora)
    return run
