"""The sizes of the released networks, to plan and to measure without their weights.

Sources: the tensor shapes of Wan2.1-I2V-14B-480P with InfiniteTalk's adapter, and of chinese-wav2vec2-base.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from talkinghead_lab.models.dit.config import DiTConfig
from talkinghead_lab.models.dit.model import DiT
from talkinghead_lab.models.encoders.image import ImageEncoder, ImageEncoderConfig
from talkinghead_lab.models.encoders.speech import SpeechEncoder, SpeechEncoderConfig
from talkinghead_lab.models.encoders.text import TextEncoder, TextEncoderConfig
from talkinghead_lab.models.vae.model import (
    RELEASED_LATENT_MEAN,
    RELEASED_LATENT_STD,
    VAE,
    VAEConfig,
)
from talkinghead_lab.weights.checkpoints import loaded_type
from talkinghead_lab.weights.reading import convert

RELEASED_DIT = DiTConfig(
    dim=5120,
    ffn_dim=13824,
    num_heads=40,
    num_layers=40,
    in_dim=36,
    out_dim=16,
    patch_size=(1, 2, 2),
    freq_dim=256,
    text_dim=4096,
    text_len=512,
    image_dim=1280,
    audio_window=5,
    audio_features=12 * 768,
    audio_hidden=512,
    audio_tokens=32,
    audio_dim=768,
    eps=1e-6,
)
RELEASED_VAE = VAEConfig(
    dim=96,
    z_dim=16,
    stage_dims=(96, 192, 384, 384),
    num_res_blocks=2,
    temporal_downsample=(False, True, True),
    latent_mean=RELEASED_LATENT_MEAN,
    latent_std=RELEASED_LATENT_STD,
)
RELEASED_TEXT = TextEncoderConfig(256_384, 4096, 64, 64, 10_240, 24, 32)  # umT5-XXL
RELEASED_IMAGE = ImageEncoderConfig(1280, 32, 5120, 14, 224)  # CLIP ViT-H/14
RELEASED_SPEECH = SpeechEncoderConfig(  # wav2vec2-base
    hidden_size=768,
    num_hidden_layers=12,
    num_attention_heads=12,
    intermediate_size=3072,
    conv_dim=(512,) * 7,
    conv_kernel=(10, 3, 3, 3, 3, 2, 2),
    conv_stride=(5, 2, 2, 2, 2, 2, 2),
    conv_bias=False,
    num_conv_pos_embeddings=128,
    num_conv_pos_embedding_groups=16,
)
# By the names of `weights.checkpoints.NETWORKS`.
RELEASED_NETWORKS: Mapping[str, tuple[Any, Any]] = {
    "transformer": (DiT, RELEASED_DIT),
    "video autoencoder": (VAE, RELEASED_VAE),
    "text encoder": (TextEncoder, RELEASED_TEXT),
    "image encoder": (ImageEncoder, RELEASED_IMAGE),
    "speech encoder": (SpeechEncoder, RELEASED_SPEECH),
}


def released_network(name: str, compute: torch.dtype) -> nn.Module:
    """One of the networks on the meta device, in the types that `load_network` would load it in."""
    network, config = RELEASED_NETWORKS[name]
    with torch.device("meta"):
        model: nn.Module = network(config)
    model.eval().requires_grad_(False)
    convert(model, loaded_type(name, compute))
    return model
