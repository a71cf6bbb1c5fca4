"""Decoding one chunk: seconds, memory, and how near it is to decoding all of it at once."""

import torch

from talkinghead_lab.bench.rows import GIB, Results, Row, measure
from talkinghead_lab.bench.sizes import Size, random_vae
from talkinghead_lab.models.causal_layers import CausalConv3d
from talkinghead_lab.models.vae import VAE

DECODE = "decode: one chunk"
# How its convolutions are computed; see `CausalConv3d.stacks_frames`.
WAYS = {DECODE: None, f"{DECODE}, stacked frames": True, f"{DECODE}, 3D convolutions": False}
# What the whole chunk would take undivided is more than a large GPU has; these are decoded both ways. The
# autoencoder looks only backwards, so the frames of the first latents do not depend on the others.
COMPARED_LATENTS = 3


@torch.inference_mode()
def measure_decode(size: Size, device: torch.device, results: Results) -> None:
    """Decode a chunk in pieces, as the pipeline does, and with convolutions of either kind."""
    for name, stacks_frames in WAYS.items():
        vae = random_vae(size.vae, device)
        for layer in vae.modules():
            if isinstance(layer, CausalConv3d):
                layer.stacks_frames = stacks_frames
        _measure(name, vae, size, device, results)


def _measure(name: str, vae: VAE, size: Size, device: torch.device, results: Results) -> None:
    latent = torch.randn(1, *size.grid.latent_shape(size.vae.z_dim), device=device)
    before = torch.cuda.memory_allocated(device) / GIB if device.type == "cuda" else 0.0
    gathered = torch.empty(3, size.grid.frames, size.grid.height, size.grid.width)

    def decode() -> None:
        start = 0
        for (piece,) in vae.decode_pieces(latent):
            gathered[:, start : start + piece.shape[1]] = piece
            start += piece.shape[1]

    seconds, peak = measure(decode, device, repeats=2)
    undivided = vae.decode(latent[:, :, :COMPARED_LATENTS], COMPARED_LATENTS)[0].cpu()
    conditions = {"largest_difference": (gathered[:, : undivided.shape[1]] - undivided).abs().max().item()}
    if peak is not None:
        conditions["extra_gib"] = peak - before
    results.add(Row(name, seconds, peak_gib=peak, conditions=conditions))
