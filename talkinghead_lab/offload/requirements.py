"""How much memory a request takes, stage by stage: one arithmetic for plans, for offloading and for errors.

A stage needs the weights of its network and some multiple of its largest activation. Weights follow from the
shapes of their tensors, which are read without the values. The multiples are fitted to measured profiles and
lie in `memory_coefficients.json`; where `measured_on` is empty they are estimates.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

from talkinghead_lab.errors import InvalidRequest
from talkinghead_lab.foundation.devices import GIB
from talkinghead_lab.foundation.latent_grid import LatentGrid
from talkinghead_lab.offload.streamed_blocks import SLOTS, large_tensors, resident_blocks, slot_bytes

COEFFICIENTS_FILE = Path(__file__).parent / "memory_coefficients.json"
NETWORK_OF_STAGE = {
    "text": "text encoder",
    "audio": "speech encoder",
    "image": "image encoder",
    "vae_encode": "video autoencoder",
    "sampling": "transformer",
    "decode": "video autoencoder",
}
# Where the blocks of the two networks lie that are too large for a small GPU; the others visit as a whole.
STREAMED_BLOCKS = {"transformer": "blocks", "text encoder": "encoder.block"}
TEXT_TOKENS = 512  # of a prompt at most, in the released model
FLOAT_BYTES = 4
# On a GPU what PyTorch holds in pieces that nothing uses comes to this much of a stage's work.
FRAGMENTED = 1 / 3


@dataclass(frozen=True)
class NetworkSize:
    """Bytes of a network on a device: of one of its blocks, how many can stream, and all the rest."""

    fixed: int
    block: int = 0
    blocks: int = 0

    @classmethod
    def of(cls, network: nn.Module, blocks: str | None = None) -> "NetworkSize":
        """Read the sizes off a network, which may be on the meta device; `blocks` names what can stream."""
        tensors = list(chain(network.parameters(), network.buffers()))
        if blocks is None:
            return cls(sum(tensor.nbytes for tensor in tensors))
        streamed = [large_tensors(block) for block in network.get_submodule(blocks).children()]
        large = {id(tensor) for block in streamed for tensor in block}
        fixed = sum(tensor.nbytes for tensor in tensors if id(tensor) not in large)
        return cls(fixed, max(map(slot_bytes, streamed)), len(streamed))

    @property
    def total(self) -> int:
        return self.fixed + self.blocks * self.block

    @property
    def smallest(self) -> int:
        """What must be on the device at once while blocks stream."""
        return self.fixed + min(SLOTS, self.blocks) * self.block


@dataclass(frozen=True)
class StageMemory:
    """What one stage takes, in bytes.

    Args:
        network: its name.
        size: its weights.
        unit: its largest activation.
        extra: what is held besides for certain: residuals of the step cache, frames that are gathered.
        work: all besides the weights, by the fitted model, with the pieces that nothing uses.
    """

    network: str
    size: NetworkSize
    unit: int
    extra: int
    work: int

    @property
    def smallest(self) -> int:
        return self.size.smallest + self.work

    def room(self, limit: int) -> int:
        """Bytes that `limit` leaves for blocks."""
        return max(0, limit - self.size.fixed - self.work)

    def held(self, limit: int) -> int:
        """Bytes of weights that are on the device within `limit`, slots included."""
        resident = resident_blocks(self.room(limit), self.size.block, self.size.blocks)
        slots = SLOTS if resident < self.size.blocks else 0
        return self.size.fixed + (resident + slots) * self.size.block


@dataclass(frozen=True)
class Requirements:
    """The needs of a request on a kind of device, in bytes.

    Args:
        needs: by stage.
        outside: what the libraries and the driver hold beside PyTorch's tensors.
        kept: keys and values of the conditions, which are only kept where everything is resident.
        measured_on: the machine whose profiles the work was fitted to; None: estimates.
    """

    needs: Mapping[str, StageMemory]
    outside: int
    kept: int
    measured_on: str | None

    @property
    def weights(self) -> dict[str, int]:
        return {need.network: need.size.total for need in self.needs.values()}

    @property
    def work(self) -> int:
        """Of the stage that takes most."""
        return max(need.work for need in self.needs.values()) + self.kept

    @property
    def resident(self) -> int:
        """With all networks on the device."""
        return self.outside + sum(self.weights.values()) + self.work

    @property
    def smallest(self) -> int:
        """The smallest budget that runs: networks visit in turn, blocks stream."""
        return self.outside + max(need.smallest for need in self.needs.values())

    def known(self, stage: str, budget: int | None) -> dict[str, float]:
        """The part of a stage's memory that follows from shapes, and the unit of the rest, in GiB.

        Args:
            stage: nothing is known of one that the model leaves out.
            budget: in bytes of device memory; None: all weights stay there.
        """
        if stage not in self.needs:
            return {}
        need = self.needs[stage]
        held = sum(self.weights.values()) + (self.kept if stage in ("sampling", "decode") else 0)
        if budget is not None:
            held = need.held(budget - self.outside)
        return {"held_gib": held / GIB, "extra_gib": need.extra / GIB, "unit_gib": need.unit / GIB}

    def check(self, budget: int) -> None:
        """Refuse a budget that cannot even hold what must be on the device at once.

        Raises:
            InvalidRequest: with the smallest budget.
        """
        if budget < self.outside + max(need.size.smallest for need in self.needs.values()):
            raise InvalidRequest(
                "`vram_budget_gib` is too small for these networks",
                received=round(budget / GIB, 3),
                allowed=f"about {self.smallest / GIB:.2f} or more for this request",
            )

    def __str__(self) -> str:
        stages = ", ".join(f"{stage} {need.smallest / GIB:.2f}" for stage, need in self.needs.items())
        source = f"fitted on {self.measured_on}" if self.measured_on else "estimates, not calibrated"
        return (
            f"planned GiB ({source}): {self.resident / GIB:.2f} resident, "
            f"{self.smallest / GIB:.2f} offloaded; by stage, offloaded: {stages}"
        )


@cache
def coefficients(kind: str) -> dict[str, Any]:
    """The fitted model of one kind of device, cuda or cpu."""
    return json.loads(COEFFICIENTS_FILE.read_text(encoding="utf-8"))[kind]


def requirements(
    networks: Mapping[str, nn.Module],
    device: torch.device,
    grid: LatentGrid,
    seconds: float,
    caches_steps: bool,
    fitted: Mapping[str, Any] | None = None,
) -> Requirements:
    """What a request takes.

    Args:
        networks: by the names in `NETWORK_OF_STAGE`; on the meta device they need no memory.
        device: only its kind matters.
        grid: of one chunk.
        seconds: of the recording.
        caches_steps: whether the step cache keeps residuals.
        fitted: coefficients; unset: the shipped ones.
    """
    fitted = fitted or coefficients(device.type)
    sizes = {name: NetworkSize.of(network, STREAMED_BLOCKS.get(name)) for name, network in networks.items()}
    needs, pieces = {}, 1 + (FRAGMENTED if device.type == "cuda" else 0)
    for stage, name in NETWORK_OF_STAGE.items():
        if name not in networks:
            continue
        unit = largest_activation(stage, networks[name], grid, seconds)
        model = fitted["stages"][stage]
        extra = 0
        if stage == "sampling" and caches_steps:
            extra = 3 * unit  # a residual for each guidance branch
        if stage == "decode" and device.type == "cpu":
            extra = chunk_bytes(grid)
        work = round(pieces * (model["base_gib"] * GIB + model["activations"] * unit)) + extra
        needs[stage] = StageMemory(name, sizes[name], unit, extra, work)
    kept = _keys_and_values(networks["transformer"], grid) if "transformer" in networks else 0
    return Requirements(needs, round(fitted["outside_gib"] * GIB), kept, fitted["measured_on"])


def chunk_bytes(grid: LatentGrid) -> int:
    """Bytes of a chunk's frames, which are gathered in host memory."""
    return 3 * FLOAT_BYTES * grid.frames * grid.height * grid.width


