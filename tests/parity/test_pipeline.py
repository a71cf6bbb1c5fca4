"""Whole runs against the reference: streaming, guidance, projected guidance, step cache, two speakers, colours."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image

from talkinghead_lab import checkpoints
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.pipeline import ChunkGenerator, Conditions, Pipeline
from talkinghead_lab.sampling import Guidance
from talkinghead_lab.source import Portrait
from tests.parity import golden

OUTPUTS, CASE = golden.load("pipeline")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> checkpoints.CheckpointFiles:
    return golden.write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@dataclass
class CountedBlocks:
    """Stands before a transformer's blocks and notes each time that they are run."""

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
    portrait = golden.random_state("portrait").randint(0, 256, (100, 140, 3), dtype=np.uint8)
    return Conditions(
        prompt=golden.seeded("text_prompt", CASE["text_prompt"]),
        negative_prompt=golden.seeded("text_negative", CASE["text_negative"]),
        audio=tuple(golden.seeded(f"audio_embedding{i + 1}", CASE["audio_embedding"]) for i in range(people)),
        source=Portrait(Image.fromarray(portrait)),
        frame_size=tuple(CASE["size_wh"]),
    )


@pytest.mark.parametrize("name", CASE["runs"])
def test_run(name: str, files: checkpoints.CheckpointFiles):
    run = CASE["runs"][name]
    pipeline = Pipeline(
        dit=checkpoints.load_dit(files, torch.float32, "cpu"),
        vae=checkpoints.load_vae(files, torch.float32, "cpu"),
        image_encoder=checkpoints.load_image_encoder(files, torch.float32, "cpu"),
    )
    counted = CountedBlocks(pipeline)
    computed, frames, previous = [], [], None
    generator = ChunkGenerator(pipeline, conditions(run["people"]), request(run))
    branches = len(Guidance.of(generator.params).branches)
    for chunk in generator.chunks():
        steps = [0]
        result = generator.generate(
            chunk,
            previous,
            golden.seeded(f"noise{chunk.index}", run["noise_shapes"][chunk.index]),
            on_step=lambda step: steps.append(counted.calls),
        )
        first_call = counted.calls - steps[-1]
        computed += [after - before for before, after in zip(steps, steps[1:], strict=False)]
        assert first_call == 0
        counted.calls = 0
        frames.append(result.new_frames)
        previous = result.frames
    # Of each step either every branch ran its blocks or none did, in the reference's order of calls.
    assert {calls for calls in computed} <= {0, branches}
    assert (
        "".join("1" * branches if calls else "0" * branches for calls in computed) == run["forward_computed"]
    )
    video = torch.cat(frames, dim=1)
    assert video.shape[1] == run["frames"]
    golden.compare(f"pipeline {name}", video[:, ::4], OUTPUTS[f"frames.{name}"], 2e-3)
