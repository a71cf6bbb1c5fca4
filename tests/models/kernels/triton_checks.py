"""Checks of the Triton kernels that take CPU tensors, interpreted or compiled for a GPU that is not there."""

import math
import os
from collections.abc import Iterator

import torch

from talkinghead_lab.models.kernels import quantized_attention, self_checks
from talkinghead_lab.models.kernels.self_checks import Comparison


def int8_attention(device: torch.device) -> Iterator[Comparison]:
    """The kernel `triton`; on a CPU, its self-check compares the emulation."""
    from talkinghead_lab.models.kernels import triton_attention, triton_quantize

    query, key, value = torch.randn(
        3, 1, self_checks.TOKENS, 2, 128, generator=torch.Generator().manual_seed(0)
    ).to(device, self_checks.DTYPE)
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


CHECKS = {
    "triton": int8_attention,
    **{
        name: self_checks.CHECKS[name]
        for name in ("text_image", "fused_layers", "fused_fp8_layers", "two_speakers", "dequantize")
    },
}
