"""The CLIP image encoder: maps a portrait to one hidden state per patch.

The network is transformers' `CLIPVisionModel` without its last block, final norm and projection. The weights
are the image tower of the released `models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth` (CLIP, arXiv
2103.00020).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from talkinghead_lab.errors import CheckpointError, InvalidRequest
from talkinghead_lab.models.released_names import Shapes, count_blocks, rename, shape_of

RELEASED_FILE = "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"

# Released module → module of `ImageEncoder`.
_MODULES = {
    r"visual\.patch_embedding": "vision.embeddings.patch_embedding",
    r"visual\.pre_norm": "vision.pre_layrnorm",
    r"visual\.transformer\.(\d+)\.norm1": r"vision.encoder.layers.\1.layer_norm1",
    r"visual\.transformer\.(\d+)\.attn\.([qkv])": r"vision.encoder.layers.\1.self_attn.\2_proj",
    r"visual\.transformer\.(\d+)\.attn\.proj": r"vision.encoder.layers.\1.self_attn.out_proj",
    r"visual\.transformer\.(\d+)\.norm2": r"vision.encoder.layers.\1.layer_norm2",
    r"visual\.transformer\.(\d+)\.mlp\.0": r"vision.encoder.layers.\1.mlp.fc1",
    r"visual\.transformer\.(\d+)\.mlp\.2": r"vision.encoder.layers.\1.mlp.fc2",
}
# Unused parts of the released file and of transformers' `CLIPModel`: the text tower, the contrastive heads
# and their norm, and the numbers of the positions.
_UNUSED = (
    r"textual\.|(log|logit)_scale$|visual\.(head$|post_norm\.)"
    r"|text_model\.|(text|visual)_projection\.|vision_model\.embeddings\.position_ids$"
)


@dataclass(frozen=True)
class ImageEncoderConfig:
    """Sizes of the image encoder.

    Args:
        dim: width of the hidden states.
        num_layers: blocks of the checkpoint; the last one is not run.
        ffn_dim: inner width of the feed-forward layers.
        patch_size: height and width of a patch in pixels.
        image_size: height and width in pixels to which images are resized.
        num_heads: attention heads.
        activation: of the feed-forward layers, by transformers' name.
        norm_eps: added to the variance in norms.
        image_mean, image_std: statistics of RGB values in [0, 1] (released CLIP).
    """

    dim: int
    num_layers: int
    ffn_dim: int
    patch_size: int
    image_size: int
    num_heads: int = 16
    activation: str = "gelu"
    norm_eps: float = 1e-5
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    @classmethod
    def from_tensors(cls, shapes: Shapes, fields: Mapping[str, Any]) -> "ImageEncoderConfig":
        """Read the sizes from the released tensors; `fields` may set the attributes with a default.

        Raises:
            CheckpointError: a required tensor is missing, or two contradict each other.
        """
        dim, _, patch_size, _ = shape_of(shapes, "visual.patch_embedding.weight", 4, RELEASED_FILE)
        patches = shape_of(shapes, "visual.pos_embedding", 3, RELEASED_FILE)[1] - 1
        if isqrt(patches) ** 2 != patches:
            raise CheckpointError(
                "`visual.pos_embedding` does not belong to a square image",
                received=f"{patches} patches",
                allowed="a square number of patches and one class token",
            )
        config = cls(
            dim=dim,
            num_layers=count_blocks(shapes, "visual.transformer."),
            ffn_dim=shape_of(shapes, "visual.transformer.0.mlp.0.weight", 2, RELEASED_FILE)[0],
            patch_size=patch_size,
            image_size=isqrt(patches) * patch_size,
            **_optional_fields(fields),
        )
        if config.num_heads < 1 or config.dim % config.num_heads:
            raise CheckpointError(
                "the width of `visual.patch_embedding.weight` is not divisible by `num_heads`",
                received=f"{config.dim} channels for {config.num_heads} heads",
                remedy="Set `num_heads` in the .json file next to the weights.",
            )
        return config


def _optional_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    known = {name: fields[name] for name in ("num_heads", "activation", "norm_eps") if name in fields}
    return known | {name: tuple(fields[name]) for name in ("image_mean", "image_std") if name in fields}


def from_released(tensors: dict[str, Tensor], config: ImageEncoderConfig) -> dict[str, Tensor]:
    """Rename the released tensors to the names of `ImageEncoder`; fused projections are split into views.

    Projections may also lie apart, as `attn.q`, `attn.k` and `attn.v`.

    The text tower, the contrastive head and the last block are dropped. Unknown names are kept.
    """
    state: dict[str, Tensor] = {}
    last_block = f"visual.transformer.{config.num_layers - 1}."
    for name, tensor in tensors.items():
        if not re.match(_UNUSED, name) and not name.startswith(last_block):
            state.update(_renamed(name, tensor))
    return state


def _renamed(name: str, tensor: Tensor) -> dict[str, Tensor]:
    if name == "visual.cls_embedding":
        return {"vision.embeddings.class_embedding": tensor.flatten()}
    if name == "visual.pos_embedding":
        return {"vision.embeddings.position_embedding.weight": tensor.squeeze(0)}
    if match := re.match(r"visual\.transformer\.(\d+)\.attn\.to_qkv\.", name):
        attention, rest = f"vision.encoder.layers.{match[1]}.self_attn", name[match.end() :]
        return {f"{attention}.{part}_proj.{rest}": x for part, x in zip("qkv", tensor.chunk(3), strict=True)}
    return {rename(name, _MODULES): tensor}


class ImageEncoder(nn.Module):
    """CLIP's image tower without its last block."""

    def __init__(self, config: ImageEncoderConfig) -> None:
        # Imported here because it takes seconds, which overlap with reading the weights.
        from transformers import CLIPVisionConfig, CLIPVisionModel

        super().__init__()
        self.config = config
        self.vision = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=config.dim,
                intermediate_size=config.ffn_dim,
                num_hidden_layers=config.num_layers - 1,
                num_attention_heads=config.num_heads,
                image_size=config.image_size,
                patch_size=config.patch_size,
                hidden_act=config.activation,
                layer_norm_eps=config.norm_eps,
                attn_implementation="sdpa",
            )
        )
        del self.vision.post_layernorm
        # This buffer is not in the checkpoint; a module built on the meta device would never get its values.
        del self.vision.embeddings.position_ids

    def forward(self, image: Tensor) -> Tensor:
        """Encode images.

        Args:
            image: [B, 3, H, W] in [−1, 1], any size.

        Returns:
            [B, 1 + patches, dim]: the state of the class token, then those of the patches row by row.

        Raises:
            InvalidRequest: `image` is not a batch of RGB images.
        """
        embeddings = self.vision.embeddings
        patches = embeddings.patch_embedding(self.preprocess(image).to(embeddings.patch_embedding.weight))
        class_token = embeddings.class_embedding.expand(len(image), 1, -1)
        tokens = torch.cat([class_token, patches.flatten(2).transpose(1, 2)], dim=1)
        tokens = self.vision.pre_layrnorm(tokens + embeddings.position_embedding.weight)
        return self.vision.encoder(inputs_embeds=tokens).last_hidden_state

    def preprocess(self, image: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [−1, 1] → [B, 3, image_size, image_size], float32, normalised for CLIP."""
        if image.ndim != 4 or image.shape[1] != 3 or 0 in image.shape:
            raise InvalidRequest("not a batch of images", received=list(image.shape), allowed="[B, 3, H, W]")
        size = (self.config.image_size, self.config.image_size)
        resized = F.interpolate(image.float(), size=size, mode="bicubic", align_corners=False) / 2 + 0.5
        # Channel by channel with plain numbers, because a CUDA graph cannot capture a tensor created here.
        statistics = zip(resized.unbind(1), self.config.image_mean, self.config.image_std, strict=True)
        return torch.stack([(channel - mean) / std for channel, mean, std in statistics], dim=1)
