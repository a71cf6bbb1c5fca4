"""Model of the memory a request needs, stage by stage, for plans, offloading and error messages.

A stage needs the weights of its network and a multiple of its largest activation. The size of the weights
follows from their shapes, which are known without loading them. The multiples in `memory_coefficients.json`
are fitted to measured profiles; where `measured_on` is empty, they are estimates.
"""

import importlib.util
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

from talkinghead_lab.errors import InvalidRequest
from talkinghead_lab.foundation.devices import GIB
from talkinghead_lab.foundation.latent_grid import FRAMES_PER_SECOND, LatentGrid
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
# Block lists of the two networks that are too large for a small GPU; other networks move as one.
STREAMED_BLOCKS = {"transformer": "blocks", "text encoder": "encoder.block"}
TEXT_TOKENS = 512  # longest prompt of the released model
FLOAT_BYTES = 4
# What the activation memory of sampling depends on besides sizes. PLAIN: without the fused layers.
# DEQUANTIZED: stored in fewer bits, multiplied in bf16.
EAGER, FP8, DEQUANTIZED = "eager", "fp8 matmuls", "dequantised"
EIGHT_BIT_ATTENTION, TWO_SPEAKERS, PLAIN = "eight-bit attention", "two speakers", "plain layers"
# Fragmentation of PyTorch's GPU allocator, as a share of a stage's activation memory. Compiled blocks take
# turns with tensors of many sizes: within 8 GiB on an H100, sampling reserved 1.48 and 1.49 times its peak
# (one and two speakers), the other stages at most 1.24 times.
FRAGMENTED = {"sampling": 1 / 2}
FRAGMENTED_ELSEWHERE = 1 / 3


@dataclass(frozen=True)
class NetworkSize:
    """Bytes of a network on a device: `blocks` streamable blocks of `block` bytes, and `fixed` others."""

    fixed: int
    block: int = 0
    blocks: int = 0

    @classmethod
    def of(cls, network: nn.Module, blocks: str | None = None) -> "NetworkSize":
        """Sizes of a network, which may be on the meta device; `blocks` is the name of its list of blocks."""
        tensors = list(chain(network.parameters(), network.buffers()))
        if blocks is None:
            return cls(sum(tensor.nbytes for tensor in tensors))
        streamed = [large_tensors(block) for block in network.get_submodule(blocks).children()]
        large = {id(tensor) for block in streamed for tensor in block}
        fixed = sum(tensor.nbytes for tensor in tensors if id(tensor) not in large)
        return cls(fixed, max(map(slot_bytes, streamed)), len(streamed))

    @property
    def total(self) -> int:
        """Bytes of all weights."""
        return self.fixed + self.blocks * self.block

    @property
    def smallest(self) -> int:
        """Bytes on the device while all blocks stream."""
        return self.fixed + min(SLOTS, self.blocks) * self.block


@dataclass(frozen=True)
class StageMemory:
    """Memory of one stage, in bytes.

    Args:
        network: name of its network.
        size: weights of its network.
        unit: largest activation.
        extra: of known size: residuals of the step cache, collected frames, a dequantised matrix.
        work: everything but the weights according to the fitted model, with fragmentation and `extra`.
        traits: what else the activation memory depends on; see `requirements`.
    """

    network: str
    size: NetworkSize
    unit: int
    extra: int
    work: int
    traits: tuple[str, ...] = ()

    @property
    def smallest(self) -> int:
        """Bytes while all blocks stream."""
        return self.size.smallest + self.work

    def room(self, limit: int) -> int:
        """Bytes left for blocks within `limit`."""
        return max(0, limit - self.size.fixed - self.work)

    def held(self, limit: int) -> int:
        """Bytes of weights on the device within `limit`, slots included."""
        resident = resident_blocks(self.room(limit), self.size.block, self.size.blocks)
        slots = SLOTS if resident < self.size.blocks else 0
        return self.size.fixed + (resident + slots) * self.size.block


