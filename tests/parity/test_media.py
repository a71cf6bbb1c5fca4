"""Media processing against the reference: loudness, frame sizes, crops and colours."""

import numpy as np
import pytest
import torch
from PIL import Image

from talkinghead_lab.media.audio import normalize_loudness
from talkinghead_lab.media.colors import match_colors
from talkinghead_lab.media.frame_size import fit, nearest_size
from tests.parity import golden

TENSORS, FACTS = golden.load("media")


def test_loudness():
    wave = golden.seeded("wave", [FACTS["wave"]["samples"]], FACTS["wave"]["scale"])
    out = torch.from_numpy(normalize_loudness(wave.numpy(), FACTS["wave"]["lufs"]))
    golden.report("media loudness", golden.relative_error(out, TENSORS["loudness"]), 1e-6)


@pytest.mark.parametrize("case", sorted(FACTS["bucket_width_height"]))
def test_buckets(case):
    resolution, size = case.rsplit(".", 1)
    width, height = map(int, size.split("x"))
    assert list(nearest_size(width, height, resolution)) == FACTS["bucket_width_height"][case]


@pytest.mark.parametrize("case", sorted(name for name in TENSORS if name.startswith("fit.")))
def test_crops(case):
    width, height = map(int, case.split(".")[1].split("x"))
    frame_height, frame_width = map(int, case.split(".")[3].split("x"))
    pixels = golden.random_state(f"portrait{width}x{height}").randint(
        0, 256, (height, width, 3), dtype=np.uint8
    )
    out = fit(Image.fromarray(pixels), frame_width, frame_height)
    differing = (out != TENSORS[case]).float().mean().item()
    golden.report(f"media {case}", differing, 0.0)


@pytest.mark.parametrize("case", sorted(name for name in TENSORS if name.startswith("color.")))
def test_colors(case):
    shape = TENSORS[case].shape
    video = golden.seeded("video", shape, FACTS["video_scale"]).clamp(-1, 1)
    reference = (golden.seeded("reference", (3, *shape[2:])) * 0.25 + 0.2).clamp(-1, 1)
    out = match_colors(video, reference, float(case.removeprefix("color.")))
    golden.compare(f"media {case}", out, TENSORS[case], 1e-3)
