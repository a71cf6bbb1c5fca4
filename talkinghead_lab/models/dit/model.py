"""The video diffusion transformer: Wan2.1-I2V (arXiv 2503.20314) with InfiniteTalk's audio adapters.

Submodules have the names of the released tensors. Shapes use the symbols of `latent_grid`.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.fx import GraphModule

from talkinghead_lab.foundation.process_wide import process_wide
from talkinghead_lab.models.dit.audio_adapter import AudioProjection
from talkinghead_lab.models.dit.blocks import Block, Head, attend_shared, linear_float32
from talkinghead_lab.models.dit.conditions import (
    AudioContext,
    CrossAttentionContext,
    ImageProjection,
    TimeEmbedding,
    sinusoid,
)
from talkinghead_lab.models.dit.config import DiTConfig
from talkinghead_lab.models.dit.sequence_parallel import SequenceParallelGroup
from talkinghead_lab.models.kernels.attention import (
    EXACT_KERNELS,
    KERNELS,
    Rotation,
    attention,
    choose_attention,
    grid_angles,
    kernel_status,
    used_kernel,
)
from talkinghead_lab.models.kernels.fp8 import uses_fp8_matmul
from talkinghead_lab.models.kernels.fused_ops import ResidualUpdate
from talkinghead_lab.models.kernels.optional_kernels import Status, kernels_of
from talkinghead_lab.models.lora import LoraStrengths
from talkinghead_lab.models.quantized.blocks import BlockQuantizedLinear

# The released head width; the Triton kernels of the blocks are tuned for it.
TRITON_HEAD_WIDTH = 128
BLOCK_KERNELS = ("fused_layers", "fused_fp8_layers", "text_image", "two_speakers")


class FirstBlockShortcut(Protocol):
    """May replace all blocks after the first one; see `run_blocks`."""

    def after_first(self, before: Tensor, tokens: Tensor, group: SequenceParallelGroup) -> Tensor | None:
        """What comes out of all blocks, from tokens [B, l, D] before and after the first; None: run them."""

    def after_all(self, tokens: Tensor) -> None:
        """Called with what comes out of all blocks where they ran."""


def inductor_without_tf32_hint(graph: GraphModule, inputs: list[Any]) -> Callable[..., Any]:
    """PyTorch's default compiler without its hint to enable TF32: float32 layers need their precision."""
    from torch._inductor import compile as compile_graph  # importing it takes seconds

    with _without_tf32_hint():
        return compile_graph(graph, inputs)


@process_wide
@contextmanager
def _without_tf32_hint() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "TensorFloat32 tensor cores")
        yield