@dataclass(frozen=True)
class Requirements:
    """Memory requirements of a request on a type of device, in bytes.

    Args:
        needs: memory by stage.
        outside: memory of the driver and of libraries, apart from PyTorch's tensors.
        kept: cached keys and values of the conditions; they are cached only if everything is resident. On a
            CPU, also the encoded recordings, which are always in host memory.
        measured_on: the machine whose profiles the model was fitted to; None: estimates.
    """

    needs: Mapping[str, StageMemory]
    outside: int
    kept: int
    measured_on: str | None

    @property
    def weights(self) -> dict[str, int]:
        """Bytes of each network's weights."""
        return {need.network: need.size.total for need in self.needs.values()}

    @property
    def work(self) -> int:
        """Memory besides weights of the largest stage, with cached keys and values."""
        return max(need.work for need in self.needs.values()) + self.kept

    @property
    def resident(self) -> int:
        """Memory with all networks on the device."""
        return self.outside + sum(self.weights.values()) + self.work

    @property
    def smallest(self) -> int:
        """The smallest feasible budget: one network at a time on the device, with all blocks streamed."""
        return self.outside + max(need.smallest for need in self.needs.values())

    def known(self, stage: str, budget: int | None) -> dict[str, Any]:
        """What the memory of a stage follows from: sizes in GiB that shapes give, and traits.

        Args:
            stage: the result is empty for a stage without a model.
            budget: bytes of device memory; None: all weights are resident.
        """
        if stage not in self.needs:
            return {}
        need = self.needs[stage]
        held = sum(self.weights.values()) + (self.kept if stage in ("sampling", "decode") else 0)
        if budget is not None:
            held = need.held(budget - self.outside)
        sizes = {"held_gib": held / GIB, "extra_gib": need.extra / GIB, "unit_gib": need.unit / GIB}
        return sizes | {"traits": ", ".join(need.traits)}

    def check(self, budget: int) -> None:
        """Refuse a budget that cannot hold the weights that must be on the device together.

        Raises:
            InvalidRequest: the budget is too small; the error names the smallest one.
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
    """Coefficients of the memory model for a type of device, `cuda` or `cpu`."""
    fitted: dict[str, Any] = json.loads(COEFFICIENTS_FILE.read_text(encoding="utf-8"))[kind]
    return fitted


def requirements(
    networks: Mapping[str, nn.Module],
    device: torch.device,
    grid: LatentGrid,
    seconds: float,
    kept_tensors: int = 0,
    voices: int = 1,
    fitted: Mapping[str, Any] | None = None,
    traits: Collection[str] = (),
) -> Requirements:
    """Compute the memory requirements of a request.

    Args:
        networks: by the names in `NETWORK_OF_STAGE`; on the meta device they take no memory.
        device: only its type matters.
        grid: of one chunk.
        seconds: duration of the recording.
        kept_tensors: of the size of the tokens, that the step cache keeps.
        voices: number of recordings.
        fitted: coefficients of the memory model; unset: the bundled ones.
        traits: of sampling, out of `EAGER`, `FP8`, `EIGHT_BIT_ATTENTION` and `PLAIN`.
    """
    fitted = fitted or coefficients(device.type)
    sizes = {name: NetworkSize.of(network, STREAMED_BLOCKS.get(name)) for name, network in networks.items()}
    needs = {}
    for stage, name in NETWORK_OF_STAGE.items():
        if name not in networks:
            continue
        unit = largest_activation(stage, networks[name], grid, seconds)
        model = fitted["stages"][stage]
        extra = 0
        kinds: tuple[str, ...] = ()
        if stage == "sampling":
            dequantized = 0 if FP8 in traits else _largest_dequantized(networks[name])
            holds = {TWO_SPEAKERS: voices > 1, DEQUANTIZED: dequantized > 0}
            kinds = _kinds({*traits, *(trait for trait in holds if holds[trait])})
            extra = dequantized + kept_tensors * unit + _beside_loras(networks[name], device, unit)
        if stage == "decode" and device.type == "cpu":
            extra = chunk_bytes(grid)
        activations = model["activations"] + sum(model.get("traits", {}).get(kind, 0.0) for kind in kinds)
        pieces = 1 + (FRAGMENTED.get(stage, FRAGMENTED_ELSEWHERE) if device.type == "cuda" else 0)
        work = round(pieces * (model["base_gib"] * GIB + activations * unit)) + extra
        needs[stage] = StageMemory(name, sizes[name], unit, extra, work, kinds)
    kept = _keys_and_values(networks["transformer"], grid, voices) if "transformer" in networks else 0
    if "speech encoder" in networks and device.type == "cpu":
        kept += voices * _speech_states(networks["speech encoder"], seconds)
    # PyTorch imports Triton where it is installed; the coefficients of a GPU were measured with it.
    has_triton = importlib.util.find_spec("triton") is not None
    outside = fitted["outside_gib"] + (fitted.get("triton_gib", 0.0) if has_triton else 0.0)
    return Requirements(needs, round(outside * GIB), kept, fitted["measured_on"])


def chunk_bytes(grid: LatentGrid) -> int:
    """Bytes of a chunk's frames as float32 in host memory."""
    return 3 * FLOAT_BYTES * grid.frames * grid.height * grid.width


