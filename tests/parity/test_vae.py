"""The video autoencoder against the reference."""

import pytest
import torch

from talkinghead_lab.models.vae.model import VAE
from talkinghead_lab.weights import checkpoints
from tests.parity import golden

OUTPUTS, CASE = golden.load("vae")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> VAE:
    files = golden.write_checkpoint(tmp_path_factory.mktemp("checkpoint"))
    return checkpoints.load_vae(files, torch.float32, "cpu")


def test_sizes_are_read_from_the_tensors(model: VAE):
    expected = CASE["config"]
    assert model.config.dim == expected["dim"]
    assert model.config.z_dim == expected["z_dim"]
    assert model.config.stage_dims == tuple(expected["dim"] * factor for factor in expected["dim_mult"])
    assert model.config.num_res_blocks == expected["num_res_blocks"]
    assert model.config.temporal_downsample == tuple(expected["temperal_downsample"])


@torch.inference_mode()
def test_encode(model: VAE):
    pixels = golden.seeded("pixels", CASE["pixels"], CASE["pixels_scale"]).clamp(*CASE["pixels_clamp"])
    golden.compare("vae encode", model.encode(pixels[None])[0], OUTPUTS["encode"], 1e-4)


@torch.inference_mode()
def test_decode(model: VAE):
    latent = golden.seeded("z", CASE["z"])
    golden.compare("vae decode", model.decode(latent[None])[0], OUTPUTS["decode"], 1e-4)
