"""The video diffusion transformer: Wan2.1-I2V with InfiniteTalk's audio adapters (Wan, arXiv 2503.20314).

Submodules carry the released tensor names. Shapes use the symbols of `latent_grid`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from talkinghead_lab.errors import CheckpointError
from talkinghead_lab.latent_grid import FRAMES_PER_LATENT
from talkinghead_lab.models.attention import Rotation, attention, attention_to_regions, grid_angles
from talkinghead_lab.models.audio_adapter import AudioCrossAttention, AudioProjection, speaker_rotation

KeysValues = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class DiTConfig:
    """Sizes of the transformer.

    `text_dim`, `image_dim` and `audio_features` (wav2vec2 layers × channels) are the widths of what the
    encoders deliver; `audio_dim` and `audio_tokens` those of the tokens that the blocks attend to.
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
            CheckpointError: a needed tensor is missing, or config.json contradicts the tensors.
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
                "the transformer's weights or its config.json lack an entry",
                received=str(missing).strip("'"),
                remedy="Check that the Wan2.1 shards, the InfiniteTalk adapter and config.json are there.",
            ) from None
        config._agree_with(fields)
        return config

    def _agree_with(self, fields: Mapping[str, Any]) -> None:
        for name in ("dim", "ffn_dim", "num_layers", "in_dim", "out_dim", "freq_dim", "text_dim"):
            if fields.get(name, getattr(self, name)) != getattr(self, name):
                raise CheckpointError(
                    f"config.json says {name} {fields[name]} where the tensors say {getattr(self, name)}",
                    remedy="The weights and the config.json belong to different models.",
                )
        if fields.get("model_type", "i2v") != "i2v":
            raise CheckpointError(
                "not an image-to-video transformer", received=fields["model_type"], allowed="i2v"
            )


@dataclass
class Context:
    """Tokens of a prompt or a picture that the blocks attend to, [B, N, D], and keys and values per block."""

    tokens: Tensor
    keys_values: list[KeysValues] | None = None


@dataclass
class AudioContext(Context):
    """Audio tokens [B, T, P·A, audio width] of P speakers."""

    speakers: int = 1


@dataclass
class TimeEmbedding:
    """Timesteps as the head ([B, D]) and the blocks ([B, 6, D]) take them, float32."""

    head: Tensor
    blocks: Tensor

    def at(self, entry: int) -> "TimeEmbedding":
        """One entry of the batch."""
        return TimeEmbedding(self.head[entry : entry + 1], self.blocks[entry : entry + 1])


