"""Decoding one chunk: seconds, memory, and the difference from decoding it in one piece."""

from collections import deque

import torch
from torch import Tensor

from talkinghead_lab.bench.rows import GIB, Results, Row, measure
from talkinghead_lab.bench.sizes import Size, random_vae
from talkinghead_lab.foundation.devices import decode_type
from talkinghead_lab.models.vae.model import VAE
from talkinghead_lab.sampling.decoding import decode_chunk

DECODE = "decode: one chunk"
# Only these are decoded both ways: a complete chunk in one piece does not fit on a large GPU. The autoencoder
# is causal, so the frames of the first latents do not depend on later ones.
COMPARED_LATENTS = 3


@torch.inference_mode()
def measure_decode(size: Size, device: torch.device, results: Results) -> None:
    """Measure decoding a chunk in the pipeline's type and in float32."""
    usual = decode_type(torch.bfloat16, device)
    for name, dtype in ((DECODE, usual), (f"{DECODE}, fp32", torch.float32)):
        _measure(name, random_vae(size.vae, device).set_decoder_dtype(dtype), size, device, results)


def _measure(name: str, vae: VAE, size: Size, device: torch.device, results: Results) -> None:
    latent = torch.randn(1, *size.grid.latent_shape(size.vae.z_dim), device=device)
    before = torch.cuda.memory_allocated(device) / GIB if device.type == "cuda" else 0.0
    made: deque[Tensor] = deque(maxlen=1)
    seconds, peak = measure(lambda: made.append(decode_chunk(vae, latent)), device, repeats=2)
    undivided = vae.decode(latent[:, :, :COMPARED_LATENTS], COMPARED_LATENTS)[0].cpu()
    conditions = {"largest_difference": (made[0][:, : undivided.shape[1]] - undivided).abs().max().item()}
    if peak is not None:
        conditions["extra_gib"] = peak - before
    results.add(Row(name, seconds, peak_gib=peak, conditions=conditions))
