"""LightX2V's model for InfiniteTalk, checked out by the user.

A configuration chooses its layers, as in its own runs. What cannot be installed everywhere is replaced by
what it has itself (its Triton RMS norm for sgl-kernel) or by PyTorch, compiled (the rotary embedding of
flashinfer), and rows say so.
"""

import importlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from talkinghead_lab.bench.peers.checkout import checkout_folder, commit_of, modules_of
from talkinghead_lab.bench.sizes import RandomInputs, Size

VARIABLE = "LIGHTX2V_CHECKOUT"
NETWORKS = "lightx2v.models.networks"
PACKAGES = (
    *("lightx2v", "lightx2v.common", "lightx2v.models", NETWORKS, f"{NETWORKS}.wan", "lightx2v.utils"),
    *("lightx2v_platform", "lightx2v_platform.base"),
)
OPTIONAL = ("loguru", "imageio", "imageio_ffmpeg", "torchvision", "gguf")
FLASH3 = "fa3_fwd_interface"


class LightX2V:
    """Its `WanInfiniteTalkModel` with our weights, which are shared, not copied, on a GPU."""

    def __init__(self, weights: dict[str, Tensor], size: Size, device: torch.device, timestep: float) -> None:
        folder = checkout_folder(VARIABLE, "lightx2v/models/networks/wan/infinitetalk_model.py")
        self.name, self.text_len = "LightX2V", size.dit.text_len
        self.audio_layers = (size.speech.num_hidden_layers, size.speech.hidden_size)
        self.timestep = torch.full((1,), timestep, device=device)
        on_gpu = device.type == "cuda"
        has_flash3 = on_gpu and importlib.util.find_spec(FLASH3) is not None
        variables = ModuleType("lightx2v_platform.base.global_var")
        variables.AI_DEVICE, variables.PLATFORM = device.type, device.type  # type: ignore[attr-defined]
        given = {variables.__name__: variables}
        if has_flash3:
            given["flash_attn_interface"] = importlib.import_module(FLASH3)
        with modules_of(folder, PACKAGES, OPTIONAL, given), nullcontext() if on_gpu else _float32_on_cpu():
            attention = "flash_attn3" if has_flash3 else _register_sdpa()
            config = _config(size, attention, on_gpu)
            self.model = _build(config, dict(weights), device)
            if on_gpu:
                _compile_rope()
        self.state = SimpleNamespace(
            latents=None, timestep_input=self.timestep, infer_condition=True, rope_request_id=0
        )
        self.model.set_scheduler(self.state)
        self.stated = {
            "commit": commit_of(folder),
            "attention": "flash3" if has_flash3 else "sdpa",
            "stand_ins": "its Triton RMS norm for sgl-kernel, compiled rotary embedding for flashinfer",
        }

    def velocity(self, inputs: RandomInputs) -> Tensor:
        """Velocity [1, C, T, h, w]."""
        dtype = self.model.pre_infer.infer_dtype
        self.state.latents = inputs.latent[0]
        text = inputs.text.new_zeros(1, self.text_len, inputs.text.shape[1])
        text[0, : len(inputs.text)] = inputs.text
        features = {
            "text_encoder_output": {"context": text.to(dtype)},
            "image_encoder_output": {
                "clip_encoder_out": inputs.image[0].to(dtype),
                "vae_encoder_out": inputs.picture[0],
            },
            "audio_encoder_output": inputs.audio[0].squeeze(-2).unflatten(-1, self.audio_layers),
            "ref_target_masks": inputs.masks if inputs.audio.shape[1] > 1 else None,
        }
        velocity: Tensor = self.model._infer_infinitetalk_branch(features)[None]
        return velocity


def _config(size: Size, attention: str, on_gpu: bool) -> dict[str, Any]:
    config = size.dit
    attentions = ("self_attn_1_type", "cross_attn_1_type", "cross_attn_2_type", "audio_cross_attn_type")
    return {
        **{
            "task": "s2v",
            "model_cls": "infinitetalk",
            "feature_caching": "NoCaching",
            "use_image_encoder": True,
        },
        **{"dim": config.dim, "ffn_dim": config.ffn_dim, "freq_dim": config.freq_dim},
        **{"num_heads": config.num_heads, "num_layers": config.num_layers},
        **{"in_dim": config.in_dim, "out_dim": config.out_dim, "text_len": config.text_len},
        **{
            "infinitetalk_context_tokens": config.audio_tokens,
            "infinitetalk_audio_output_dim": config.audio_dim,
        },
        **{"seq_parallel": False, "cpu_offload": False, "enable_cfg": False},
        **{"feature_caching": "NoCaching", "mxfp8_fuse_enable": False, "rope_type": "torch_real_rope"},
        "rms_norm_type": "one-pass" if on_gpu else "torch",
        "modulate_type": "triton" if on_gpu else "torch",
        **dict.fromkeys(attentions, attention),
    }


def _build(config: dict[str, Any], weights: dict[str, Tensor], device: torch.device) -> Any:
    module = importlib.import_module(f"{NETWORKS}.wan.infinitetalk_model")

    class Model(module.WanInfiniteTalkModel):  # type: ignore[misc, name-defined]
        def _load_ckpt(self, *_: object) -> dict[str, Tensor]:
            return weights

        def _load_adapter_ckpt(self) -> dict[str, Tensor]:
            return {}

    model = Model("", config, device)
    model.to_cuda()  # to whatever device it runs on
    return model


def _register_sdpa() -> str:
    """Register PyTorch's attention under a name of its own; its own one takes no batches. Return the name."""
    template = importlib.import_module("lightx2v.common.ops.attn.template")
    registry = importlib.import_module("lightx2v.utils.registry_factory").ATTN_WEIGHT_REGISTER

    @registry("pytorch")
    class Attention(template.AttnWeightTemplate):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.config: dict[str, Any] = {}

        def apply(self, q: Tensor, k: Tensor, v: Tensor, **_: object) -> Tensor:
            query, key, value = ((x if x.dim() == 4 else x[None]).transpose(1, 2) for x in (q, k, v))
            return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(0, 1).flatten(1)

    return "pytorch"


def _compile_rope() -> None:
    rope = importlib.import_module("lightx2v.common.ops.rope.torch_rope").TorchRealRope
    rope.apply_single = torch.compile(rope.apply_single, dynamic=False)


@contextmanager
def _float32_on_cpu() -> Iterator[None]:
    """Let it compute in float32, which it refuses, and without page-locked memory."""
    importlib.import_module("lightx2v.utils.envs").DTYPE_MAP["BF16"] = torch.float32
    empty = torch.empty
    torch.empty = lambda *shape, pin_memory=False, **keywords: empty(*shape, **keywords)
    try:
        yield
    finally:
        torch.empty = empty
