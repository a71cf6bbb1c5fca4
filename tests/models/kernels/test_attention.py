"""Attention kernels: selection, and the errors of the quantised ones."""

import pytest
import torch

from talkinghead_lab.errors import InvalidRequest
from talkinghead_lab.models.kernels.attention import (
    KERNELS,
    attention,
    choose_attention,
    kernel_status,
    text_image_attention,
)

CPU = torch.device("cpu")
# Relative errors that `quantized_attention` documents for random normal tensors.
BOUNDS = {"flash3_fp8": 0.06, "triton": 0.04}


def tensors(
    tokens: int = 300, batch: int = 2, device: str = "cpu", offset: float = 0.0
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (2, tokens, 2, 128)
    q, k, v = (torch.randn(shape, generator=generator) for _ in range(3))
    # Added to all tokens, like the outliers of trained keys and values.
    shared = torch.randn(1, 1, 2, 128, generator=generator) * offset
    return [x.to(device, torch.bfloat16) for x in (q, k + shared, v + shared)]


def error(kernel: str, query, key, value) -> float:
    exact = attention(*(x.double() for x in (query, key, value)))
    return ((attention(query, key, value, kernel).double() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("kernel", BOUNDS)
def test_quantised_attention_has_the_documented_error(kernel):
    out = attention(*tensors(), kernel)
    assert out.shape == (2, 300, 2, 128)
    assert out.dtype == torch.bfloat16
    assert BOUNDS[kernel] / 3 < error(kernel, *tensors()) < BOUNDS[kernel]


@pytest.mark.parametrize("kernel", BOUNDS)
def test_a_common_offset_of_keys_and_values_costs_no_precision(kernel):
    """The mean of the values is far larger than the quantised rest, so the relative error shrinks."""
    assert error(kernel, *tensors(offset=8.0)) < BOUNDS[kernel] / 3


def test_a_loose_query_bound_costs_no_precision():
    query, key, value = tensors()
    bound = torch.full((2,), 20 * query.abs().max().item())
    outs = (attention(query, key, value, "flash3_fp8", known) for known in (None, bound))
    exact = attention(query, key, value)
    without, with_bound = ((out - exact).float().norm() / exact.float().norm() for out in outs)
    assert with_bound < 1.02 * without


def test_queries_and_keys_may_have_different_lengths():
    query, key, value = tensors()
    assert error("triton", query[:, :130], key, value) < BOUNDS["triton"]


def test_a_cpu_uses_sdpa_unless_an_emulated_kernel_is_requested():
    assert choose_attention("auto", CPU) == "sdpa"
    assert choose_attention("triton", CPU) == "triton"


def test_an_unavailable_kernel_is_refused():
    with pytest.raises(InvalidRequest, match=r"flash3 is not available: needs a GPU .* 9\.0.*: auto, sdpa"):
        choose_attention("flash3", CPU)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_on_a_gpu(kernel):
    device = torch.device("cuda")
    if not (status := kernel_status(kernel, device)).passed:
        pytest.skip(str(status))
    for tokens in (300, 4096):
        assert error(kernel, *tensors(tokens, device="cuda")) < BOUNDS.get(kernel, 0.01)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("words", [0, 40, 300])
def test_text_image_attention_on_a_gpu(words):
    """The kernel reads one token of padding and counts it as often as it occurs."""
    query, *text = tensors(300, device="cuda")
    image = tensors(257, device="cuda")[1:]
    for each in text:
        each[0, words:] = each[0, words : words + 1]
    distinct_tokens = torch.tensor([min(words + 1, 300), 300], dtype=torch.int32, device="cuda")
    exact = sum(attention(*(x.double() for x in (query, *context))) for context in (text, image))
    out = text_image_attention(query, text, image, distinct_tokens).double()
    assert ((out - exact).norm() / exact.norm()).item() < 0.005
