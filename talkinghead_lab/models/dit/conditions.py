"""What the transformer is conditioned on, as its blocks take it: text, picture, audio, time, regions."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from talkinghead_lab.models.dit.blocks import KeysValues


@dataclass
class CrossAttentionContext:
    """Tokens that the blocks attend to.

    Args:
        tokens: [B, N, D], of a prompt or a portrait.
        keys_values: precomputed keys and values of each block.
        distinct_tokens: int32 [B], number of prompt tokens plus one token of padding; all later tokens equal
            that one.
    """

    tokens: Tensor
    keys_values: list[KeysValues] | None = None
    distinct_tokens: Tensor | None = None


@dataclass
class AudioContext(CrossAttentionContext):
    """Audio tokens [B, T, P·A, audio width] of P speakers."""

    speakers: int = 1


@dataclass
class TimeEmbedding:
    """Embedded timesteps for the head, [B, D], and the blocks, [B, 6, D]; float32."""

    head: Tensor
    blocks: Tensor

    def at(self, entry: int) -> "TimeEmbedding":
        """One entry of the batch."""
        return TimeEmbedding(self.head[entry : entry + 1], self.blocks[entry : entry + 1])


class ImageProjection(nn.Module):
    """Maps image-encoder features to the transformer's width."""

    def __init__(self, image_dim: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            nn.LayerNorm(image_dim),
            nn.Linear(image_dim, image_dim),
            nn.GELU(),
            nn.Linear(image_dim, dim),
            nn.LayerNorm(dim),
        )

    def forward(self, features: Tensor) -> Tensor:
        """[B, N, image width] → [B, N, D]."""
        return self.proj(features)


def sinusoid(timesteps: Tensor, width: int) -> Tensor:
    """Sinusoidal embedding as in DDPM, [B] → [B, width]: cosines, then sines."""
    half = torch.arange(width // 2, dtype=torch.float64, device=timesteps.device)
    angles = torch.outer(timesteps.double(), 10_000 ** (-half / (width // 2)))
    return torch.cat([angles.cos(), angles.sin()], dim=1).float()


def speaker_regions(masks: Tensor, patch_size: tuple[int, int, int]) -> Tensor:
    """Speaker masks [3, h, w] at latent resolution → speaker regions [3, S] at token resolution."""
    rows, columns = masks.shape[-2] // patch_size[1], masks.shape[-1] // patch_size[2]
    return (
        (F.interpolate(masks[None].float(), size=(rows, columns), mode="nearest")[0] > 0).float().flatten(1)
    )