def largest_activation(stage: str, network: Any, grid: LatentGrid, seconds: float) -> int:
    """Bytes of the activation that a stage has most of: the unit in which its work is counted."""
    config = network.config
    if stage == "sampling":
        return grid.tokens * config.dim * network.dtype.itemsize
    weights = network.conv2 if stage == "decode" else network
    element = next(weights.parameters()).element_size()
    if stage in ("vae_encode", "decode"):
        # Frames of a latent frame; at full size the autoencoder is `dim` channels wide.
        return config.frames_per_latent * grid.height * grid.width * config.dim * element
    if stage == "text":
        return 2 * TEXT_TOKENS * config.ffn_dim * element  # prompt and negative prompt
    if stage == "image":
        return (1 + (config.image_size // config.patch_size) ** 2) * config.ffn_dim * element
    frames = seconds * config.sampling_rate / config.conv_stride[0]
    return round(frames * config.conv_dim[0] * element)


def _keys_and_values(transformer: Any, grid: LatentGrid) -> int:
    """Bytes of every block's keys and values: two prompts, the picture, recording and silence."""
    config = transformer.config
    tokens = 2 * config.text_len + 257 + 2 * grid.latent_frames * config.audio_tokens
    return 2 * config.num_layers * tokens * config.dim * transformer.dtype.itemsize
