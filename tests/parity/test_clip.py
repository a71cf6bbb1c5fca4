"""The image encoder against the reference."""

import torch

from talkinghead_lab.weights import checkpoints
from tests.parity import golden

OUTPUTS, CASE = golden.load("clip")


@torch.inference_mode()
def test_features(tmp_path):
    model = checkpoints.load_image_encoder(golden.write_checkpoint(tmp_path), torch.float32, "cpu")
    assert model.config.num_layers == CASE["config"]["num_layers"]
    assert model.config.image_size == CASE["config"]["image_size"]
    image = golden.seeded("image", CASE["image"], CASE["image_scale"]).clamp(*CASE["image_clamp"])
    golden.compare("clip features", model(image[None]), OUTPUTS["features"], 1e-4)
