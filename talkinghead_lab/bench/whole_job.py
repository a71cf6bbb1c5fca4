"""A child process that loads a checkpoint and performs runs, printing one JSON line for each.

It is a separate process because times count from process start, and memory from before CUDA is initialised.

A run lists changes to the request. If the request has a budget, all networks stay in host memory and each run
may set its own: GiB, `smallest` (the planned minimum) or `all` (everything resident). `blocks` truncates the
transformer to that many blocks from this run on.
"""

import itertools
import json
import math
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

from talkinghead_lab.bench.checkpoint import random_checkpoint
from talkinghead_lab.bench.jobs import OVERLAP_FRAMES
from talkinghead_lab.bench.meters import Peaks, process_age
from talkinghead_lab.bench.rows import GIB, synchronize
from talkinghead_lab.bench.sizes import Size
from talkinghead_lab.errors import TalkingHeadError
from talkinghead_lab.foundation.devices import pick_device
from talkinghead_lab.foundation.digests import sha256_of_file
from talkinghead_lab.media import audio, video
from talkinghead_lab.media.growing_video import GrowingVideo
from talkinghead_lab.media.inputs import Inputs
from talkinghead_lab.media.reference import Portrait
from talkinghead_lab.models.dit.model import DiT
from talkinghead_lab.offload.streamed_blocks import StreamedBlocks
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.pipeline import pipeline as pipeline_module
from talkinghead_lab.pipeline.chunk_generator import ChunkGenerator
from talkinghead_lab.pipeline.pipeline import Pipeline
from talkinghead_lab.pipeline.request import checkpoint_files, resolve
from talkinghead_lab.runs.chunk_files import ChunkFiles
from talkinghead_lab.runs.chunk_writer import ChunkWriter
from talkinghead_lab.runs.stage_clock import StageClock
from talkinghead_lab.weights import transformer
from talkinghead_lab.weights.load_settings import LoadSettings
from talkinghead_lab.weights.locating import weight_files

SECONDS = 8.0
RUN_FIELDS = ("vram_budget_gib", "blocks")
# Same start as the `generate` command.
START = """
import sys
from talkinghead_lab.foundation.imports import gc_disabled
with gc_disabled():
    from talkinghead_lab.bench import whole_job
whole_job.main(sys.argv[1])
"""
PROMPT = "a " * 511  # with the closing token, the most the released model reads


def request_of(size: Size, device: torch.device, folder: Path) -> dict[str, Any]:
    """Request fields for one chunk of two single-pass steps, which hide copies least; the first compiles."""
    frames = size.grid.frames
    return random_checkpoint(folder, size) | {
        **{"text_guide_scale": 1.0, "audio_guide_scale": 1.0, "diffusion_steps": 2, "device": str(device)},
        **{"chunk_frames": frames, "max_frames": frames, "motion_frame": min(OVERLAP_FRAMES, frames - 4)},
    }


def media(frame_size: tuple[int, int], speakers: int = 1) -> Inputs:
    """A portrait of noise and a recording of noise for each speaker."""
    noise = np.random.default_rng(0)
    picture = noise.integers(0, 256, (frame_size[1], frame_size[0], 3), dtype=np.uint8)
    wave = 0.1 * noise.standard_normal(round(SECONDS * audio.SAMPLE_RATE)).astype(np.float32)
    return Inputs(Portrait(Image.fromarray(picture)), frame_size, (wave,) * speakers, wave[None])


def make(pipeline: Pipeline, params: GenerationParams, clock: StageClock, folder: Path) -> list[float]:
    """Make the video of a request in a folder; return the seconds of each step but the first of a chunk."""
    assert params.forced_size is not None
    inputs = media(params.forced_size, params.speakers)
    resolved = resolve(params, inputs)
    conditions = pipeline.encode(inputs, resolved, clock)
    generator = ChunkGenerator(pipeline, conditions, resolved, clock)
    frames, steps = None, []

    def on_step(step: int) -> None:
        synchronize(pipeline.device)
        ends.append(time.perf_counter())

    files = ChunkFiles(folder, lambda: "", params.motion_frame)
    with GrowingVideo(folder / "growing.mp4", inputs.soundtrack, resolved.frames) as growing:
        with ChunkWriter(files, growing) as writer:
            for chunk in resolved.chunks:
                ends: list[float] = []
                with writer.open(chunk) as saving:
                    made = generator.generate(chunk, frames, on_step=on_step, on_frames=saving.add)
                    saving.finish(made, 0.0)
                frames = made.frames
                steps += [end - start for start, end in itertools.pairwise(ends)]
        growing.finish()
    if growing.first_written:
        clock.record_first_frame(growing.first_written)
    video.join_videos(folder / "video.mp4", files.silent_videos(resolved.chunks), inputs.soundtrack, {})
    return steps


