"""The video autoencoder against the reference."""

import torch

from talkinghead_lab.models.vae import VAE, VAEConfig, from_released
from tests.parity import golden

OUTPUTS, CASE = golden.load("vae")


def build() -> VAE:
    weights = golden.parameters("vae", CASE["params"])
    config = VAEConfig.from_tensors({name: tuple(shape) for name, shape in CASE["params"].items()}, {})
    model = VAE(config)
    model.load_state_dict(from_released(weights, config))
    return model.eval()


def test_sizes_are_read_off_the_tensors():
    config = VAEConfig.from_tensors({name: tuple(shape) for name, shape in CASE["params"].items()}, {})
    expected = CASE["config"]
    assert config.dim == expected["dim"]
    assert config.z_dim == expected["z_dim"]
    assert config.stage_dims == tuple(expected["dim"] * factor for factor in expected["dim_mult"])
    assert config.num_res_blocks == expected["num_res_blocks"]
    assert config.temporal_downsample == tuple(expected["temperal_downsample"])


@torch.inference_mode()
def test_encode():
    pixels = golden.seeded("pixels", CASE["pixels"], CASE["pixels_scale"]).clamp(*CASE["pixels_clamp"])
    golden.compare("vae encode", build().encode(pixels[None])[0], OUTPUTS["encode"], 1e-4)


@torch.inference_mode()
def test_decode():
    golden.compare(
        "vae decode", build().decode(golden.seeded("z", CASE["z"])[None])[0], OUTPUTS["decode"], 1e-4
    )
