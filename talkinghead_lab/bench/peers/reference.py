"""The reference implementation, MeiGen-AI/InfiniteTalk: its `WanModel`, checked out by the user.

`flash-attn` and `xformers` are replaced by PyTorch's attention, because neither needs to be installed here.
"""

import importlib
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from talkinghead_lab.bench.peers.checkout import checkout_folder, commit_of, modules_of
from talkinghead_lab.bench.sizes import RandomInputs, Size

VARIABLE = "INFINITETALK_CHECKOUT"
MODEL = "wan.modules.multitalk_model"
# Packages of the sampling and media code that these modules import.
OPTIONAL = ("xfuser", "imageio", "soundfile", "torchvision", "skimage")


def _attend(query: Tensor, key: Tensor, value: Tensor, **_: object) -> Tensor:
    """Attention [B, L, heads, width] by PyTorch, in the type of the values as flash-attn's caller has it."""
    query, key, value = (x.to(value.dtype).transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)


def _flash_attention(q: Tensor, k: Tensor, v: Tensor, **_: object) -> Tensor:
    return _attend(q, k, v).type_as(q)


class Reference:
    """`WanModel` with our weights; they are shared, not copied."""

    def __init__(self, weights: dict[str, Tensor], size: Size, device: torch.device, timestep: float) -> None:
        folder = checkout_folder(VARIABLE, "wan/modules/multitalk_model.py")
        self.name, self.device, self.grid = "reference", device, size.grid
        self.timestep = torch.full((1,), timestep, device=device)
        self.audio_layers = (size.speech.num_hidden_layers, size.speech.hidden_size)
        operations = ModuleType("xformers.ops")
        operations.memory_efficient_attention = (  # type: ignore[attr-defined]
            lambda query, key, value, attn_bias=None, op=None: _attend(query, key, value)
        )
        given = {"xformers": ModuleType("xformers"), "xformers.ops": operations}
        given["xformers"].ops = operations  # type: ignore[attr-defined]
        importlib.import_module("diffusers.models.modeling_utils")  # before it can see the stand-ins
        with modules_of(folder, ("wan", "wan.modules", "wan.utils"), OPTIONAL, given):
            module = importlib.import_module(MODEL)
            module.flash_attention = _flash_attention  # type: ignore[attr-defined]
            if device.type != "cuda":  # it empties the cache of a GPU for every speaker
                importlib.import_module("wan.utils.multitalk_utils").torch_gc = lambda: None  # type: ignore[attr-defined]
            self.model = _build(module, size)
        self.model.load_state_dict(weights, strict=True, assign=True)
        self.model.init_freqs()
        self.model.freqs = self.model.freqs.to(device)
        self.model.eval().requires_grad_(False).disable_teacache()
        self.stated = {"commit": commit_of(folder), "stand_ins": "SDPA for flash-attn and xformers"}

    def velocity(self, inputs: RandomInputs) -> Tensor:
        """Velocity [1, C, T, h, w]."""
        dtype = self.model.patch_embedding.weight.dtype
        velocity: Tensor = self.model(
            [inputs.latent[0]],
            t=self.timestep,
            context=[inputs.text.to(dtype)],
            seq_len=self.grid.tokens,
            clip_fea=inputs.image.to(dtype),
            y=[inputs.picture[0]],
            audio=inputs.audio[0].squeeze(-2).unflatten(-1, self.audio_layers).to(dtype),
            ref_target_masks=inputs.masks,
        )
        return velocity


def _build(module: Any, size: Size) -> Any:
    """The model on the meta device. Two of its sizes are constants in its constructor."""
    config = size.dit
    with torch.device("meta"):
        model = module.WanModel(
            patch_size=config.patch_size,
            text_len=config.text_len,
            in_dim=config.in_dim,
            dim=config.dim,
            ffn_dim=config.ffn_dim,
            freq_dim=config.freq_dim,
            text_dim=config.text_dim,
            out_dim=config.out_dim,
            num_heads=config.num_heads,
            num_layers=config.num_layers,
            eps=config.eps,
            audio_window=config.audio_window,
            intermediate_dim=config.audio_hidden,
            output_dim=config.audio_dim,
            context_tokens=config.audio_tokens,
            weight_init=False,
        )
        model.img_emb = module.MLPProj(config.image_dim, config.dim)
        model.audio_proj = module.AudioProjModel(
            seq_len=config.audio_window,
            seq_len_vf=config.audio_window + model.vae_scale - 1,
            blocks=size.speech.num_hidden_layers,
            channels=size.speech.hidden_size,
            intermediate_dim=config.audio_hidden,
            output_dim=config.audio_dim,
            context_tokens=config.audio_tokens,
            norm_output_audio=True,
        )
    return model
