"""One forward pass for two speakers: its time beside that for one, and its error against float32."""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from talkinghead_lab.bench.forwards import random_latent, relative_error, velocity
from talkinghead_lab.bench.roofline import fastest_attention
from talkinghead_lab.bench.rows import Results, Row, seconds_of
from talkinghead_lab.bench.sizes import Size, random_conditions, random_dit
from talkinghead_lab.models.dit.model import DiT
from talkinghead_lab.offload.residency import free_weights

# A float32 pass through all blocks would take a minute; the error of the first ones compares implementations.
ERROR_BLOCKS = 8
SPEAKERS = (1, 2)


@torch.inference_mode()
def measure_two_speakers(size: Size, device: torch.device, results: Results) -> None:
    """Measure bf16, eager and compiled, for one speaker and for two."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    attention = fastest_attention(results, True, device)
    errors = _errors(size, device, dtype, attention)
    dit, latent = random_dit(size.dit, device, dtype), random_latent(size, device)
    dit.use_attention(attention, device)
    conditions = {n: random_conditions(dit, size.grid, device, speakers=n) for n in SPEAKERS}
    for way in ("eager", "compiled"):
        if way == "compiled":
            dit.compile_blocks()
        alone = 0.0
        for speakers in SPEAKERS:
            seconds = seconds_of(partial(velocity, dit, latent, conditions[speakers]), device)
            alone = alone or seconds
            noted: dict[str, Any] = {"error_to_float32": errors[way, speakers]}
            noted |= {"of_one_speaker": seconds / alone, "attention": attention}
            results.add(Row(f"speakers: {speakers}, bf16, {way}", seconds, conditions=noted))


def _errors(
    size: Size, device: torch.device, dtype: torch.dtype, attention: str
) -> dict[tuple[str, int], float]:
    """Errors of the first blocks against float32 with the same weights, by way and number of speakers."""
    size = replace(size, dit=replace(size.dit, num_layers=min(ERROR_BLOCKS, size.dit.num_layers)))
    dit = random_dit(size.dit, device, dtype)
    exact = random_dit(size.dit, device, torch.float32)
    exact.load_state_dict(dit.state_dict())
    expected = _velocities(exact, size, device)
    free_weights(exact)
    dit.use_attention(attention, device)
    outs = {"eager": _velocities(dit, size, device)}
    dit.compile_blocks()
    outs["compiled"] = _velocities(dit, size, device)
    free_weights(dit)
    return {(way, n): relative_error(out[n], expected[n]) for way, out in outs.items() for n in SPEAKERS}


def _velocities(dit: DiT, size: Size, device: torch.device) -> dict[int, Tensor]:
    """Velocity by number of speakers."""
    latent = random_latent(size, device)
    return {n: velocity(dit, latent, random_conditions(dit, size.grid, device, speakers=n)) for n in SPEAKERS}
