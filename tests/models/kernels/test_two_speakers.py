"""Attention to the regions of two speakers, and attention weights of rotated queries."""

import os

import pytest
import torch
from torch import Tensor

from talkinghead_lab.bench.forwards import relative_error
from talkinghead_lab.models.kernels import two_speakers
from talkinghead_lab.models.kernels.attention import Rotation, rotary_angles
from talkinghead_lab.models.kernels.two_speakers import region_attention, rotated_attention_weights

# On a CPU, Triton's interpreter runs the kernels; it has no bf16.
DEVICE, DTYPE = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float16)
needs_triton = pytest.mark.skipif(
    DEVICE == "cpu" and "TRITON_INTERPRET" not in os.environ,
    reason="needs a GPU, or Triton and TRITON_INTERPRET=1",
)
BATCH, TOKENS, KEYS, HEADS, WIDTH = 2, 150, 100, 3, 128


def tensors(dtype: torch.dtype, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, BATCH, TOKENS, HEADS, WIDTH, generator=generator).to(device, dtype)
    regions = torch.zeros(3, KEYS, device=device)
    regions[0, :30], regions[1, 20:60] = 1, 1  # speakers may overlap, and the background may be empty
    return query, key[:, :KEYS], regions


def exact(query: Tensor, key: Tensor, regions: Tensor) -> Tensor:
    scores = torch.einsum("blnd,bsnd->bnls", query.double(), key.double()) / WIDTH**0.5
    means = regions.double() / regions.sum(dim=1, keepdim=True).clamp(min=1)
    return torch.einsum("bnls,rs->brl", scores.softmax(dim=-1), means)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("score_bytes", [1, 10**5, 10**9])
def test_attention_to_regions_is_as_exact_in_parts_of_the_tokens(monkeypatch, score_bytes, dtype):
    monkeypatch.setattr(two_speakers, "SCORE_BYTES", score_bytes)
    attended = region_attention(*tensors(dtype))
    assert attended.dtype == torch.float32
    assert relative_error(attended, exact(*tensors(dtype))) < 1e-6
    assert torch.equal(attended[:, 2], torch.zeros(BATCH, TOKENS))


def test_no_heads_attend_to_nothing():
    query, key, regions = tensors(torch.float32)
    attended = region_attention(query[:, :, :0], key[:, :, :0], regions)
    assert torch.equal(attended, torch.zeros(BATCH, 3, TOKENS))


@needs_triton
def test_the_triton_kernel_attends_to_regions():
    query, key, regions = tensors(DTYPE, DEVICE)
    for heads in (slice(None), slice(1, 2)):
        given = query[:, :, heads], key[:, :, heads], regions
        assert relative_error(region_attention(*given, use_triton=True), exact(*given)) < 1e-3


@needs_triton
@pytest.mark.parametrize("count", [10, 64])
def test_the_triton_kernel_rotates_queries_and_attends_to_the_audio_of_their_frame(count):
    frames, generator = 5, torch.Generator(DEVICE).manual_seed(0)
    query = tensors(DTYPE, DEVICE)[0]
    key = torch.randn(BATCH * frames, count, HEADS, WIDTH, device=DEVICE, generator=generator).to(DTYPE)
    positions = 24 * torch.rand(BATCH, TOKENS, device=DEVICE, generator=generator)
    rotation = Rotation.from_angles(rotary_angles(positions, WIDTH))
    rotated = rotation(query).reshape(BATCH * frames, TOKENS // frames, HEADS, WIDTH)
    scores = torch.einsum("fsnd,fknd->fsnk", rotated.double(), key.double()) / WIDTH**0.5
    weights = rotated_attention_weights(query, rotation.cosine, rotation.sine, key)
    assert relative_error(weights.double(), scores.softmax(dim=-1).flatten(2)) < 3e-3