def layer_norm(x: Tensor, norm: nn.LayerNorm, modulation: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Layer norm in float32, then an optional (shift, scale); the type of `x` is kept."""
    weight, bias = (None if p is None else p.float() for p in (norm.weight, norm.bias))
    out = F.layer_norm(x.float(), norm.normalized_shape, weight, bias, norm.eps)
    if modulation is not None:
        shift, scale = modulation
        out = out * (1 + scale) + shift
    return out.to(x.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the whole width, before it is split into heads."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], eps=self.eps).type_as(x) * self.weight


class SelfAttention(nn.Module):
    """Attention of all tokens of a chunk to each other, with queries and keys normed over the whole width."""

    def __init__(self, config: DiTConfig):
        super().__init__()
        self.num_heads = config.num_heads
        self.q = nn.Linear(config.dim, config.dim)
        self.k = nn.Linear(config.dim, config.dim)
        self.v = nn.Linear(config.dim, config.dim)
        self.o = nn.Linear(config.dim, config.dim)
        self.norm_q = RMSNorm(config.dim, config.eps)
        self.norm_k = RMSNorm(config.dim, config.eps)

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1))

    def forward(self, x: Tensor, rotation: Rotation, regions: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Attend; with speaker `regions` [3, S] also return how much each token attends to each of them."""
        query = rotation(self.heads(self.norm_q(self.q(x))))
        key = rotation(self.heads(self.norm_k(self.k(x))))
        out = self.o(attention(query, key, self.heads(self.v(x))).flatten(2))
        if regions is None:
            return out, None
        return out, attention_to_regions(query, key[:, : regions.shape[1]], regions)


class CrossAttention(SelfAttention):
    """Attention to the prompt and, with weights of its own, to the picture."""

    def __init__(self, config: DiTConfig):
        super().__init__(config)
        self.k_img = nn.Linear(config.dim, config.dim)
        self.v_img = nn.Linear(config.dim, config.dim)
        self.norm_k_img = RMSNorm(config.dim, config.eps)

    def text_keys_values(self, text: Tensor) -> KeysValues:
        return self.heads(self.norm_k(self.k(text))), self.heads(self.v(text))

    def image_keys_values(self, image: Tensor) -> KeysValues:
        return self.heads(self.norm_k_img(self.k_img(image))), self.heads(self.v_img(image))

    def forward(self, x: Tensor, text: KeysValues, image: KeysValues) -> Tensor:  # type: ignore[override]
        query = self.heads(self.norm_q(self.q(x)))
        return self.o((attention(query, *text) + attention(query, *image)).flatten(2))


class Block(nn.Module):
    """Self-attention, attention to prompt and picture, attention to the recording, feed-forward."""

    def __init__(self, config: DiTConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.dim, config.eps, elementwise_affine=False)
        self.self_attn = SelfAttention(config)
        self.norm3 = nn.LayerNorm(config.dim, config.eps)
        self.cross_attn = CrossAttention(config)
        self.norm_x = nn.LayerNorm(config.dim, config.eps)
        self.audio_cross_attn = AudioCrossAttention(config.dim, config.audio_dim, config.num_heads)
        self.norm2 = nn.LayerNorm(config.dim, config.eps, elementwise_affine=False)
        self.ffn = nn.Sequential(
            nn.Linear(config.dim, config.ffn_dim),
            nn.GELU(approximate="tanh"),
            nn.Linear(config.ffn_dim, config.dim),
        )
        self.modulation = nn.Parameter(torch.zeros(1, 6, config.dim))

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        rotation: Rotation,
        frames: int,
        text: KeysValues,
        image: KeysValues,
        audio: KeysValues,
        regions: Tensor | None,
    ) -> Tensor:
        """One block.

        Args:
            x: [B, L, D].
            time: [B, 6, D], float32.
            frames: T.
            text, image, audio: keys and values to attend to.
            regions: [3, S] where two speakers are heard.
        """
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = (self.modulation.float() + time).split(1, dim=1)
        seen, attended = self.self_attn(layer_norm(x, self.norm1, (shift_a, scale_a)), rotation, regions)
        x = (x + seen * gate_a).to(x.dtype)
        x = x + self.cross_attn(layer_norm(x, self.norm3), text, image)
        speakers = (
            None if attended is None else speaker_rotation(attended, x.shape[-1] // self.self_attn.num_heads)
        )
        x = x + self.audio_cross_attn(layer_norm(x, self.norm_x), audio, frames, speakers)
        fed = self.ffn(layer_norm(x, self.norm2, (shift_f, scale_f)))
        return (x + fed * gate_f).to(x.dtype)


class Head(nn.Module):
    """Projects tokens to velocity patches, in float32."""

    def __init__(self, config: DiTConfig):
        super().__init__()
        time, rows, columns = config.patch_size
        self.norm = nn.LayerNorm(config.dim, config.eps, elementwise_affine=False)
        self.head = nn.Linear(config.dim, time * rows * columns * config.out_dim)
        self.modulation = nn.Parameter(torch.zeros(1, 2, config.dim))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        shift, scale = (self.modulation.float() + time.unsqueeze(1)).split(1, dim=1)
        normed = layer_norm(x, self.norm).float() * (1 + scale) + shift
        return linear_float32(self.head, normed)


class ImageProjection(nn.Module):
    """Maps image-encoder features to the transformer's width."""

    def __init__(self, image_dim: int, dim: int):
        super().__init__()
        self.proj = nn.Sequential(
            nn.LayerNorm(image_dim),
            nn.Linear(image_dim, image_dim),
            nn.GELU(),
            nn.Linear(image_dim, dim),
            nn.LayerNorm(dim),
        )

    def forward(self, features: Tensor) -> Tensor:
        return self.proj(features)


def linear_float32(linear: nn.Module, x: Tensor) -> Tensor:
    """Apply a linear layer of any stored type with float32 arithmetic."""
    if isinstance(linear, nn.Linear):
        return F.linear(x, linear.weight.float(), None if linear.bias is None else linear.bias.float())
    return linear(x)


def sinusoid(timesteps: Tensor, width: int) -> Tensor:
    """[B] → [B, width]: cosines then sines, as in DDPM."""
    half = torch.arange(width // 2, dtype=torch.float64, device=timesteps.device)
    angles = torch.outer(timesteps.double(), 10_000 ** (-half / (width // 2)))
    return torch.cat([angles.cos(), angles.sin()], dim=1).float()


class DiT(nn.Module):
    """Predicts the velocity of a latent chunk under text, picture and recording.

    Sampling embeds what does not change in a chunk once (`text_context`, `image_context`, `audio_context`,
    `time_embedding_of`, `rotation`) and then calls `patchify`, `run_blocks` and `unpatchify` a step; `forward`
    does all of it.
    """

    def __init__(self, config: DiTConfig):
        super().__init__()
        self.config = config
        dim = config.dim
        self.patch_embedding = nn.Conv3d(config.in_dim, dim, config.patch_size, stride=config.patch_size)
        self.text_embedding = nn.Sequential(
            nn.Linear(config.text_dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim)
        )
        self.time_embedding = nn.Sequential(nn.Linear(config.freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.img_emb = ImageProjection(config.image_dim, dim)
        self.audio_proj = AudioProjection(
            config.audio_window,
            config.audio_features,
            config.audio_hidden,
            config.audio_tokens,
            config.audio_dim,
        )
        self.blocks: Sequence[Block] = nn.ModuleList(Block(config) for _ in range(config.num_layers))  # type: ignore[assignment]
        self.head = Head(config)

    @property
    def dtype(self) -> torch.dtype:
        return self.patch_embedding.weight.dtype

    def text_context(self, texts: Sequence[Tensor], precompute: bool = True) -> Context:
        """Embed prompts, one [n, text width] a batch entry.

        They are padded with zeros to `text_len` and the padding is attended to: so the model was trained.
        `precompute` (here and below) keeps every block's keys and values: more memory, fewer products a step.
        """
        padded = torch.stack([F.pad(text, (0, 0, 0, self.config.text_len - len(text))) for text in texts])
        context = Context(self.text_embedding(padded.to(self.dtype)))
        if precompute:
            context.keys_values = [b.cross_attn.text_keys_values(context.tokens) for b in self.blocks]
        return context

    def image_context(self, features: Tensor, precompute: bool = True) -> Context:
        """Embed image-encoder features [B, N, image width]."""
        context = Context(self.img_emb(features.to(self.dtype)))
        if precompute:
            context.keys_values = [b.cross_attn.image_keys_values(context.tokens) for b in self.blocks]
        return context

    def audio_context(self, audio: Tensor, precompute: bool = True) -> AudioContext:
        """Project windows of wav2vec2 rows, [B, P, F, window, layers, channels], one set for each speaker."""
        batch, speakers = audio.shape[:2]
        tokens = self.audio_proj(audio.to(self.dtype).flatten(0, 1))
        tokens = rearrange(tokens, "(b p) t a d -> b t (p a) d", b=batch)
        context = AudioContext(tokens, speakers=speakers)
        if precompute:
            context.keys_values = [b.audio_cross_attn.keys_values(tokens, speakers) for b in self.blocks]
        return context

    def time_embedding_of(self, timesteps: Tensor) -> TimeEmbedding:
        """Embed timesteps [B] in [0, 1000]."""
        first, activation, second = self.time_embedding
        hidden = activation(linear_float32(first, sinusoid(timesteps, self.config.freq_dim)))
        head = linear_float32(second, hidden)
        return TimeEmbedding(
            head, linear_float32(self.time_projection[1], F.silu(head)).unflatten(1, (6, -1))
        )

    def rotation(self, latent_shape: Sequence[int], device: torch.device | None = None) -> Rotation:
        """Rotary positions of a latent [..., T, h, w]."""
        time, rows, columns = (n // p for n, p in zip(latent_shape[-3:], self.config.patch_size, strict=True))
        return Rotation(grid_angles((time, rows, columns), self.config.dim // self.config.num_heads), device)

    def patchify(self, latent: Tensor, condition: Tensor) -> Tensor:
        """Noisy latent [B, C, T, h, w] and condition (mask and encoded picture) → tokens [B, L, D]."""
        return self.patch_embedding(torch.cat([latent, condition], dim=1).to(self.dtype)).flatten(2).mT

    def run_blocks(
        self,
        tokens: Tensor,
        time: TimeEmbedding,
        rotation: Rotation,
        text: Context,
        image: Context,
        audio: AudioContext,
        regions: Tensor | None = None,
    ) -> Tensor:
        """All blocks, [B, L, D] → [B, L, D]; `regions` [3, S] are used where `audio` holds two speakers."""
        frames = audio.tokens.shape[1]
        regions = regions if audio.speakers > 1 else None
        for i, block in enumerate(self.blocks):
            cross, heard = block.cross_attn, block.audio_cross_attn
            tokens = block(
                tokens,
                time.blocks,
                rotation,
                frames,
                text.keys_values[i] if text.keys_values else cross.text_keys_values(text.tokens),
                image.keys_values[i] if image.keys_values else cross.image_keys_values(image.tokens),
                audio.keys_values[i]
                if audio.keys_values
                else heard.keys_values(audio.tokens, audio.speakers),
                regions,
            )
        return tokens

    def unpatchify(self, tokens: Tensor, time: TimeEmbedding, latent_shape: Sequence[int]) -> Tensor:
        """Tokens [B, L, D] → velocity [B, C, T, h, w], float32."""
        p, q, r = self.config.patch_size
        return rearrange(
            self.head(tokens, time.head),
            "b (t h w) (p q r c) -> b c (t p) (h q) (w r)",
            t=latent_shape[-3] // p,
            h=latent_shape[-2] // q,
            w=latent_shape[-1] // r,
            p=p,
            q=q,
            r=r,
        )

    def forward(
        self,
        latent: Tensor,
        condition: Tensor,
        timesteps: Tensor,
        texts: Sequence[Tensor],
        image: Tensor,
        audio: Tensor,
        regions: Tensor | None = None,
    ) -> Tensor:
        """Velocity [B, C, T, h, w] from raw conditions; see the methods for their shapes."""
        time = self.time_embedding_of(timesteps)
        tokens = self.run_blocks(
            self.patchify(latent, condition),
            time,
            self.rotation(latent.shape, latent.device),
            self.text_context(texts, precompute=False),
            self.image_context(image, precompute=False),
            self.audio_context(audio, precompute=False),
            regions,
        )
        return self.unpatchify(tokens, time, latent.shape)


def token_regions(masks: Tensor, patch_size: tuple[int, int, int]) -> Tensor:
    """Speaker masks [3, h, w] at latent resolution → [3, S] at token resolution."""
    rows, columns = masks.shape[-2] // patch_size[1], masks.shape[-1] // patch_size[2]
    return (
        (F.interpolate(masks[None].float(), size=(rows, columns), mode="nearest")[0] > 0).float().flatten(1)
    )
