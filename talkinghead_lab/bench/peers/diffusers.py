"""`WanTransformer3DModel` of diffusers. It has no audio layers."""

import importlib.metadata
from typing import Any

import torch
from torch import Tensor

from talkinghead_lab.bench.sizes import RandomInputs, Size
from talkinghead_lab.errors import InvalidRequest
from talkinghead_lab.weights.formats.diffusers_names import diffusers_name

TEXT_TOKENS = 512


class Diffusers:
    """The transformer with our weights, which are shared, not copied."""

    def __init__(self, weights: dict[str, Tensor], size: Size, device: torch.device, timestep: float) -> None:
        self.name, self.text_len = "diffusers", size.dit.text_len
        self.timestep = torch.full((1,), timestep, device=device)
        self.model = _build(size, device)
        named = {diffusers_name(name): weight for name, weight in weights.items()}
        self.model.load_state_dict({name: named[name] for name in self.model.state_dict()}, assign=True)
        self.model.eval().requires_grad_(False)
        self.stated = {"version": importlib.metadata.version("diffusers"), "audio adapters": False}

    def velocity(self, inputs: RandomInputs) -> Tensor:
        """Velocity [1, C, T, h, w] without audio."""
        dtype = self.model.patch_embedding.weight.dtype
        text = inputs.text.new_zeros(1, self.text_len, inputs.text.shape[1])
        text[0, : len(inputs.text)] = inputs.text
        velocity: Tensor = self.model(
            hidden_states=torch.cat([inputs.latent, inputs.picture], dim=1).to(dtype),
            timestep=self.timestep,
            encoder_hidden_states=text.to(dtype),
            encoder_hidden_states_image=inputs.image.to(dtype),
            return_dict=False,
        )[0]
        return velocity

    def compile(self) -> None:
        """Compile its blocks."""
        for block in self.model.blocks:
            block.compile(dynamic=False)


def _build(size: Size, device: torch.device) -> Any:
    try:
        from diffusers import WanTransformer3DModel
    except ImportError:
        raise InvalidRequest(
            "diffusers is not installed", received="nothing", allowed="pip install diffusers"
        ) from None
    config = size.dit
    if config.text_len != TEXT_TOKENS:
        raise InvalidRequest(
            "diffusers takes all but the last text tokens for those of the image",
            received=config.text_len,
            allowed=f"{TEXT_TOKENS} text tokens, as its attention has it",
        )
    with torch.device("meta"):
        model: Any = WanTransformer3DModel(
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
            eps=config.eps,
        )
    rope = model.rope  # its table is no weight: made anew, where the weights are
    with device:
        model.rope = type(rope)(rope.attention_head_dim, rope.patch_size, rope.max_seq_len)
    return model
