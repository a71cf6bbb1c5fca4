"""One forward pass of the transformer with each speed-up, and the cost of a step around its passes."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from talkinghead_lab.bench.roofline import fastest_attention, roofline_seconds
from talkinghead_lab.bench.rows import Results, Row, measure, seconds_of
from talkinghead_lab.bench.sizes import Size, random_conditions, random_dit
from talkinghead_lab.models.dit.model import DiT
from talkinghead_lab.models.kernels.fp8 import FP8
from talkinghead_lab.sampling.chunk_sampling import ChunkConditions, sample_chunk
from talkinghead_lab.sampling.config import SamplingConfig
from talkinghead_lab.sampling.step_cache import EstimatedCache
from talkinghead_lab.weights.quantization import has_fp8, multiply_fp8, quantize_linears

TIMESTEP = 500.0
EAGER, COMPILED = "forward: bf16, eager", "forward: bf16, compiled"
FP8_LINEAR, ALL = (
    "forward: fp8 linear layers, compiled",
    "forward: fp8 linear layers, eight-bit attention, compiled",
)
SKIPPED, OUTSIDE = "step: a skipped forward", "step: outside its three forwards"
# Steps sampled with a network without blocks, to time what surrounds the forward passes.
EMPTY_STEPS = 20


class ForwardPass:
    """A transformer and the inputs of one forward pass; calling it returns the velocity.

    `change` is called with the transformer before it embeds the conditions.
    """

    def __init__(
        self,
        size: Size,
        device: torch.device,
        dtype: torch.dtype,
        change: Callable[[DiT], object] = lambda dit: None,
    ) -> None:
        self.size, self.device = size, device
        self.dit = random_dit(size.dit, device, dtype)
        change(self.dit)
        self.conditions = random_conditions(self.dit, size.grid, device)
        self.latent = random_latent(size, device)

    @torch.inference_mode()
    def __call__(self) -> Tensor:
        """Velocity [1, C, T, h, w]."""
        return velocity(self.dit, self.latent, self.conditions)


def random_latent(size: Size, device: torch.device) -> Tensor:
    """Noise [1, C, T, h, w] in the shape of a chunk's latent."""
    generator = torch.Generator(device).manual_seed(2)
    shape = (1, *size.grid.latent_shape(size.dit.out_dim))
    return torch.randn(shape, generator=generator, device=device)


def velocity(dit: DiT, latent: Tensor, conditions: ChunkConditions) -> Tensor:
    """One forward pass, from latent to velocity, both [1, C, T, h, w]."""
    time = dit.time_embedding_of(torch.full((1,), TIMESTEP, device=latent.device))
    tokens = dit.run_blocks(
        dit.patchify(latent, conditions.picture),
        time,
        conditions.rotation,
        conditions.texts[True],
        conditions.image,
        conditions.audios[True],
        conditions.regions,
    )
    return dit.unpatchify(tokens, time, latent.shape)


def measure_forward_passes(size: Size, device: torch.device, results: Results) -> None:
    """Measure bf16 eager and compiled, fp8 linear layers, then eight-bit attention; each with its error."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    forward = ForwardPass(size, device, dtype)
    exact, quantized = (fastest_attention(results, is_exact, device) for is_exact in (True, False))
    fp8 = "fp8" if has_fp8(device) else "bf16"
    forward.dit.use_attention(exact, device)
    expected = forward()
    variants: list[tuple[str, Callable[[DiT], object], str, str]] = [
        (EAGER, lambda dit: None, exact, "bf16"),
        (COMPILED, DiT.compile_blocks, exact, "bf16"),
        (FP8_LINEAR, use_fp8, exact, fp8),
        (ALL, lambda dit: dit.use_attention(quantized, device), quantized, fp8),
    ]
    for name, change, kind, matmuls in variants:
        change(forward.dit)
        floor = roofline_seconds(size.dit, results, matmuls, quantized_attention=kind == quantized)
        _add(results, name, forward, expected, floor, kind)


def use_fp8(dit: DiT) -> None:
    """Quantise the linear layers of the blocks to fp8, and multiply in fp8."""
    quantize_linears(dit.get_submodule("blocks"), FP8)
    multiply_fp8(dit)


def _add(
    results: Results, name: str, forward: ForwardPass, expected: Tensor, floor: float | None, attention: str
) -> None:
    """Add one row. The first call compiles, or loads what an earlier process compiled."""
    started = time.perf_counter()
    error = relative_error(forward(), expected)
    conditions = {
        "attention": attention,
        "first call": time.perf_counter() - started,
        "relative_error": error,
    }
    seconds, peak = measure(forward, forward.device, repeats=2, warm_up=0)
    results.add(Row(name, seconds, floor=floor, peak_gib=peak, conditions=conditions))


def relative_error(out: Tensor, expected: Tensor) -> float:
    """‖out − expected‖ / ‖expected‖."""
    return float((out - expected).norm() / expected.norm())


@torch.inference_mode()
def measure_steps(size: Size, device: torch.device, results: Results) -> None:
    """Measure a step outside its forward passes, and a skipped pass, with a network without blocks."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    dit = random_dit(replace(size.dit, num_layers=0), device, dtype)
    conditions, latent = random_conditions(dit, size.grid, device), random_latent(size, device)
    # Three forward passes a step, as the released presets have.
    config = SamplingConfig(EMPTY_STEPS, shift=7.0, text_scale=5.0, audio_scale=4.0)
    work = partial(sample_chunk, dit, latent, conditions, config)
    results.add(Row(OUTSIDE, seconds_of(work, device) / EMPTY_STEPS))
    time = dit.time_embedding_of(torch.full((1,), TIMESTEP, device=device))
    tokens = dit.patchify(latent, conditions.picture)
    cache = EstimatedCache([False, True])
    residual = cache.new_pass()
    cache.begin(0)
    residual.run(tokens, lambda tokens, shortcut: 2 * tokens)
    cache.begin(1)

    def skipped() -> Tensor:
        return dit.unpatchify(residual.run(tokens, lambda tokens, shortcut: tokens), time, latent.shape)

    results.add(Row(SKIPPED, seconds_of(skipped, device, repeats=10)))
