"""Checks of the Triton kernels that take CPU tensors, interpreted or compiled for a GPU that is not there."""

import math
import os
from collections.abc import Iterator
from dataclasses import replace

import torch

from talkinghead_lab.models.kernels import quantized_attention, self_checks
from talkinghead_lab.models.kernels.fp8 import FP8
from talkinghead_lab.models.kernels.self_checks import Comparison
from talkinghead_lab.models.vae.layers import CausalConv3d, Head, ResidualBlock
from talkinghead_lab.models.vae.model import VAE
from talkinghead_lab.weights.released_sizes import RELEASED_VAE


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


def vae_blocks(device: torch.device) -> Iterator[Comparison]:
    """The self-check, and a network whose blocks hand biases and past frames on."""
    yield from self_checks.vae_blocks(device)
    config = replace(RELEASED_VAE, dim=16, stage_dims=(16, 16, 32, 32), num_res_blocks=1)
    torch.manual_seed(0)
    vae, latent = VAE(config).eval().requires_grad_(False), torch.randn(1, config.z_dim, 3, 2, 3)
    for tensor in vae.parameters():
        tensor.data += 0.1 * torch.randn_like(tensor)
    plain = vae.decode(latent)
    for module in vae.modules():
        if isinstance(module, ResidualBlock | Head):
            module.has_triton_kernels = True
        if isinstance(module, CausalConv3d):
            module.stacked_fill_registers = False  # only CPUs do so
    for pieces in (1, 3):
        error = float((vae.decode(latent, pieces) - plain).norm() / plain.norm())
        yield f"decoding, {pieces} at once", error, 1e-5


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
