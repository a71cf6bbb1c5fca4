"""Attention kernels: selection, and the errors of the quantised ones."""

import os
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F

from talkinghead_lab.bench.forwards import relative_error
from talkinghead_lab.errors import InvalidRequest
from talkinghead_lab.models.kernels import attention as attention_module
from talkinghead_lab.models.kernels.attention import (
    KERNELS,
    attention,
    choose_attention,
    kernel_status,
    text_image_attention,
)
from talkinghead_lab.models.kernels.fp8 import FP8
from talkinghead_lab.models.kernels.optional_kernels import Status
from talkinghead_lab.models.kernels.quantized_attention import (
    SAMPLED_BOUND,
    SAMPLED_TOKENS,
    attention_flash3_fp8_centred,
    quantize_near_centre,
    sample_step,
    scale_for,
)

CPU = torch.device("cpu")
# On a CPU, Triton's interpreter runs the kernels; it has no bf16.
DEVICE, DTYPE = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float16)


@dataclass
class Kernels:
    """The optional kernels of some GPU."""

    statuses: dict[str, Status]

    def status(self, name: str) -> Status:
        return self.statuses[name]

    def runs(self, name: str) -> bool:
        return self.statuses[name].passed


# Relative errors that `quantized_attention` documents for random normal tensors.
BOUNDS = {"flash3_fp8": 0.06, "triton_hopper": 0.039, "triton": 0.025}
# What its package's authors publish, and what was measured.
GPU_BOUNDS = {**BOUNDS, "sage": 0.05}


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


def test_loose_bounds_of_queries_and_keys_cost_no_precision():
    query, key, value = tensors()
    exact = attention(query, key, value).float()
    bound = torch.full((2,), 20 * query.abs().max().item())
    fp8_key = (key.float() / scale_for(2 * bound, FP8).view(2, 1)).to(FP8)
    terms = (
        attention_flash3_fp8_centred(query, key, value),
        attention_flash3_fp8_centred(query, fp8_key, value, bound, 2 * bound),
    )
    without, with_bounds = ((out.float() + centre - exact).norm() / exact.norm() for out, centre in terms)
    assert with_bounds < 1.02 * without


def test_a_centre_and_a_bound_from_a_sample_of_the_tokens_serve_all():
    torch.manual_seed(0)
    value = torch.randn(1, 2 * SAMPLED_TOKENS, 2, 128) + 5
    assert sample_step(value.shape[1]) == 2
    value[0, 1, 0] = 1e6
    rows, scale, centre = quantize_near_centre(value)
    assert relative_error(centre, value[:, 2:].mean(dim=1, keepdim=True)) < 0.01
    restored = rows.float() * scale + centre
    assert relative_error((restored - 5)[:, 2:], (value - 5)[:, 2:]) < 0.03
    bound = SAMPLED_BOUND * (value[:, ::2] - centre).abs().amax(dim=(1, 3))[0, 0]
    torch.testing.assert_close(restored[0, 1, 0], centre[0, 0, 0] + bound, msg="beyond the bound: clamped")


def test_queries_and_keys_may_have_different_lengths():
    query, key, value = tensors()
    assert error("triton", query[:, :130], key, value) < BOUNDS["triton"]


def test_a_cpu_uses_sdpa_unless_an_emulated_kernel_is_requested():
    assert choose_attention("auto", CPU) == "sdpa"
    assert choose_attention("triton", CPU) == "triton"


def test_eight_bit_is_the_fastest_kernel_that_quantises_and_runs(monkeypatch):
    assert choose_attention("eight_bit", CPU) == "triton_hopper"
    gpu = torch.device("cuda")
    for lacking, chosen in (
        ({"triton_hopper"}, "flash3_fp8"),
        ({"triton_hopper", "flash3_fp8"}, "sage"),
        ({"triton_hopper", "flash3_fp8", "sage"}, "triton"),
    ):
        statuses = {name: Status("not available" if name in lacking else "passed", "") for name in KERNELS}
        monkeypatch.setattr(attention_module, "kernels_of", lambda device, found=statuses: Kernels(found))
        assert choose_attention("eight_bit", gpu) == chosen


def test_eight_bit_is_refused_where_no_kernel_quantises(monkeypatch):
    failed = dict.fromkeys(KERNELS, Status("failed", "wrong"))
    monkeypatch.setattr(attention_module, "kernels_of", lambda device: Kernels(failed))
    with pytest.raises(InvalidRequest, match=r"triton failed its self-check here: wrong.*: auto, sdpa"):
        choose_attention("eight_bit", torch.device("cuda"))


def test_weights_far_below_the_largest_keep_their_share():
    """One key has most of the weight; int8 with one scale for all keys would round the others to zero."""
    query, key, value = tensors(batch=1)
    key[:, 0] = query[:, :1].mean(dim=1) * 4
    assert error("triton", query[:, :1], key, value) < BOUNDS["triton"]


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
        assert error(kernel, *tensors(tokens, device="cuda")) < GPU_BOUNDS.get(kernel, 0.01)


@pytest.mark.skipif(
    DEVICE == "cpu" and "TRITON_INTERPRET" not in os.environ,
    reason="needs a GPU, or Triton and TRITON_INTERPRET=1",
)
@pytest.mark.parametrize("words", [0, 40, 300])
def test_text_image_attention_norms_the_query_and_counts_padding_as_often_as_it_occurs(words):
    query, *text = (x.to(DTYPE) for x in tensors(300, device=DEVICE))
    image = [x.to(DTYPE) for x in tensors(257, device=DEVICE)[1:]]
    weight = torch.linspace(0.5, 1.5, 256, device=DEVICE).to(DTYPE)
    for each in text:
        each[0, words:] = each[0, words : words + 1]
    distinct_tokens = torch.tensor([min(words + 1, 300), 300], dtype=torch.int32, device=DEVICE)
    normed = F.rms_norm(3 * query.double().flatten(2), (256,), weight.double(), 1e-6).view(query.shape)
    exact = sum(attention(normed, *(x.double() for x in context)) for context in (text, image))
    out = text_image_attention(3 * query, weight, 1e-6, text, image, distinct_tokens)
    assert relative_error(out.double(), exact) < 0.006


@pytest.mark.parametrize("kind", ["triton", "triton_hopper"])
def test_emulated_kernels_have_the_strides_that_the_compiler_expects(kind):
    """The fake of an operation gives strides; PyTorch's compiler refuses others."""
    query = torch.randn(1, 48, 2, 128)
    assert KERNELS[kind].attend(query, query, query).stride() == (12_288, 256, 128, 1)
