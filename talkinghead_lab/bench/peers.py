"""The same forward pass in other libraries, if they are installed."""

import importlib.util
from typing import Any

import torch
from torch import nn

from talkinghead_lab.bench.forwards import TIMESTEP, random_latent
from talkinghead_lab.bench.rows import Results, Row, measure
from talkinghead_lab.bench.sizes import IMAGE_TOKENS, Size


@torch.inference_mode()
def measure_diffusers(size: Size, device: torch.device, results: Results) -> None:
    """Measure the Diffusers transformer at the same sizes, eager and compiled; it has no audio layers."""
    if importlib.util.find_spec("diffusers") is None:
        return
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = _build(size, device, dtype)
    config = size.dit
    latent = random_latent(size, device).to(dtype)
    channels = config.in_dim - config.out_dim
    inputs: dict[str, Any] = {
        "hidden_states": torch.cat([latent, latent.new_zeros(1, channels, *latent.shape[2:])], dim=1),
        "timestep": torch.full((1,), TIMESTEP, device=device),
        "encoder_hidden_states": torch.randn(1, config.text_len, config.text_dim, device=device, dtype=dtype),
        "encoder_hidden_states_image": torch.randn(
            1, IMAGE_TOKENS, config.image_dim, device=device, dtype=dtype
        ),
    }
    for way in ("eager", "compiled"):
        if way == "compiled":
            for block in model.blocks:
                block.compile(dynamic=False)
        seconds, peak = measure(lambda: model(**inputs), device, repeats=2)
        row = Row(f"peer: diffusers, {way}", seconds, peak_gib=peak, conditions={"audio adapters": False})
        results.add(row)


def _build(size: Size, device: torch.device, dtype: torch.dtype) -> Any:
    from diffusers import WanTransformer3DModel

    config = size.dit
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model: nn.Module = WanTransformer3DModel(
                patch_size=config.patch_size,
                num_attention_heads=config.num_heads,
                attention_head_dim=config.dim // config.num_heads,
                in_channels=config.in_dim,
                out_channels=config.out_dim,
                text_dim=config.text_dim,
                freq_dim=config.freq_dim,
                ffn_dim=config.ffn_dim,
                num_layers=config.num_layers,
                image_dim=config.image_dim,
                added_kv_proj_dim=config.dim,
            )
    finally:
        torch.set_default_dtype(before)
    return model.eval().requires_grad_(False)
