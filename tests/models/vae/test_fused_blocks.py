"""The fused blocks of the video autoencoder on a GPU; `test_triton_kernels.py` runs them interpreted."""

from dataclasses import replace

import pytest
import torch

from talkinghead_lab.bench.forwards import relative_error
from talkinghead_lab.models.kernels.optional_kernels import kernels_of
from talkinghead_lab.models.vae.model import KERNELS, VAE
from talkinghead_lab.weights.released_sizes import RELEASED_VAE

DEVICE = torch.device("cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or not kernels_of(DEVICE).status(KERNELS).passed,
        reason="needs a GPU that runs the fused blocks",
    ),
]


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 0.01), (torch.float32, 0.002)])
def test_fused_blocks_decode_and_encode_what_the_plain_ones_do(dtype, bound):
    torch.manual_seed(0)
    vae = VAE(replace(RELEASED_VAE, dim=24, stage_dims=(24, 48, 96, 96))).eval().requires_grad_(False)
    latent, image = torch.randn(1, 16, 3, 6, 8), torch.rand(1, 3, 48, 64) * 2 - 1
    decoded, encoded = vae.decode(latent), vae.encode_first_frame_then_zeros(image, 9)
    vae.to(DEVICE, dtype).use_kernels(DEVICE)
    for latents_per_piece in (1, 3):
        frames = vae.decode(latent.to(DEVICE), latents_per_piece).cpu()
        assert 0 < relative_error(frames, decoded) < bound
    assert relative_error(vae.encode_first_frame_then_zeros(image.to(DEVICE), 9).cpu(), encoded) < bound