class DiT(nn.Module):
    """Predicts the velocity of a latent chunk from text, portrait and audio.

    Sampling embeds the conditions once per chunk (`text_context`, `image_context`, `audio_context`,
    `time_embedding_of`, `rotation`) and calls `patchify`, `run_blocks` and `unpatchify` in each step.
    `forward` does all of this.
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
        # With several processes, all must run the same forward passes.
        self.group = SequenceParallelGroup()
        self.add_update = ResidualUpdate.added_to
        self.lora_strengths = LoraStrengths(0, "cpu")
        # Of the optional kernels that `use_attention` considered.
        self.kernel_statuses: dict[str, Status] = {}

    def use_attention(self, kernel: str, device: torch.device) -> None:
        """Choose the kernel of self-attention; cross-attention uses it if exact, else the fastest exact one.

        The blocks use the optional kernels that passed their self-check on the device.

        Raises:
            InvalidRequest: the device cannot run the kernel.
        """
        chosen, exact = choose_attention(kernel, device), choose_attention("auto", device)
        optional = {name for name in (chosen, *EXACT_KERNELS) if KERNELS[name].optional}
        self.kernel_statuses = {name: kernel_status(name, device) for name in sorted(optional)}
        needed = list(BLOCK_KERNELS) if self.config.dim == self.config.num_heads * TRITON_HEAD_WIDTH else []
        if any(isinstance(module, BlockQuantizedLinear) for module in self.modules()):
            needed.append("dequantize")
        kernels = kernels_of(device)
        running = {name for name in needed if kernels.runs(name)}
        self.kernel_statuses |= {name: kernels.status(name) for name in needed}
        for block in self.blocks:
            block.self_attn.kernel = chosen
            block.cross_attn.kernel = chosen if chosen in EXACT_KERNELS else exact
            block.self_attn.has_triton_kernels = "fused_layers" in running
            block.self_attn.has_fp8_kernels = "fused_fp8_layers" in running
            block.cross_attn.has_triton_kernels = "text_image" in running
            block.self_attn.has_two_speaker_kernels = "two_speakers" in running

    def kernels(self) -> dict[str, Any]:
        """The kernels that run, for the record: of both attentions, fused block layers, matmuls in fp8.

        `optional` states of every optional kernel that was considered how its self-check ended, or what the
        device lacks.
        """
        own, cross = self.blocks[0].self_attn, self.blocks[0].cross_attn
        fused = self.dtype is torch.bfloat16
        return {
            "self_attention": used_kernel(own.kernel, self.dtype),
            "cross_attention": (
                "fused" if fused and cross.has_triton_kernels else used_kernel(cross.kernel, self.dtype)
            ),
            "fused_layers": fused and own.has_triton_kernels,
            "fp8_matmuls": sum(map(uses_fp8_matmul, self.modules())),
            "fused_fp8_layers": fused and own.has_fp8_kernels,
            "optional": {name: str(status) for name, status in self.kernel_statuses.items()},
            "processes": self.group.size,
            "exchange": None if self.group.exchange is None else self.group.exchange.name,
        }

    def compile_blocks(self) -> None:
        """Compile the blocks and the head: one graph per shape, shared by all blocks.

        PyTorch compiles `forward` and leaves the call around it as it is, so hooks run outside the graph.
        Compiled code is cached on disk (`TORCHINDUCTOR_CACHE_DIR`), where later processes find it.
        """
        # The compiler reuses memory once a graph no longer needs its contents, but in shared attention copies
        # and other processes still do. Of that, only attention that quantises is compiled.
        shared = torch.compiler.disable(attend_shared)
        quantizing = torch.compile(attention, dynamic=False, backend=inductor_without_tf32_hint)
        for block in self.blocks:
            block.self_attn.attend_shared, block.self_attn.quantizing_attention = shared, quantizing
        for module in (*self.blocks, self.head):
            module.compile(dynamic=False, backend=inductor_without_tf32_hint)
        self.add_update = torch.compile(
            ResidualUpdate.added_to, dynamic=False, backend=inductor_without_tf32_hint
        )

    @property
    def dtype(self) -> torch.dtype:
        """Type of the tokens."""
        return self.patch_embedding.weight.dtype

    def text_context(self, texts: Sequence[Tensor], precompute: bool = True) -> CrossAttentionContext:
        """Embed prompts, one [n, text width] per batch entry.

        Prompts are padded with zeros to `text_len`, and the blocks attend to the padding, as in training.
        `precompute` (here and below) stores the keys and values of every block, which takes memory and saves
        matmuls in each step.
        """
        length = self.config.text_len
        padded = torch.stack([F.pad(text, (0, 0, 0, length - len(text))) for text in texts])
        tokens = self.text_embedding(padded.to(self.dtype))
        # Filled on the device: a CUDA graph cannot capture a copy from the host.
        counts = [tokens.new_full((1,), min(len(text) + 1, length), dtype=torch.int32) for text in texts]
        context = CrossAttentionContext(tokens, distinct_tokens=torch.cat(counts))
        if precompute:
            context.keys_values = [b.cross_attn.text_keys_values(tokens) for b in self.blocks]
        return context

    def image_context(self, features: Tensor, precompute: bool = True) -> CrossAttentionContext:
        """Embed image-encoder features [B, N, image width]."""
        context = CrossAttentionContext(self.img_emb(features.to(self.dtype)))
        if precompute:
            context.keys_values = [b.cross_attn.image_keys_values(context.tokens) for b in self.blocks]
        return context

    def audio_context(self, audio: Tensor, precompute: bool = True) -> AudioContext:
        """Project windows of wav2vec2 rows of P speakers, [B, P, F, window, layers, channels]."""
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
        """Noisy latent [B, C, T, h, w] and condition (mask and encoded image) → tokens [B, L, D].

        The patches of the convolution do not overlap, so it is computed as one matmul.
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
        text: CrossAttentionContext,
        image: CrossAttentionContext,
        audio: AudioContext,
        regions: Tensor | None = None,
        single_process: bool = False,
        shortcut: FirstBlockShortcut | None = None,
    ) -> Tensor:
        """Run all blocks, [B, L, D] → [B, L, D].

        Args:
            tokens: [B, L, D].
            time: embedded timesteps.
            rotation: rotary positions of the tokens.
            text, image, audio: contexts of cross-attention.
            regions: speaker regions [3, S], used if `audio` holds two speakers.
            single_process: compute all tokens in this process.
            shortcut: may end the pass after the first block.
        """
        frames, regions = audio.tokens.shape[1], regions if audio.speakers > 1 else None
        group = SequenceParallelGroup()
        if not single_process:
            group = self.group.if_divides(self.config.num_heads, tokens.shape[1] // frames)
        if group.size > 1:
            tokens = group.split(tokens, frames)
            rotation = group.split_rotation(rotation, frames)
        before, update = tokens, ResidualUpdate.of_nothing(tokens)
        for i, block in enumerate(self.blocks):
            cross, audio_cross = block.cross_attn, block.audio_cross_attn
            tokens, update = block(
                tokens,
                update,
                time.blocks,
                rotation,
                frames,
                text.keys_values[i] if text.keys_values else cross.text_keys_values(text.tokens),
                text.distinct_tokens,
                image.keys_values[i] if image.keys_values else cross.image_keys_values(image.tokens),
                audio.keys_values[i]
                if audio.keys_values
                else audio_cross.keys_values(audio.tokens, audio.speakers),
                regions,
                group,
            )
            if i == 0 and shortcut is not None:
                tokens = self.add_update(update, tokens)
                out = shortcut.after_first(before, tokens, group)
                if out is not None:
                    return group.merge(out, frames)
                update = ResidualUpdate.of_nothing(tokens)
        out = self.add_update(update, tokens)
        if shortcut is not None:
            shortcut.after_all(out)
        return group.merge(out, frames)

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
        """Velocity [B, C, T, h, w] from raw conditions; the methods above document their shapes."""
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
