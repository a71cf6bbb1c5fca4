"""Attention kernels and their selection, and rotary position embedding."""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from talkinghead_lab.errors import InvalidRequest
from talkinghead_lab.models.kernels.quantized_attention import attention_flash3_fp8, attention_triton

ROTARY_BASE = 10_000.0
FLASH_PACKAGE = "fa3_fwd_interface"


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
    if query_bound is not None and kernel == "flash3_fp8":
        return attention_flash3_fp8(query, key, value, query_bound)
    return KERNELS[used_kernel(kernel, query.dtype)].attend(query, key, value)


def used_kernel(kernel: str, dtype: torch.dtype) -> str:
    """The kernel that runs: FlashAttention 3 takes bf16 only; for other types `sdpa` replaces it."""
    return "sdpa" if kernel == "flash3" and dtype != torch.bfloat16 else kernel


def _sdpa(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """PyTorch's own choice: cuDNN's kernel on a Hopper GPU."""
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)


@torch.library.custom_op("talkinghead_lab::attend_to_text_and_image", mutates_args=())
def text_image_attention(
    query: Tensor, text: Sequence[Tensor], image: Sequence[Tensor], distinct_tokens: Tensor
) -> Tensor:
    """Attention to text plus attention to image in one kernel; see `triton_text_image_attention`."""
    from talkinghead_lab.models.kernels.triton_text_image_attention import attend

    return attend(query, text, image, distinct_tokens)


@text_image_attention.register_fake
def _(query: Tensor, text: Sequence[Tensor], image: Sequence[Tensor], distinct_tokens: Tensor) -> Tensor:
    return query.new_empty(query.shape)


@torch.library.custom_op("talkinghead_lab::flash3", mutates_args=())
def _flash3(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    from fa3_fwd_interface import flash_attn_func

    return flash_attn_func(query, key, value)


@_flash3.register_fake
def _(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return query.new_empty(query.shape)


def _is_hopper(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9


def _has_flash3(device: torch.device) -> bool:
    return _is_hopper(device) and importlib.util.find_spec(FLASH_PACKAGE) is not None


def runs_triton(device: torch.device) -> bool:
    """Whether the Triton kernels of this package run on a device."""
    return _is_hopper(device) and importlib.util.find_spec("triton") is not None


def _or_emulated_on_cpu(runs_on: Callable[[torch.device], bool]) -> Callable[[torch.device], bool]:
    return lambda device: device.type == "cpu" or runs_on(device)


@dataclass(frozen=True)
class AttentionKernel:
    """An attention function, the devices it runs on, and its requirement in words, for error messages."""

    attend: Callable[[Tensor, Tensor, Tensor], Tensor]
    runs_on: Callable[[torch.device], bool]
    requirement: str


FLASH3_REQUIREMENT = "a Hopper GPU and the package fa3-fwd (extra `hopper`)"
# Exact kernels come fastest first, as measured on a GPU that runs both.
KERNELS: dict[str, AttentionKernel] = {
    "flash3": AttentionKernel(_flash3, _has_flash3, FLASH3_REQUIREMENT),
    "sdpa": AttentionKernel(_sdpa, lambda device: True, "nothing"),
    "flash3_fp8": AttentionKernel(attention_flash3_fp8, _or_emulated_on_cpu(_has_flash3), FLASH3_REQUIREMENT),
    "triton": AttentionKernel(attention_triton, _or_emulated_on_cpu(runs_triton), "a Hopper GPU and Triton"),
}
EXACT_KERNELS = ("flash3", "sdpa")


def choose_attention(wanted: str, device: torch.device) -> str:
    """The kernel to use on a device; `auto` selects the fastest exact one that runs there.

    Raises:
        InvalidRequest: the device cannot run the kernel.
    """
    available = [name for name in KERNELS if KERNELS[name].runs_on(device)]
    if wanted == "auto":
        return next(name for name in EXACT_KERNELS if name in available)
    if wanted not in available:
        raise InvalidRequest(
            f"attention {wanted} needs {KERNELS[wanted].requirement}",
            received=str(device),
            allowed=f"on this device: auto, {', '.join(available)}",
        )
    return wanted


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
        swapped = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
        return (x.float() * self.cosine + swapped.float() * self.sine).type_as(x)
