"""One process that loads a checkpoint and makes what it is asked for; a JSON line for each thing it has done.

A process of its own, because what counts is since its start and beside what lay on the device before.

A run says what of the request it changes. With a budget in the request all networks lie in host memory, and
the runs may have budgets of their own: GiB, `smallest` (by the plan) or `all` (all stays on the device).
`blocks` keeps so many of the transformer's from this run on.
"""

import itertools
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from talkinghead_lab.bench.checkpoint import random_checkpoint
from talkinghead_lab.bench.jobs import MOTION_FRAMES
from talkinghead_lab.bench.meters import Peaks, process_age
from talkinghead_lab.bench.rows import GIB, synchronize
from talkinghead_lab.bench.sizes import Size
from talkinghead_lab.errors import TalkingHeadError
from talkinghead_lab.foundation.devices import pick_device
from talkinghead_lab.media import audio
from talkinghead_lab.media.inputs import Inputs
from talkinghead_lab.media.reference import Portrait
from talkinghead_lab.offload.streamed_blocks import StreamedBlocks
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.pipeline.chunk_generator import ChunkGenerator
from talkinghead_lab.pipeline.pipeline import Pipeline
from talkinghead_lab.pipeline.request import resolve
from talkinghead_lab.runs.stage_clock import StageClock

SECONDS = 8.0
NOT_OF_REQUESTS = ("vram_budget_gib", "blocks")
# As the command `generate` starts.
START = """
import sys
from talkinghead_lab.foundation.imports import gc_disabled
with gc_disabled():
    from talkinghead_lab.bench import whole_job
whole_job.main(sys.argv[1])
"""
PROMPT = "a " * 511  # as many tokens as the released model reads at most, with the closing one


def request_of(size: Size, device: torch.device, folder: Path) -> dict[str, Any]:
    """One chunk in two steps of one forward, least to hide copies behind; the first of them compiles."""
    frames = size.grid.frames
    return random_checkpoint(folder, size) | {
        **{"text_guide_scale": 1.0, "audio_guide_scale": 1.0, "diffusion_steps": 2, "device": str(device)},
        **{"chunk_frames": frames, "max_frames": frames, "motion_frame": min(MOTION_FRAMES, frames - 4)},
    }


def media(frame_size: tuple[int, int]) -> Inputs:
    """A picture and a recording of noise."""
    noise = np.random.default_rng(0)
    picture = noise.integers(0, 256, (frame_size[1], frame_size[0], 3), dtype=np.uint8)
    wave = 0.1 * noise.standard_normal(round(SECONDS * audio.SAMPLE_RATE)).astype(np.float32)
    return Inputs(Portrait(Image.fromarray(picture)), frame_size, (wave,), wave[None])


def make(pipeline: Pipeline, params: GenerationParams, clock: StageClock) -> list[float]:
    """Make the frames of a request; returns the seconds of each step but the first of every chunk."""
    assert params.forced_size is not None
    inputs = media(params.forced_size)
    resolved = resolve(params, inputs)
    conditions = pipeline.encode(inputs, resolved, clock)
    generator = ChunkGenerator(pipeline, conditions, resolved, clock)
    frames, steps = None, []

    def on_step(step: int) -> None:
        synchronize(pipeline.device)
        ends.append(time.perf_counter())

    for chunk in resolved.chunks:
        ends: list[float] = []
        frames = generator.generate(chunk, frames, on_step=on_step).frames
        steps += [end - start for start, end in itertools.pairwise(ends)]
    return steps


def with_budget(pipeline: Pipeline, budget: object, plan: Any) -> Pipeline:
    """The same networks within another budget; see the head of this file."""
    if budget is None:
        return pipeline
    total = torch.cuda.get_device_properties(pipeline.device).total_memory if _is_gpu(pipeline) else 2**40
    smallest = math.ceil(plan.smallest / GIB * 10) / 10 * GIB
    bytes_of = {"all": total, "smallest": smallest}
    return replace(pipeline, budget=round(bytes_of.get(str(budget)) or float(str(budget)) * GIB))


def _is_gpu(pipeline: Pipeline) -> bool:
    return pipeline.device.type == "cuda"


def run(
    pipeline: Pipeline, request: GenerationParams, changes: Mapping[str, Any], peaks: Peaks
) -> dict[str, Any]:
    """Make one run and tell what it took."""
    budget, blocks = changes.get("vram_budget_gib"), changes.get("blocks")
    params = request.replace(
        **{name: value for name, value in changes.items() if name not in NOT_OF_REQUESTS}
    )
    if blocks is not None and blocks < len(pipeline.dit.blocks):
        fewer = itertools.islice(pipeline.dit.blocks, blocks)
        pipeline.dit.blocks = StreamedBlocks(fewer, pipeline.device)  # type: ignore[assignment]
    assert params.forced_size is not None
    plan = pipeline.requirements(resolve(params, media(params.forced_size)))
    pipeline = with_budget(pipeline, budget, plan)
    clock, steps, error = StageClock(), [], None
    with peaks:
        try:
            steps = make(pipeline, params, clock)
        except TalkingHeadError as caught:
            error = f"{type(caught).__name__}: {caught}"
        seconds = time.perf_counter() - clock.made
        left = {"left_gib": peaks.now(), "left_by_pytorch_gib": _reserved(pipeline)}
    known = {stage: plan.known(stage, pipeline.budget if _is_gpu(pipeline) else None) for stage in plan.needs}
    if _is_gpu(pipeline):  # without what other programs have
        outside = {"outside_gpu_gib": left["left_gib"] - left["left_by_pytorch_gib"]}
        known = {stage: sizes | outside for stage, sizes in known.items()}
    return {
        **{"run": dict(changes), "error": error, "seconds": seconds, "steps": steps},
        "budget_gib": None if pipeline.budget is None else pipeline.budget / GIB,
        "smallest_gib": plan.smallest / GIB,
        "peak_gpu_gib": max((visit.get("peak_gpu_gib", 0.0) for visit in clock.timeline), default=0.0),
        "timeline": [visit | known.get(str(visit["stage"]), {}) for visit in clock.timeline],
        **left,
        **peaks.to_json(),
    }


def _reserved(pipeline: Pipeline) -> float:
    return torch.cuda.memory_reserved() / GIB if _is_gpu(pipeline) else 0.0


def main(specification: str) -> None:
    """Load, then make the runs one after another."""
    begun = {"imported": process_age()}
    asked = json.loads(specification)
    texts = {"prompt": PROMPT, "negative_prompt": PROMPT}
    request = GenerationParams(audio_path="none", image_path="none", **texts, **asked["request"])
    peaks = Peaks(pick_device(request.device))
    with peaks:
        pipeline = Pipeline.load(request)
        synchronize(pipeline.device)
        begun["loaded"] = process_age()
    print(json.dumps({"begun": begun, "left_gib": peaks.now(), **peaks.to_json()}), flush=True)

    def first_forward(*_: object) -> None:
        begun.setdefault("first_forward", process_age())

    pipeline.dit.blocks[0].register_forward_pre_hook(first_forward)
    for changes in asked["runs"]:
        print(json.dumps(run(pipeline, request, changes, peaks) | {"begun": begun}), flush=True)


def in_a_process(request: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """What a process of its own tells: of loading, then of each run.

    Raises:
        RuntimeError: it failed.
    """
    text = json.dumps({"request": request, "runs": runs})
    command = [sys.executable, "-c", START, text]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield from map(json.loads, process.stdout)
    if process.returncode:
        raise RuntimeError(f"the process of a whole job ended with status {process.returncode}")
