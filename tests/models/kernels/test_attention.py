"""The kernels of attention: which is chosen, and how near the rounded ones are."""

import pytest
import torch

from talkinghead_lab.errors import InvalidRequest
from talkinghead_lab.models.kernels.attention import (
    KERNELS,
    attend_to_text_and_image,
    attention,
    choose_attention,
)

CPU = torch.device("cpu")
# The bounds that `eight_bit_attention` states for random normal tensors.
BOUNDS = {"flash3_fp8": 0.06, "triton": 0.04}


def tensors(
    tokens: int = 300, batch: int = 2, device: str = "cpu", offset: float = 0.0
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (2, tokens, 2, 128)
    q, k, v = (torch.randn(shape, generator=generator) for _ in range(3))
    # What all tokens share: the outliers of trained keys and values.
    shared = torch.randn(1, 1, 2, 128, generator=generator) * offset
    return [x.to(device, torch.bfloat16) for x in (q, k + shared, v + shared)]


def error(kind: str, query, key, value) -> float:
    exact = attention(*(x.double() for x in (query, key, value)))
    return ((attention(query, key, value, kind).double() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("kind", BOUNDS)
def test_eight_bit_attention_is_within_its_bound(kind):
    out = attention(*tensors(), kind)
    assert out.shape == (2, 300, 2, 128) and out.dtype == torch.bfloat16
    assert BOUNDS[kind] / 3 < error(kind, *tensors()) < BOUNDS[kind]


@pytest.mark.parametrize("kind", BOUNDS)
def test_what_all_keys_and_values_share_costs_no_precision(kind):
    """The mean of the values alone is far larger than what is rounded, so the error shrinks."""
    assert error(kind, *tensors(offset=8.0)) < BOUNDS[kind] / 3


def test_a_limit_far_above_the_query_costs_no_precision():
    query, key, value = tensors()
    limit = torch.full((2,), 20 * query.abs().max().item())
    out, limited = (attention(query, key, value, "flash3_fp8", known) for known in (None, limit))
    exact = attention(query, key, value)
    near, as_near = ((each - exact).float().norm() / exact.float().norm() for each in (out, limited))
    assert as_near < 1.02 * near


def test_queries_and_keys_may_have_different_lengths():
    query, key, value = tensors()
    assert error("triton", query[:, :130], key, value) < BOUNDS["triton"]


def test_a_cpu_takes_pytorchs_own_kernel():
    assert choose_attention("auto", CPU) == "sdpa"
    assert choose_attention("triton", CPU) == "triton"


def test_a_kernel_that_does_not_run_is_refused():
    with pytest.raises(InvalidRequest, match=r"flash3 needs a Hopper GPU.*: auto, sdpa"):
        choose_attention("flash3", CPU)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", KERNELS)
def test_kernels_on_a_gpu(kind):
    device = torch.device("cuda")
    if not KERNELS[kind].runs_on(device):
        pytest.skip(f"needs {KERNELS[kind].needs}")
    for tokens in (300, 4096):
        assert error(kind, *tensors(tokens, device="cuda")) < BOUNDS.get(kind, 0.01)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("words", [0, 40, 300])
def test_text_and_image_in_one_kernel_on_a_gpu(words):
    """Padding that is read once counts as often as it is there."""
    query, *text = tensors(300, device="cuda")
    image = tensors(257, device="cuda")[1:]
    for each in text:
        each[0, words:] = each[0, words : words + 1]
    distinct = torch.tensor([min(words + 1, 300), 300], dtype=torch.int32, device="cuda")
    exact = sum(attention(*(x.double() for x in (query, *context))) for context in (text, image))
    out = attend_to_text_and_image(query, text, image, distinct).double()
    assert ((out - exact).norm() / exact.norm()).item() < 0.005
