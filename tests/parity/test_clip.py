"""The image encoder against the reference."""

import torch

from talkinghead_lab.models.image_encoder import ImageEncoder, ImageEncoderConfig, from_released
from tests.parity import golden

OUTPUTS, CASE = golden.load("clip")


@torch.inference_mode()
def test_features():
    weights = golden.parameters("clip", CASE["params"], CASE["weight_scale"])
    weights = {f"visual.{name}": tensor for name, tensor in weights.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    config = ImageEncoderConfig.from_tensors(
        shapes, {name: CASE["config"][name] for name in ("num_heads", "activation", "norm_eps")}
    )
    assert config.num_layers == CASE["config"]["num_layers"]
    assert config.image_size == CASE["config"]["image_size"]
    model = ImageEncoder(config).eval()
    model.load_state_dict(from_released(weights, config))
    image = golden.seeded("image", CASE["image"], CASE["image_scale"]).clamp(*CASE["image_clamp"])
    golden.compare("clip features", model(image[None]), OUTPUTS["features"], 1e-4)
