"""The tensors of the released autoencoder and encoders fit the networks at released sizes."""

import json
from types import ModuleType

import pytest
import torch

from talkinghead_lab.models.encoders import image as image_encoder
from talkinghead_lab.models.encoders import text as text_encoder
from talkinghead_lab.models.vae import model as vae
from talkinghead_lab.weights import locating
from tests.parity import golden

RELEASED = json.loads((golden.FOLDER / "released_checkpoint_tensors.json").read_text())
NETWORKS = {
    locating.VAE: (vae, vae.VAEConfig, vae.VAE),
    locating.TEXT_ENCODER: (text_encoder, text_encoder.TextEncoderConfig, text_encoder.TextEncoder),
    locating.IMAGE_ENCODER: (image_encoder, image_encoder.ImageEncoderConfig, image_encoder.ImageEncoder),
}


@pytest.mark.parametrize("stem", NETWORKS)
def test_released_tensors_fit(stem: str):
    module: ModuleType
    module, config_class, network_class = NETWORKS[stem]
    with torch.device("meta"):
        tensors = {name: torch.empty(shape) for name, shape in RELEASED[f"{stem}.pth"].items()}
        config = config_class.from_tensors({name: tuple(t.shape) for name, t in tensors.items()}, {})
        network = network_class(config)
    mapped = module.from_released(tensors, config)
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert {name: tuple(tensor.shape) for name, tensor in mapped.items()} == expected
    assert not [name for name, buffer in network.named_buffers() if name not in expected]
