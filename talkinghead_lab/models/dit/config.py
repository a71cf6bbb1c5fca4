"""Sizes of the transformer, read from the tensors of a checkpoint."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from talkinghead_lab.errors import CheckpointError
from talkinghead_lab.foundation.latent_grid import FRAMES_PER_LATENT


@dataclass(frozen=True)
class DiTConfig:
    """Sizes of the transformer.

    `text_dim`, `image_dim` and `audio_features` (wav2vec2 layers × channels) are the widths of the encoders'
    outputs. The audio projection makes `audio_tokens` tokens of width `audio_dim` per latent frame.
    """

    dim: int
    ffn_dim: int
    num_heads: int
    num_layers: int
    in_dim: int
    out_dim: int
    patch_size: tuple[int, int, int]
    freq_dim: int
    text_dim: int
    text_len: int
    image_dim: int
    audio_window: int
    audio_features: int
    audio_hidden: int
    audio_tokens: int
    audio_dim: int
    eps: float

    @classmethod
    def from_tensors(cls, shapes: Mapping[str, Sequence[int]], fields: Mapping[str, Any]) -> Self:
        """Sizes from tensor shapes; `fields` (config.json) gives the head count, text length and epsilon.

        Raises:
            CheckpointError: a required tensor is missing, or config.json contradicts the tensors.
        """
        try:
            dim, in_dim, *patch_size = shapes["patch_embedding.weight"]
            first_window = shapes["audio_proj.proj1.weight"][1]
            features = (shapes["audio_proj.proj1_vf.weight"][1] - first_window) // (FRAMES_PER_LATENT - 1)
            audio_dim = shapes["audio_proj.norm.weight"][0]
            config = cls(
                dim=dim,
                ffn_dim=shapes["blocks.0.ffn.0.weight"][0],
                num_heads=fields["num_heads"],
                num_layers=len({name.split(".")[1] for name in shapes if name.startswith("blocks.")}),
                in_dim=in_dim,
                out_dim=shapes["head.head.weight"][0] // (patch_size[0] * patch_size[1] * patch_size[2]),
                patch_size=(patch_size[0], patch_size[1], patch_size[2]),
                freq_dim=shapes["time_embedding.0.weight"][1],
                text_dim=shapes["text_embedding.0.weight"][1],
                text_len=fields["text_len"],
                image_dim=shapes["img_emb.proj.0.weight"][0],
                audio_window=first_window // features,
                audio_features=features,
                audio_hidden=shapes["audio_proj.proj1.weight"][0],
                audio_tokens=shapes["audio_proj.proj3.weight"][0] // audio_dim,
                audio_dim=audio_dim,
                eps=fields.get("eps", 1e-6),
            )
        except KeyError as missing:
            raise CheckpointError(
                "an entry is missing from the transformer's weights or config.json",
                received=str(missing).strip("'"),
                remedy="Check that the Wan2.1 shards, the InfiniteTalk adapter and config.json are complete.",
            ) from None
        config._check_fields(fields)
        return config

    def _check_fields(self, fields: Mapping[str, Any]) -> None:
        if self.dim % self.num_heads or self.dim // self.num_heads % 2:
            raise CheckpointError(
                "`num_heads` of config.json does not divide the transformer into heads of an even width",
                received=f"{self.dim} channels for {self.num_heads} heads",
                remedy="Use the config.json that came with the weights.",
            )
        for name in ("dim", "ffn_dim", "num_layers", "in_dim", "out_dim", "freq_dim", "text_dim"):
            if fields.get(name, getattr(self, name)) != getattr(self, name):
                raise CheckpointError(
                    f"config.json has {name} {fields[name]}, but the tensors have {getattr(self, name)}",
                    remedy="The weights and the config.json belong to different models.",
                )
        if fields.get("model_type", "i2v") != "i2v":
            raise CheckpointError(
                "not an image-to-video transformer", received=fields["model_type"], allowed="i2v"
            )