def with_budget(pipeline: Pipeline, budget: object, plan: Any) -> Pipeline:
    """The same networks within another budget; see the module docstring."""
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
    """Perform one run and report its time and memory."""
    budget, blocks = changes.get("vram_budget_gib"), changes.get("blocks")
    params = request.replace(**{name: value for name, value in changes.items() if name not in RUN_FIELDS})
    if blocks is not None and blocks < len(pipeline.dit.blocks):
        fewer = itertools.islice(pipeline.dit.blocks, blocks)
        pipeline.dit.blocks = StreamedBlocks(fewer, pipeline.device)  # type: ignore[assignment]
    assert params.forced_size is not None
    plan = pipeline.requirements(resolve(params, media(params.forced_size, params.speakers)))
    pipeline = with_budget(pipeline, budget, plan)
    clock, steps, error = StageClock(), [], None
    with tempfile.TemporaryDirectory() as folder, peaks:
        try:
            steps = make(pipeline, params, clock, Path(folder))
        except TalkingHeadError as caught:
            error = f"{type(caught).__name__}: {caught}"
        seconds = time.perf_counter() - clock.made
        left = {"left_gib": peaks.now(), "left_by_pytorch_gib": _reserved(pipeline)}
    known = {stage: plan.known(stage, pipeline.budget if _is_gpu(pipeline) else None) for stage in plan.needs}
    if _is_gpu(pipeline):  # excludes other programs
        outside = {"outside_gpu_gib": left["left_gib"] - left["left_by_pytorch_gib"]}
        known = {stage: sizes | outside for stage, sizes in known.items()}
    return {
        **{"run": dict(changes), "error": error, "seconds": seconds, "steps": steps},
        "budget_gib": None if pipeline.budget is None else pipeline.budget / GIB,
        "first_frame": clock.first_frame,
        "smallest_gib": plan.smallest / GIB,
        "peak_gpu_gib": max((entry.get("peak_gpu_gib", 0.0) for entry in clock.timeline), default=0.0),
        "timeline": [entry | known.get(str(entry["stage"]), {}) for entry in clock.timeline],
        **left,
        **peaks.to_json(),
    }


def _reserved(pipeline: Pipeline) -> float:
    return torch.cuda.memory_reserved() / GIB if _is_gpu(pipeline) else 0.0


def main(specification: str) -> None:
    """Load the networks, with their files hashed beside as in a run, then perform the runs in order."""
    start = {"imported": process_age()}
    specified = json.loads(specification)
    texts = {"prompt": PROMPT, "negative_prompt": PROMPT}
    request = GenerationParams(audio_path="none", image_path="none", **texts, **specified["request"])
    files = list(weight_files(checkpoint_files(request)).values())
    threading.Thread(target=lambda: [sha256_of_file(file) for file in files], daemon=True).start()
    peaks = Peaks(pick_device(request.device))
    with peaks:
        pipeline = _load(request, start)
    print(json.dumps({"begun": start, "left_gib": peaks.now(), **peaks.to_json()}), flush=True)

    def stamp(name: str) -> None:
        if name not in start:
            synchronize(pipeline.device)
            start[name] = process_age()

    pipeline.dit.blocks[0].register_forward_pre_hook(lambda *_: stamp("first_forward"))
    pipeline.dit.head.register_forward_hook(lambda *_: stamp("first_velocity"))
    for changes in specified["runs"]:
        print(json.dumps(run(pipeline, request, changes, peaks) | {"begun": start}), flush=True)


def _load(request: GenerationParams, start: dict[str, float]) -> Pipeline:
    """Load the networks, and note when the transformer is read and placed, and when all are."""
    load_transformer = transformer.load_transformer

    def load_and_stamp(settings: LoadSettings) -> DiT:
        dit = load_transformer(settings)
        synchronize(settings.device)
        start["transformer"] = process_age()
        return dit

    with patch.object(pipeline_module, "load_transformer", load_and_stamp):
        pipeline = Pipeline.load(request)
    synchronize(pipeline.device)
    start["loaded"] = process_age()
    return pipeline


def run_in_process(request: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Start a child process and yield its reports: one for loading, then one per run.

    Raises:
        RuntimeError: the process failed.
    """
    text = json.dumps({"request": request, "runs": runs})
    command = [sys.executable, "-c", START, text]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield from map(json.loads, process.stdout)
    if process.returncode:
        raise RuntimeError(f"the benchmark process exited with status {process.returncode}")
