"""Attention kernels and their selection, and rotary position embedding."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from talkinghead_lab.errors import InvalidRequest
from talkinghead_lab.models.kernels.optional_kernels import Status, kernels_of
from talkinghead_lab.models.kernels.quantized_attention import (
    attention_flash3_fp8,
    attention_flash3_fp8_centred,
    attention_triton,
    attention_triton_hopper,
)

ROTARY_BASE = 10_000.0


def attention(
    query: Tensor, key: Tensor, value: Tensor, kernel: str = "sdpa", query_bound: Tensor | None = None
) -> Tensor:
    """Softmax attention over [B, tokens, heads, head width] tensors; the result has the query's shape.

    Args:
        query: [B, L, heads, head width].
        key, value: [B, N, heads, head width].
        kernel: a name in `KERNELS`.
        query_bound: upper bound of |query| per head, [heads]. It saves `flash3_fp8` a pass over the query.
    """
    out, offset = attention_and_offset(query, key, value, kernel, query_bound)
    return out if offset is None else (out + offset).to(offset.dtype)


def attention_and_offset(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel: str,
    query_bound: Tensor | None = None,
    key_bound: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Attention as the sum of two terms, [B, L, heads, head width] and [B, 1, heads, head width], or as one.

    With the bounds of |query| and |key| per head, [heads], both may be in fp8 for `flash3_fp8`; see there.
    """
    if kernel == "flash3_fp8":
        return attention_flash3_fp8_centred(query, key, value, query_bound, key_bound)
    return KERNELS[used_kernel(kernel, query.dtype)].attend(query, key, value), None


def used_kernel(kernel: str, dtype: torch.dtype) -> str:
    """The kernel that runs: those of packages take bf16 only; for other types `sdpa` replaces them."""
    return "sdpa" if kernel in ("flash3", "sage") and dtype != torch.bfloat16 else kernel


def _sdpa(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """PyTorch's own choice: cuDNN's kernel on a Hopper GPU."""
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)


def text_image_attention(
    query: Tensor,
    norm_weight: Tensor,
    eps: float,
    text: Sequence[Tensor],
    image: Sequence[Tensor],
    distinct_tokens: Tensor,
) -> Tensor:
    """RMS norm of the query and attention to text plus image; see `triton_text_image_attention`."""
    return _text_image_attention(query, norm_weight, eps, list(text), list(image), distinct_tokens)


@torch.library.custom_op("talkinghead_lab::attend_to_text_and_image", mutates_args=())
def _text_image_attention(
    query: Tensor,
    norm_weight: Tensor,
    eps: float,
    text: Sequence[Tensor],
    image: Sequence[Tensor],
    distinct_tokens: Tensor,
) -> Tensor:
    from talkinghead_lab.models.kernels.triton_text_image_attention import attend

    return attend(query, norm_weight, eps, text, image, distinct_tokens)


@_text_image_attention.register_fake
def _(query: Tensor, *_: Any) -> Tensor:
    return query.new_empty(query.shape)


