"""Checks of the Triton kernels that take CPU tensors, interpreted or compiled for a GPU that is not there."""

import math
import os
from collections.abc import Iterator

import torch

from talkinghead_lab.models.kernels import quantized_attention, self_checks
from talkinghead_lab.models.kernels.fp8 import FP8
from talkinghead_lab.models.kernels.self_checks import Comparison


def int8_attention(device: torch.device) -> Iterator[Comparison]:
    """The kernel `triton`; on a CPU, its self-check compares the emulation."""
    from talkinghead_lab.models.kernels import triton_attention, triton_quantize

    query, key, value = _inputs(device)
    expected, out = quantized_attention.attention_triton(query, key, value), torch.empty_like(query)
    # The interpreter has no GPU to choose tiles for.
    interpreted = "TRITON_INTERPRET" in os.environ
    tiles = triton_attention.TILES if interpreted else triton_attention.tiles_of_this_gpu()
    centre = value.float().mean(dim=1, keepdim=True)
    scale = (value - centre).abs().amax(dim=1, keepdim=True) / 127
    triton_attention.attend(
        triton_quantize.quantize_queries(query, math.log2(math.e) / math.sqrt(128)),
        triton_quantize.quantize_keys(key, key.float().mean(dim=1, keepdim=True), tiles.keys),
        triton_quantize.quantize_values(value, centre, scale, torch.int8, tiles.keys),
        tiles,
        quantized_attention.EXPONENT_RANGE,
        out,
    )
    yield "emulation", float((out - expected).norm() / expected.norm()), 0.02


def hopper_attention(device: torch.device) -> Iterator[Comparison]:
    """The kernel `triton_hopper`, which Triton's interpreter does not know."""
    from talkinghead_lab.models.kernels import triton_hopper_attention, triton_quantize

    query, key, value = _inputs(device)
    centre, out = value.float().mean(dim=1, keepdim=True), torch.empty_like(query)
    triton_hopper_attention.attend(
        triton_quantize.quantize_queries(query, 1.0),
        triton_quantize.quantize_keys(key, centre, 128),
        triton_quantize.quantize_values(value, centre, centre.abs() + 1, FP8, 128),
        quantized_attention.EXPONENTIAL_SHIFT,
        out,
    )
    yield "compiled", 0.0, 0.0


def _inputs(device: torch.device) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 1, self_checks.TOKENS, 2, 128, generator=generator).to(device, self_checks.DTYPE)


CHECKS = {
    "triton": int8_attention,
    **{
        name: self_checks.CHECKS[name]
        for name in (
            "text_image",
            "fused_layers",
            "fused_fp8_layers",
            "two_speakers",
            "dequantize",
            "vae_blocks",
        )
    },
}
# Too much for the interpreter.
COMPILED = CHECKS | {"triton_hopper": hopper_attention}
