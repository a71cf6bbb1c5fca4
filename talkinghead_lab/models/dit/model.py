"""The video diffusion transformer: Wan2.1-I2V with InfiniteTalk's audio adapters (Wan, arXiv 2503.20314).

Submodules carry the released tensor names. Shapes use the symbols of `latent_grid`.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.fx import GraphModule

from talkinghead_lab.models.dit.audio_adapter import AudioProjection
from talkinghead_lab.models.dit.blocks import Block, Head, KeysValues, linear_float32
from talkinghead_lab.models.dit.config import DiTConfig
from talkinghead_lab.models.dit.sequence_parallel import SequenceParallelGroup
from talkinghead_lab.models.kernels.attention import (
    EXACT_KINDS,
    Rotation,
    choose_attention,
    grid_angles,
    runs_triton,
)

# The released width of a head, for which the Triton kernels are tuned.
KERNELS_HEAD_WIDTH = 128


@dataclass
class Context:
    """Tokens of a prompt or a picture that the blocks attend to, [B, N, D], and keys and values per block.

    Tokens of a prompt from number `distinct` − 1 on (int32 [B]) are the same: padding.
    """

    tokens: Tensor
    keys_values: list[KeysValues] | None = None
    distinct: Tensor | None = None


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
        return self.proj(features)


def sinusoid(timesteps: Tensor, width: int) -> Tensor:
    """[B] → [B, width]: cosines then sines, as in DDPM."""
    half = torch.arange(width // 2, dtype=torch.float64, device=timesteps.device)
    angles = torch.outer(timesteps.double(), 10_000 ** (-half / (width // 2)))
    return torch.cat([angles.cos(), angles.sin()], dim=1).float()


def inductor_without_tf32_hint(graph: GraphModule, inputs: list[Any]) -> Callable[..., Any]:
    """PyTorch's default compiler without its hint to enable TF32: float32 layers need their precision."""
    from torch._inductor import compile as compile_graph  # importing it takes seconds

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "TensorFloat32 tensor cores")
        return compile_graph(graph, inputs)


class DiT(nn.Module):
    """Predicts the velocity of a latent chunk under text, picture and recording.

    Sampling embeds what does not change in a chunk once (`text_context`, `image_context`, `audio_context`,
    `time_embedding_of`, `rotation`), then calls `patchify`, `run_blocks`, `unpatchify` each step; `forward`
    does all of it.
    """

    def __init__(self, config: DiTConfig) -> None:
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
        # Several processes that each hold the transformer share its work; all must call the same forwards.
        self.share = SequenceParallelGroup()

    def use_attention(self, kind: str, device: torch.device) -> None:
        """Choose the kernel of self-attention, and the fastest exact one for attention to text and picture.

        Raises:
            InvalidRequest: the kernel does not run on the device.
        """
        chosen, exact = choose_attention(kind, device), choose_attention("auto", device)
        has_kernels = runs_triton(device) and self.config.dim == self.config.num_heads * KERNELS_HEAD_WIDTH
        for block in self.blocks:
            block.self_attn.kind = chosen
            block.cross_attn.kind = chosen if chosen in EXACT_KINDS else exact
            block.self_attn.has_kernels = block.cross_attn.has_kernels = has_kernels

    def compile_blocks(self) -> None:
        """Compile the blocks and the head: one graph per shape, shared by all blocks.

        PyTorch compiles `forward` and leaves the call around it as it is, so hooks run outside the graph.
        Compiled code is cached on disk (`TORCHINDUCTOR_CACHE_DIR`), where later processes find it.
        """
        for module in (*self.blocks, self.head):
            module.compile(dynamic=False, backend=inductor_without_tf32_hint)

    @property
    def dtype(self) -> torch.dtype:
        return self.patch_embedding.weight.dtype

    def text_context(self, texts: Sequence[Tensor], precompute: bool = True) -> Context:
        """Embed prompts, one [n, text width] a batch entry.

        They are padded with zeros to `text_len` and the padding is attended to: so the model was trained.
        `precompute` (here and below) keeps every block's keys and values: more memory, fewer products a step.
        """
        length = self.config.text_len
        padded = torch.stack([F.pad(text, (0, 0, 0, length - len(text))) for text in texts])
        tokens = self.text_embedding(padded.to(self.dtype))
        # Filled on the device: a copy from the host could not be captured in a graph.
        counts = [tokens.new_full((1,), min(len(text) + 1, length), dtype=torch.int32) for text in texts]
        context = Context(tokens, distinct=torch.cat(counts))
        if precompute:
            context.keys_values = [b.cross_attn.text_keys_values(tokens) for b in self.blocks]
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
        angles = grid_angles((time, rows, columns), self.config.dim // self.config.num_heads)
        return Rotation.from_angles(angles, device)

    def patchify(self, latent: Tensor, condition: Tensor) -> Tensor:
        """Noisy latent [B, C, T, h, w] and condition (mask and encoded picture) → tokens [B, L, D].

        The convolution's patches do not overlap, so it is one matrix product.
        """
        p, q, r = self.config.patch_size
        patches = rearrange(
            torch.cat([latent, condition], dim=1).to(self.dtype),
            "b c (t p) (h q) (w r) -> b (t h w) (c p q r)",
            p=p,
            q=q,
            r=r,
        )
        return F.linear(patches, self.patch_embedding.weight.flatten(1), self.patch_embedding.bias)

    def run_blocks(
        self,
        tokens: Tensor,
        time: TimeEmbedding,
        rotation: Rotation,
        text: Context,
        image: Context,
        audio: AudioContext,
        regions: Tensor | None = None,
        alone: bool = False,
    ) -> Tensor:
        """All blocks, [B, L, D] → [B, L, D].

        Args:
            regions: [3, S], used where `audio` holds two speakers.
            alone: compute all tokens in this process; so are those of two speakers, whose regions need them.
        """
        frames = audio.tokens.shape[1]
        regions = regions if audio.speakers > 1 else None
        share = SequenceParallelGroup()
        if not alone and regions is None:
            share = self.share.fitting(self.config.num_heads, tokens.shape[1] // frames)
        if share.size > 1:
            tokens = share.split(tokens, frames)
            rotation = share.split_rotation(rotation, frames)
        for i, block in enumerate(self.blocks):
            cross, heard = block.cross_attn, block.audio_cross_attn
            tokens = block(
                tokens,
                time.blocks,
                rotation,
                frames,
                text.keys_values[i] if text.keys_values else cross.text_keys_values(text.tokens),
                text.distinct,
                image.keys_values[i] if image.keys_values else cross.image_keys_values(image.tokens),
                audio.keys_values[i]
                if audio.keys_values
                else heard.keys_values(audio.tokens, audio.speakers),
                regions,
                share,
            )
        return share.gather(tokens, frames)

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
