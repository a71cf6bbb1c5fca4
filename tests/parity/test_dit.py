"""The transformer against the reference, with one and two speakers."""

import pytest
import torch

from talkinghead_lab.models.dit.conditions import speaker_regions
from talkinghead_lab.models.dit.config import DiTConfig
from talkinghead_lab.models.dit.model import DiT
from tests.parity import golden

OUTPUTS, CASE = golden.load("dit")
SHAPES = CASE["params"]


def build() -> DiT:
    weights = golden.parameters("dit", SHAPES)
    model = DiT(DiTConfig.from_tensors(SHAPES, CASE["config"] | CASE["extra_config"]))
    model.load_state_dict(weights)
    return model


def inputs(speakers: int, zero_audio: bool = False) -> dict:
    channels, frames, height, width = CASE["latent"]
    audio = torch.stack([golden.seeded(f"audio{i + 1}", CASE["audio"]) for i in range(speakers)])
    masks = torch.zeros(3, height, width)
    masks[0, 1 : height - 1, 1 : width // 2 - 1] = 1
    masks[1, 1 : height - 1, width // 2 + 1 : width - 1] = 1
    masks[2] = 1 - masks[0] - masks[1]
    return {
        "latent": golden.seeded("latent", CASE["latent"])[None],
        "condition": golden.seeded("y", [channels + 4, frames, height, width])[None],
        "texts": [golden.seeded("text", CASE["text"])],
        "image": golden.seeded("clip", CASE["clip"])[None],
        "audio": audio[None] * (0 if zero_audio else 1),
        "regions": speaker_regions(masks, (1, 2, 2)),
    }


@pytest.mark.parametrize("case", [name for name in OUTPUTS if name.startswith("velocity.")])
@torch.inference_mode()
def test_velocity(case: str):
    speakers = int(case.split(".")[1].removeprefix("people"))
    timestep = float(case.split(".t")[-1])
    velocity = build()(timesteps=torch.tensor([timestep]), **inputs(speakers, "zero_audio" in case))
    golden.compare(f"dit {case}", velocity[0], OUTPUTS[case], 1e-4)
