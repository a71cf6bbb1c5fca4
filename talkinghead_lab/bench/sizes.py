"""Sizes to measure, random weights and random inputs: time and memory do not depend on the values."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from talkinghead_lab.foundation.latent_grid import LatentGrid
from talkinghead_lab.models.dit.conditions import speaker_regions
from talkinghead_lab.models.dit.config import DiTConfig
from talkinghead_lab.models.dit.model import DiT
from talkinghead_lab.models.encoders.image import ImageEncoderConfig
from talkinghead_lab.models.encoders.speech import SpeechEncoderConfig
from talkinghead_lab.models.encoders.text import TextEncoderConfig
from talkinghead_lab.models.vae.model import VAE, VAEConfig
from talkinghead_lab.sampling.chunk_sampling import ChunkConditions
from talkinghead_lab.weights.released_sizes import (
    RELEASED_DIT,
    RELEASED_IMAGE,
    RELEASED_SPEECH,
    RELEASED_TEXT,
    RELEASED_VAE,
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
        return VAE(config).eval().requires_grad_(False).use_kernels(device)


@dataclass(frozen=True)
class RandomInputs:
    """Inputs of one forward pass, before the transformer embeds them.

    Args:
        latent: noise [1, C, T, h, w].
        picture: mask and encoded portrait [1, in_dim − C, T, h, w].
        image: features of the image encoder [1, N, image width].
        text: features of a prompt [n, text width].
        audio: windows of each speaker [1, P, F, window, 1, layers · channels].
        masks: both speakers and the background [3, h, w]; with one speaker, each covers the picture.
    """

    latent: Tensor
    picture: Tensor
    image: Tensor
    text: Tensor
    audio: Tensor
    masks: Tensor


def random_inputs(
    config: DiTConfig, grid: LatentGrid, device: torch.device, speakers: int = 1
) -> RandomInputs:
    """The same values for the same sizes; the audio of the first speaker is that of a single one."""
    generator = torch.Generator(device).manual_seed(1)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    _, frames, rows, columns = grid.latent_shape(config.out_dim)
    audio = [noise(1, 1, grid.frames, config.audio_window, 1, config.audio_features)]
    picture = noise(1, config.in_dim - config.out_dim, frames, rows, columns)
    image = noise(1, IMAGE_TOKENS, config.image_dim)
    text = noise(min(TEXT_TOKENS, config.text_len // 2), config.text_dim)
    latent = noise(1, config.out_dim, frames, rows, columns)
    audio += [noise(*audio[0].shape) for _ in range(1, speakers)]
    masks = _halves(rows, columns) if speakers > 1 else torch.ones(3, rows, columns)
    return RandomInputs(latent, picture, image, text, torch.cat(audio, dim=1), masks.to(device))


@torch.inference_mode()
def random_conditions(
    dit: DiT, grid: LatentGrid, device: torch.device, precompute: bool = True, speakers: int = 1
) -> ChunkConditions:
    """Random conditions of one chunk; `precompute` as in `DiT.text_context`."""
    return embedded(dit, random_inputs(dit.config, grid, device, speakers), precompute)


def embedded(dit: DiT, inputs: RandomInputs, precompute: bool = True) -> ChunkConditions:
    """Conditions of a chunk from features; the unguided prompt is the same, the unguided audio silent."""
    silence = torch.zeros_like(inputs.audio[:, :1])
    regions = speaker_regions(inputs.masks, dit.config.patch_size) if inputs.audio.shape[1] > 1 else None
    return ChunkConditions(
        picture=inputs.picture,
        image=dit.image_context(inputs.image, precompute),
        texts={guided: dit.text_context([inputs.text], precompute) for guided in (True, False)},
        audios={
            True: dit.audio_context(inputs.audio, precompute),
            False: dit.audio_context(silence, precompute),
        },
        motion=inputs.latent[:, :, :1],
        rotation=dit.rotation(inputs.latent.shape, inputs.latent.device),
        regions=regions,
    )


def _halves(rows: int, columns: int) -> Tensor:
    """Masks [3, h, w]: a speaker in each half of a latent, and its first row as background."""
    masks = torch.zeros(3, rows, columns)
    masks[0, 1:, : columns // 2], masks[1, 1:, columns // 2 :] = 1, 1
    masks[2] = 1 - masks[0] - masks[1]
    return masks