@torch.library.custom_op("talkinghead_lab::flash3", mutates_args=())
def _flash3(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    from fa3_fwd_interface import flash_attn_func

    return flash_attn_func(query, key, value)


@_flash3.register_fake
def _(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return query.new_empty(query.shape)


@torch.library.custom_op("talkinghead_lab::sage", mutates_args=())
def _sage(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """SageAttention (arXiv 2410.02367, 2411.10958): versions 1.0.4 to 2.2 accept these arguments."""
    from sageattention import sageattn

    return sageattn(query, key, value, tensor_layout="NHD", is_causal=False)


@_sage.register_fake
def _(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return query.new_empty(query.shape)


@dataclass(frozen=True)
class AttentionKernel:
    """An attention function.

    Args:
        attend: query, key and value [B, tokens, heads, head width] → the same shape.
        exact: whether it computes in the type of its inputs.
        optional: whether it is one of `OPTIONAL_KERNELS`, by the same name; others run everywhere.
        emulated: whether a CPU runs it, emulated.
    """

    attend: Callable[[Tensor, Tensor, Tensor], Tensor]
    exact: bool = False
    optional: bool = True
    emulated: bool = False


# Exact kernels and those in eight bits each come fastest first, as measured on an H100, which runs them all
# (docs/performance-forward-pass.md). Elsewhere only `sdpa`, `sage` and `triton` run.
KERNELS: dict[str, AttentionKernel] = {
    "flash3": AttentionKernel(_flash3, exact=True),
    "sdpa": AttentionKernel(_sdpa, exact=True, optional=False),
    "triton_hopper": AttentionKernel(attention_triton_hopper, emulated=True),
    "flash3_fp8": AttentionKernel(attention_flash3_fp8, emulated=True),
    "sage": AttentionKernel(_sage),
    "triton": AttentionKernel(attention_triton, emulated=True),
}
EXACT_KERNELS = tuple(name for name, kernel in KERNELS.items() if kernel.exact)
EIGHT_BIT_KERNELS = tuple(name for name, kernel in KERNELS.items() if not kernel.exact)


def kernel_status(name: str, device: torch.device) -> Status:
    """Whether an attention kernel runs on a device, and why."""
    if not KERNELS[name].optional:
        return Status("passed", "part of PyTorch")
    if KERNELS[name].emulated and device.type == "cpu":
        return Status("passed", "emulated")
    return kernels_of(device).status(name)


def choose_attention(wanted: str, device: torch.device) -> str:
    """The kernel to use on a device.

    `auto` selects the fastest exact kernel that passes its self-check there, `eight_bit` the fastest of those
    that quantise.

    Raises:
        InvalidRequest: the device lacks what the kernel needs, or the kernel failed its self-check.
    """
    if wanted == "auto":
        return next(name for name in EXACT_KERNELS if _runs(name, device))
    if wanted == "eight_bit":
        wanted = next((name for name in EIGHT_BIT_KERNELS if _runs(name, device)), EIGHT_BIT_KERNELS[-1])
    status = kernel_status(wanted, device)
    if not status.passed:
        others = [name for name in KERNELS if kernel_status(name, device).passed]
        problem = "failed its self-check here" if status.state == "failed" else "is not available"
        raise InvalidRequest(
            f"attention {wanted} {problem}: {status.reason}",
            received=str(device),
            allowed=f"on this device: auto, {', '.join(others)}",
            field="attention",
        )
    return wanted


def _runs(name: str, device: torch.device) -> bool:
    """As `kernel_status`, and a warning if an optional kernel failed its self-check."""
    emulated = KERNELS[name].emulated and device.type == "cpu"
    return emulated or not KERNELS[name].optional or kernels_of(device).runs(name)


def rotary_angles(positions: Tensor, width: int) -> Tensor:
    """Angles [..., width / 2] of float positions [...], in their type (RoPE, arXiv 2104.09864)."""
    exponents = torch.arange(0, width, 2, dtype=positions.dtype, device=positions.device) / width
    return positions.unsqueeze(-1) / ROTARY_BASE**exponents


def grid_angles(grid: tuple[int, int, int], head_width: int) -> Tensor:
    """Angles [L, head width / 2] of every token of a (time, row, column) grid.

    As in the released model, a third of the channel pairs encodes the row, a third the column, and the
    remaining pairs the time.
    """
    side = 2 * (head_width // 6)
    axes = [
        rotary_angles(torch.arange(length, dtype=torch.float64), width)
        for length, width in zip(grid, (head_width - 2 * side, side, side), strict=True)
    ]
    time, rows, columns = grid
    return torch.cat(
        [
            axes[0][:, None, None].expand(time, rows, columns, -1),
            axes[1][None, :, None].expand(time, rows, columns, -1),
            axes[2][None, None, :].expand(time, rows, columns, -1),
        ],
        dim=-1,
    ).flatten(0, 2)


@dataclass(frozen=True)
class Rotation:
    """Rotary position embedding: rotates each pair of neighbouring channels of a head.

    Args:
        cosine: float32 [..., tokens, 1, head width]; both channels of a pair hold the same value.
        sine: as `cosine`, negated for the first channel of each pair.
    """

    cosine: Tensor
    sine: Tensor

    @classmethod
    def from_angles(cls, angles: Tensor, device: torch.device | None = None) -> "Rotation":
        """Rotation by angles [tokens, head width / 2] or [B, tokens, head width / 2]."""
        angles = angles.unsqueeze(-2)
        cosine = angles.cos().float().repeat_interleave(2, dim=-1)
        sine = angles.sin().float()
        return cls(cosine.to(device), torch.stack((-sine, sine), dim=-1).flatten(-2).to(device))

    def __call__(self, x: Tensor) -> Tensor:
        """Rotate [B, tokens, heads, head width] in float32; the type of `x` is kept."""
        return rotated(x, self.cosine, self.sine)


def rotated(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate by the tensors of a `Rotation`.

    PyTorch 2.11 cannot compile a call of a `Rotation` that is made inside the graph, only its attributes.
    """
    swapped = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return (x.float() * cosine + swapped.float() * sine).type_as(x)