def largest_activation(stage: str, network: Any, grid: LatentGrid, seconds: float) -> int:
    """Bytes of the largest activation of a stage, the unit of its fitted memory."""
    config = network.config
    if stage == "sampling":
        return int(grid.tokens * config.dim * network.dtype.itemsize)
    weights = network.conv2 if stage == "decode" else network
    element = next(weights.parameters()).element_size()
    if stage in ("vae_encode", "decode"):
        # The frames of one latent frame; at full resolution the autoencoder has `dim` channels.
        return int(config.frames_per_latent * grid.height * grid.width * config.dim * element)
    if stage == "text":
        return int(2 * TEXT_TOKENS * config.ffn_dim * element)  # prompt and negative prompt
    if stage == "image":
        return int((1 + (config.image_size // config.patch_size) ** 2) * config.ffn_dim * element)
    # The first convolution; everything after it is smaller, also for a long recording.
    samples = min(seconds * config.sampling_rate, config.samples_per_piece)
    size: float = samples / config.conv_stride[0] * config.conv_dim[0] * element
    return round(size)


def _kinds(traits: Collection[str]) -> tuple[str, ...]:
    """Names of what adds to the activation memory; compiled and eager layers hold other activations."""
    if EAGER not in traits:
        return tuple(sorted(traits))
    return tuple(sorted(trait if trait == EAGER else f"{EAGER} {trait}" for trait in traits))


def _largest_dequantized(transformer: Any) -> int:
    """Bytes of the largest matrix of the blocks that is stored in other types than it is multiplied in."""
    blocks = transformer.get_submodule(STREAMED_BLOCKS["transformer"])
    quantized: list[Any] = [layer for layer in blocks.modules() if hasattr(layer, "dequantized")]
    elements = max((layer.shape[0] * layer.shape[1] for layer in quantized), default=0)
    return int(elements * transformer.dtype.itemsize)


def _beside_loras(transformer: Any, device: torch.device, unit: int) -> int:
    """Bytes of the feed-forward activation that GPUs hold twice where a LoRA is kept beside the weights."""
    attached = any(hasattr(layer, "strength") for layer in transformer.modules())
    config = transformer.config
    return round(unit * config.ffn_dim / config.dim) if attached and device.type == "cuda" else 0


def _keys_and_values(transformer: Any, grid: LatentGrid, voices: int) -> int:
    """Bytes of all blocks' keys and values: two prompts, the image, audio of each voice and silence."""
    config = transformer.config
    tokens = 2 * config.text_len + 257 + (voices + 1) * grid.latent_frames * config.audio_tokens
    return int(2 * config.num_layers * tokens * config.dim * transformer.dtype.itemsize)


def _speech_states(encoder: Any, seconds: float) -> int:
    """Bytes of an encoded recording: one row per layer and video frame."""
    config, element = encoder.config, next(encoder.parameters()).element_size()
    frames = round(seconds * FRAMES_PER_SECOND)
    return int(frames * config.num_hidden_layers * config.hidden_size * element)
