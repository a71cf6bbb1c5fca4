"""Sizes to measure, and random weights: time and memory do not depend on the values."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from talkinghead_lab.foundation.latent_grid import LatentGrid
from talkinghead_lab.models.dit.config import DiTConfig
from talkinghead_lab.models.dit.model import DiT, speaker_regions
from talkinghead_lab.models.encoders.image import ImageEncoderConfig
from talkinghead_lab.models.encoders.speech import SpeechEncoderConfig
from talkinghead_lab.models.encoders.text import TextEncoderConfig
from talkinghead_lab.models.vae.model import VAE, VAEConfig
from talkinghead_lab.sampling.euler import ChunkConditions

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
    latent_mean=(0.0,) * 16,
    latent_std=(1.0,) * 16,
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
IMAGE_TOKENS = 257  # output of CLIP ViT-H/14
TEXT_TOKENS = 40


@dataclass(frozen=True)
class Size:
    """Configurations of the networks, and the size of the chunk."""

    dit: DiTConfig
    vae: VAEConfig
    grid: LatentGrid
    text: TextEncoderConfig
    image: ImageEncoderConfig
    speech: SpeechEncoderConfig


SIZES = {
    "released": Size(
        RELEASED_DIT, RELEASED_VAE, LatentGrid(81, 480, 832), RELEASED_TEXT, RELEASED_IMAGE, RELEASED_SPEECH
    ),
    "tiny": Size(
        replace(
            RELEASED_DIT, dim=256, ffn_dim=512, num_heads=2, num_layers=2, text_dim=64, text_len=32,
            image_dim=64, audio_features=2 * 32, audio_hidden=32, audio_tokens=4, audio_dim=64,
        ),
        replace(RELEASED_VAE, dim=8, stage_dims=(8, 16, 16, 16)),
        LatentGrid(9, 64, 64),
        replace(RELEASED_TEXT, vocab_size=1024, dim=64, head_dim=16, num_heads=4, ffn_dim=128, num_layers=2),
        replace(RELEASED_IMAGE, dim=64, num_layers=3, ffn_dim=128, patch_size=32, num_heads=4),
        replace(
            RELEASED_SPEECH, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
            conv_dim=(16,) * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=8,
        ),
    ),
}  # fmt: skip


def random_dit(config: DiTConfig, device: torch.device, dtype: torch.dtype) -> DiT:
    """A random transformer, initialised on its device; matrices preserve the variance of their input."""
    with torch.device("meta"):
        dit = DiT(config)
    dit = dit.to(dtype).to_empty(device=device).eval().requires_grad_(False)
    torch.manual_seed(0)
    for name, tensor in dit.named_parameters():
        if tensor.dim() > 1 and not name.endswith("modulation"):
            tensor.normal_(std=tensor[0].numel() ** -0.5)
        elif name.endswith("weight"):
            tensor.fill_(1)
        else:
            tensor.normal_(std=0.02)
    return dit


def random_vae(config: VAEConfig, device: torch.device) -> VAE:
    """A random float32 autoencoder."""
    with torch.device(device):
        return VAE(config).eval().requires_grad_(False)


@torch.inference_mode()
def random_conditions(
    dit: DiT, grid: LatentGrid, device: torch.device, precompute: bool = True, speakers: int = 1
) -> ChunkConditions:
    """Random conditions of one chunk; `precompute` as in `DiT.text_context`. Two speakers share the frame."""
    config = dit.config
    generator = torch.Generator(device).manual_seed(1)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    audio = noise(1, speakers, grid.frames, config.audio_window, 1, config.audio_features)
    latent = grid.latent_shape(config.out_dim)
    return ChunkConditions(
        picture=noise(1, config.in_dim - config.out_dim, *latent[1:]),
        image=dit.image_context(noise(1, IMAGE_TOKENS, config.image_dim), precompute),
        texts={
            guided: dit.text_context([noise(TEXT_TOKENS, config.text_dim)], precompute)
            for guided in (True, False)
        },
        audios={
            True: dit.audio_context(audio, precompute),
            False: dit.audio_context(torch.zeros_like(audio[:, :1]), precompute),
        },
        motion=noise(1, config.out_dim, 1, *latent[2:]),
        rotation=dit.rotation(latent, device),
        regions=speaker_regions(_halves(latent), config.patch_size).to(device) if speakers == 2 else None,
    )


def _halves(latent_shape: Sequence[int]) -> Tensor:
    """Masks [3, h, w]: a speaker in each half of a latent, and its first row as background."""
    *_, height, width = latent_shape
    masks = torch.zeros(3, height, width)
    masks[0, 1:, : width // 2], masks[1, 1:, width // 2 :] = 1, 1
    masks[2] = 1 - masks[0] - masks[1]
    return masks
