"""Complete runs against the reference: streaming, guidance, step cache, two speakers, colours."""

import re
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from talkinghead_lab.media.reference import Portrait
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.pipeline.chunk_generator import ChunkGenerator
from talkinghead_lab.pipeline.pipeline import Conditions, Pipeline
from talkinghead_lab.pipeline.request import Resolved, sampling_config
from talkinghead_lab.sampling.guidance import branches_at
from talkinghead_lab.weights import checkpoints, locating
from talkinghead_lab.weights.load_settings import LoadSettings
from tests.parity import golden

OUTPUTS, CASE = golden.load("pipeline")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> locating.CheckpointFiles:
    return golden.write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@dataclass
class CountedBlocks:
    """Wraps `run_blocks` of a transformer and counts its calls."""

    pipeline: Pipeline

    def __post_init__(self):
        self.calls, self.run = 0, self.pipeline.dit.run_blocks
        self.pipeline.dit.run_blocks = self

    def __call__(self, *arguments):
        self.calls += 1
        return self.run(*arguments)


def request(run: dict) -> GenerationParams:
    return GenerationParams(
        audio_path="unused",
        image_path="unused",
        checkpoint="released",  # the defaults of the reference
        second_audio_path="unused" if run["people"] > 1 else None,
        frame_size="{}x{}".format(*CASE["size_wh"]),
        max_frames=run["max_frames"],
        diffusion_steps=run["steps"],
        text_guide_scale=run["text_guide_scale"],
        audio_guide_scale=run["audio_guide_scale"],
        sample_shift=CASE["shift"],
        chunk_frames=CASE["frame_num"],
        motion_frame=CASE["motion_frame"],
        use_color_correction=run["color_correction_strength"] > 0,
        color_correction_strength=run["color_correction_strength"],
        use_apg=run["use_apg"],
        step_cache_threshold=run["cache_threshold"],
    )


def conditions(people: int) -> Conditions:
    shape = tuple(map(int, re.search(r"\((\d+),\s*(\d+),\s*3\)", CASE["portrait"]).groups()))
    portrait = golden.random_state("portrait").randint(0, 256, (*shape, 3), dtype=np.uint8)
    return Conditions(
        prompt=golden.seeded("text_prompt", CASE["text_prompt"]),
        negative_prompt=golden.seeded("text_negative", CASE["text_negative"]),
        audio=tuple(golden.seeded(f"audio_embedding{i + 1}", CASE["audio_embedding"]) for i in range(people)),
        reference=Portrait(Image.fromarray(portrait)),
        frame_size=tuple(CASE["size_wh"]),
    )


def resolved_by_hand(
    params: GenerationParams, encoded: Conditions, files: locating.CheckpointFiles
) -> Resolved:
    """The settings of a request whose media are given already encoded."""
    cpu, recorded = torch.device("cpu"), len(encoded.audio[0])
    frames = min(recorded, params.max_frames or recorded)
    plain = {"compute": torch.float32, "storage": None, "decode": torch.float32, "attention": "sdpa"}
    networks = LoadSettings(files, (), cpu, **plain, fp8_matmuls=False, compiled=False, offloaded=False)
    return Resolved(
        params, networks, sampling_config(params), encoded.frame_size, recorded / 25, frames, budget=None
    )


@pytest.mark.parametrize("name", CASE["runs"])
def test_run(name: str, files: locating.CheckpointFiles):
    run = CASE["runs"][name]
    pipeline = Pipeline(
        dit=checkpoints.load_dit(files, torch.float32, "cpu"),
        vae=checkpoints.load_vae(files, torch.float32, "cpu"),
        image_encoder=checkpoints.load_image_encoder(files, torch.float32, "cpu"),
    )
    counted = CountedBlocks(pipeline)
    run_blocks, frames, previous = "", [], None
    encoded = conditions(run["people"])
    generator = ChunkGenerator(pipeline, encoded, resolved_by_hand(request(run), encoded, files))
    branches = len(branches_at(generator.resolved.sampling, 0))
    for chunk in generator.resolved.chunks:
        counts = [counted.calls]
        noise = golden.seeded(f"noise{chunk.index}", run["noise_shapes"][chunk.index])
        result = generator.generate(
            chunk, previous, noise, on_step=lambda step, counts=counts: counts.append(counted.calls)
        )
        for before, after in pairwise(counts):
            assert after - before in (0, branches), "in each step, all branches run their blocks or none does"
            run_blocks += ("1" if after > before else "0") * branches
        frames.append(result.new_frames)
        previous = result.frames
    assert run_blocks == run["forward_computed"]
    video = torch.cat(frames, dim=1)
    assert video.shape[1] == run["frames"]
    golden.compare(f"pipeline {name}", video[:, ::4], OUTPUTS[f"frames.{name}"], 2e-3)
