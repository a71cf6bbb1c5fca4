"""Peak memory of sampling by frame size, speakers, stored format, compilation and kernels.

Two blocks stand for all: they are what the smallest budget holds, and every block needs the same activations.
"""

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from talkinghead_lab.bench.gguf import WRITERS, quantize_blocks
from talkinghead_lab.bench.offload import LARGER, add_profile
from talkinghead_lab.bench.roofline import fastest_attention
from talkinghead_lab.bench.rows import Results, Row
from talkinghead_lab.bench.sizes import Size, random_conditions, random_dit, random_inputs
from talkinghead_lab.foundation.latent_grid import LatentGrid
from talkinghead_lab.models.dit.model import DiT
from talkinghead_lab.models.kernels.fp8 import FP8
from talkinghead_lab.offload import requirements as model
from talkinghead_lab.runs.stage_clock import StageClock
from talkinghead_lab.sampling.chunk_sampling import sample_chunk
from talkinghead_lab.sampling.config import SamplingConfig
from talkinghead_lab.weights.quantization import has_fp8, multiply_fp8, quantize_linears

BLOCKS = 2
STEPS = SamplingConfig(2, shift=7.0)  # the first compiles


def _as_fp8(dit: DiT) -> None:
    quantize_linears(dit.get_submodule("blocks"), FP8)
    multiply_fp8(dit)


STORED: dict[str, Callable[[DiT], object]] = {
    "bf16": lambda dit: None,
    "fp8": _as_fp8,
    "int8": lambda dit: quantize_linears(dit.get_submodule("blocks"), torch.int8),
    **{kind: lambda dit, kind=kind: quantize_blocks(dit, kind) for kind in WRITERS},  # type: ignore[misc]
}


@dataclass(frozen=True)
class Case:
    """One combination to measure; `size` counts from the smallest frame size."""

    size: int
    stored: str
    speakers: int = 1
    compiled: bool = False
    eight_bit: bool = False
    plain: bool = False


CASES = [Case(size, stored, count) for size in range(3) for stored in ("bf16", "fp8") for count in (1, 2)]
CASES += [Case(0, "int8"), Case(0, "Q8_0"), Case(0, "Q4_K"), Case(2, "int8"), Case(2, "Q4_K", 2)]
# Compiling takes longer than running, so a part of the combinations.
CASES += [Case(size, "bf16", count, True) for size, count in ((0, 1), (0, 2), (1, 1), (2, 1), (2, 2))]
CASES += [Case(size, "fp8", count, True) for size, count in ((0, 1), (0, 2), (1, 2), (2, 1))]
CASES += [Case(0, "int8", 1, True), Case(0, "Q8_0", 1, True), Case(2, "Q4_K", 2, True)]
CASES += [Case(size, "fp8", count, True, True) for size, count in ((0, 1), (1, 1), (2, 2))]
CASES += [Case(0, "bf16", plain=True), Case(2, "bf16", plain=True), Case(0, "bf16", 1, True, plain=True)]
CASES += [Case(1, "bf16", 2, True, plain=True)]


def measure_memory(size: Size, device: torch.device, results: Results) -> None:
    """Measure every case and append it to `profile.json`, which the memory model is fitted to."""
    sizes = f"{size.grid.width}x{size.grid.height}", *LARGER["released" if size.grid.width > 500 else "tiny"]
    for case in CASES:
        if case.size < len(sizes) and (case.stored != "fp8" or has_fp8(device) or device.type == "cpu"):
            _measure(case, sizes[case.size], size, device, results)


def _measure(case: Case, frame_size: str, size: Size, device: torch.device, results: Results) -> None:
    width, height = map(int, frame_size.split("x"))
    grid = LatentGrid(size.grid.frames, height, width)
    dit = random_dit(replace(size.dit, num_layers=BLOCKS), device, torch.bfloat16)
    STORED[case.stored](dit)
    dit.use_attention(fastest_attention(results, False, device) if case.eight_bit else "auto", device)
    for block in dit.blocks if case.plain else ():
        block.self_attn.has_triton_kernels = block.cross_attn.has_triton_kernels = False
    if case.compiled:
        torch.compiler.reset()
        dit.compile_blocks()
    traits = {
        model.EAGER: not case.compiled,
        model.FP8: case.stored == "fp8" and has_fp8(device),
        model.EIGHT_BIT_ATTENTION: case.eight_bit,
        model.PLAIN: case.plain,
    }
    held = [trait for trait, holds in traits.items() if holds]
    needs = model.requirements({"transformer": dit}, device, grid, 1.0, False, case.speakers, traits=held)
    clock = StageClock()
    with torch.inference_mode():
        conditions = random_conditions(dit, grid, device, speakers=case.speakers)
        latent = random_inputs(size.dit, grid, device).latent
        with clock("sampling"):
            sample_chunk(dit, latent, conditions, STEPS)
    timeline = [entry | needs.known("sampling", None) for entry in clock.timeline]
    words = [frame_size, f"{BLOCKS} blocks", case.stored, "compiled" if case.compiled else "eager"]
    words += ["two speakers"] * (case.speakers - 1) + ["eight-bit attention"] * case.eight_bit
    label = f"memory: {', '.join(words + ['plain layers'] * case.plain)}"
    peak = timeline[0].get("peak_gpu_gib")
    results.add(Row(label, timeline[0]["seconds"], peak_gib=peak, conditions=needs.known("sampling", None)))
    add_profile(results, device, label, {"error": None, "timeline": timeline})
    del dit, conditions, latent
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
