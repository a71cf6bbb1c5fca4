"""Weights in block types of GGUF: dequantisation, forward passes with errors, and a pass within a budget."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from talkinghead_lab.bench.forwards import ForwardPass, random_latent, relative_error, velocity
from talkinghead_lab.bench.rows import GIB, Results, Row, measure, sustained_seconds_of
from talkinghead_lab.bench.sizes import Size, random_conditions, random_dit
from talkinghead_lab.models.dit.model import DiT
from talkinghead_lab.models.kernels.block_types import BLOCK_TYPES, quantize_q8_0
from talkinghead_lab.models.quantized.blocks import BlockQuantizedLinear
from talkinghead_lab.models.quantized.linear import QuantizedLinear
from talkinghead_lab.offload.requirements import requirements
from talkinghead_lab.offload.residency import free_weights, within_budget
from talkinghead_lab.offload.streamed_blocks import StreamedBlocks, stream
from talkinghead_lab.weights.reading import replace_module

BUDGET = 8 * GIB
ERROR_FRAMES = 9  # a pass in float32 takes long


def quantize_q4_k(weight: Tensor) -> Tensor:
    """Quantise [out, in] to Q4_K between the extremes of each group; ggml searches for better scales."""
    groups = weight.float().reshape(-1, 8, 32)
    lowest = groups.amin(dim=2).clamp(max=0)
    ranges = torch.stack(((groups.amax(dim=2) - lowest) / 15, -lowest))
    halves = (ranges.amax(dim=2, keepdim=True) / 63).half()
    codes = (ranges / halves.float().clamp(min=1e-12)).round().clamp(max=63)
    step, shift = (halves.float() * codes).unsqueeze(-1)
    values = ((groups + shift) / step.clamp(min=1e-12)).round().clamp(0, 15).to(torch.uint8)
    first, last = codes.to(torch.uint8).unflatten(2, (2, 4)).unbind(2)
    sixes = [*(first | last >> 4 << 6), last[0] & 15 | last[1] << 4]
    nibbles = (values[:, 0::2] | values[:, 1::2] << 4).flatten(1)
    return torch.cat([*halves.view(torch.uint8), *sixes, nibbles], dim=1).view(len(weight), -1)


WRITERS: dict[str, Callable[[Tensor], Tensor]] = {"Q8_0": quantize_q8_0, "Q4_K": quantize_q4_k}


class HeldLinear(QuantizedLinear):
    """A linear layer that holds bf16 and multiplies in the type of its input."""

    @property
    def stored_as(self) -> str:
        """bf16."""
        return "bf16"

    def dequantized(self) -> Tensor:
        """The weight [out, in] in float32."""
        return self.weight.float()

    def requantized(self, weight: Tensor) -> "HeldLinear":
        """The layer with another weight."""
        return HeldLinear(weight.to(self.weight.dtype), self.bias)


def measure_gguf(size: Size, device: torch.device, results: Results) -> None:
    """Measure dequantisation, compiled forward passes with their errors, and one within `BUDGET`."""
    _measure_dequantization(size, device, results)
    errors = _float32_errors(size, device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    expected = None
    for kind in ("bf16", *WRITERS):
        forward = ForwardPass(size, device, dtype, partial(_prepare, kind=kind, device=device))
        out = forward()
        expected = out if expected is None else expected
        conditions = {
            "relative_error": relative_error(out, expected),
            "float32_error": errors[kind],
        }
        seconds, peak = measure(forward, device, repeats=3, warm_up=1)
        results.add(Row(f"gguf: forward, {kind}, compiled", seconds, peak_gib=peak, conditions=conditions))
        if kind == "Q4_K":
            _measure_budget(forward, seconds, results)
        free_weights(forward.dit)


def _prepare(dit: DiT, kind: str, device: torch.device) -> None:
    """Quantise the blocks, choose the fastest exact attention and compile."""
    if kind in WRITERS:
        quantize_blocks(dit, kind)
    dit.use_attention("auto", device)
    dit.compile_blocks()


def quantize_blocks(dit: DiT, kind: str) -> None:
    """Store the linear layers of all blocks in a block type."""
    blocks = dit.get_submodule("blocks")
    for name, layer in list(blocks.named_modules()):
        if isinstance(layer, nn.Linear):
            replace_module(blocks, name, _quantized(layer.weight, layer.bias, kind))


def _quantized(weight: Tensor, bias: Tensor | None, kind: str) -> BlockQuantizedLinear:
    if weight.shape[1] % BLOCK_TYPES[kind].weights:
        kind = "Q8_0"  # as ggml does with narrow matrices
    return BlockQuantizedLinear(WRITERS[kind](weight.detach()), kind, bias)


@torch.inference_mode()
def _float32_errors(size: Size, device: torch.device) -> dict[str, float]:
    """Errors of one pass that computes in float32: those of the stored weights alone."""
    size = replace(size, grid=replace(size.grid, frames=ERROR_FRAMES))
    dit = random_dit(size.dit, device, torch.bfloat16)
    blocks = dit.get_submodule("blocks")
    held: dict[str, QuantizedLinear] = {}
    for name, layer in list(blocks.named_modules()):
        if isinstance(layer, nn.Linear):
            held[name] = HeldLinear(layer.weight.data, layer.bias.data)
            replace_module(blocks, name, held[name])
    for parameter in dit.parameters():  # the weights that are held are buffers
        parameter.data = parameter.data.float()

    def out() -> Tensor:
        return velocity(dit, random_latent(size, device), random_conditions(dit, size.grid, device))

    expected, errors = out(), {"bf16": 0.0}
    for kind in WRITERS:
        for name, layer in held.items():
            replace_module(blocks, name, _quantized(layer.weight, layer.bias, kind))
        errors[kind] = relative_error(out(), expected)
    return errors


def _measure_dequantization(size: Size, device: torch.device, results: Results) -> None:
    """Measure every type on the largest matrix of a block."""
    rows, width = size.dit.ffn_dim, size.dit.dim
    for kind, block in BLOCK_TYPES.items():
        shape = rows, width // block.weights * block.nbytes
        stored = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
        layer = BlockQuantizedLinear(stored, kind)
        seconds = sustained_seconds_of(partial(layer.weight_as, torch.bfloat16), device)
        moved = stored.nbytes + 2 * rows * width
        conditions = {"gbps": moved / seconds / 1e9}
        results.add(Row(f"gguf: dequantise {kind}, {rows}x{width}", seconds, conditions=conditions))


def _measure_budget(forward: ForwardPass, resident: float, results: Results) -> None:
    """Measure a pass within `BUDGET`, where blocks stream and keys and values are not cached."""
    dit, device, grid = forward.dit.to("cpu"), forward.device, forward.size.grid
    stream(dit, "blocks", device)
    need = requirements({"transformer": dit}, device, grid, 1.0).needs["sampling"]
    with within_budget(dit, device, BUDGET, need):
        forward.conditions = random_conditions(dit, grid, device, precompute=False)
        seconds, peak = measure(forward, device, repeats=3, warm_up=2)
    blocks = cast(StreamedBlocks, dit.get_submodule("blocks"))
    conditions = {
        "slow_down": seconds / resident,
        "block_gib": blocks.block_bytes / GIB,
        "smallest_gib": need.smallest / GIB,
    }
    name = f"gguf: forward, Q4_K, compiled, within {BUDGET / GIB:.0f} GiB"
    results.add(Row(name, seconds, peak_gib=peak, conditions=conditions))
