"""Attention by the kernel that is chosen, rotary positions, and attention to a speaker's region."""

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
    query: Tensor, key: Tensor, value: Tensor, kind: str = "sdpa", query_limit: Tensor | None = None
) -> Tensor:
    """Softmax attention over [B, tokens, heads, head width] tensors; the result has the query's shape.

    FlashAttention 3 is for bf16; PyTorch's own choice serves the other types. A `query_limit` [heads] that no
    channel of the query exceeds saves rounding it to fp8 a pass.
    """
    if query_limit is not None and kind == "flash3_fp8":
        return attention_flash3_fp8(query, key, value, query_limit)
    if kind == "flash3" and query.dtype != torch.bfloat16:
        kind = "sdpa"
    return KERNELS[kind].attend(query, key, value)


def _sdpa(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """PyTorch's own choice: cuDNN's kernel on a Hopper GPU."""
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)


@torch.library.custom_op("talkinghead_lab::attend_to_text_and_image", mutates_args=())
def attend_to_text_and_image(
    query: Tensor, text: Sequence[Tensor], image: Sequence[Tensor], distinct: Tensor
) -> Tensor:
    """The sum of two attentions in one kernel; see `short_attention`."""
    from talkinghead_lab.models.kernels.triton_text_image_attention import attend

    return attend(query, text, image, distinct)


@attend_to_text_and_image.register_fake
def _(query: Tensor, text: Sequence[Tensor], image: Sequence[Tensor], distinct: Tensor) -> Tensor:
    return query.new_empty(query.shape)


@torch.library.custom_op("talkinghead_lab::flash3", mutates_args=())
def _flash3(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    from fa3_fwd_interface import flash_attn_func

    return flash_attn_func(query, key, value)


@_flash3.register_fake
def _(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return query.new_empty(query.shape)


def _on_hopper(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9


def _has_flash3(device: torch.device) -> bool:
    return _on_hopper(device) and importlib.util.find_spec(FLASH_PACKAGE) is not None


def runs_triton(device: torch.device) -> bool:
    """Whether the Triton kernels of this package run on a device."""
    return _on_hopper(device) and importlib.util.find_spec("triton") is not None


def _or_emulated(runs_on: Callable[[torch.device], bool]) -> Callable[[torch.device], bool]:
    return lambda device: device.type == "cpu" or runs_on(device)


@dataclass(frozen=True)
class Kernel:
    """One way to attend: the function, where it runs, and what it needs, for a message."""

    attend: Callable[[Tensor, Tensor, Tensor], Tensor]
    runs_on: Callable[[torch.device], bool]
    needs: str


NEEDS_FLASH3 = "a Hopper GPU and the package fa3-fwd (extra `hopper`)"
# Exact kernels stand in the order of their speed on a GPU that has them.
KERNELS: dict[str, Kernel] = {
    "flash3": Kernel(_flash3, _has_flash3, NEEDS_FLASH3),
    "sdpa": Kernel(_sdpa, lambda device: True, "nothing"),
    "flash3_fp8": Kernel(attention_flash3_fp8, _or_emulated(_has_flash3), NEEDS_FLASH3),
    "triton": Kernel(attention_triton, _or_emulated(runs_triton), "a Hopper GPU and Triton"),
}
EXACT_KINDS = ("flash3", "sdpa")


def choose_attention(wanted: str, device: torch.device) -> str:
    """The kernel to use on a device; `auto` is the fastest exact one that runs there.

    Raises:
        InvalidRequest: the kernel asked for does not run there.
    """
    runs = [kind for kind in KERNELS if KERNELS[kind].runs_on(device)]
    if wanted == "auto":
        return next(kind for kind in EXACT_KINDS if kind in runs)
    if wanted not in runs:
        raise InvalidRequest(
            f"attention {wanted} needs {KERNELS[wanted].needs}",
            received=str(device),
            allowed=f"on this device: auto, {', '.join(runs)}",
        )
    return wanted


def rotary_angles(positions: Tensor, width: int) -> Tensor:
    """Angles [..., width / 2] of float positions [...], in their type (RoPE, arXiv 2104.09864)."""
    exponents = torch.arange(0, width, 2, dtype=positions.dtype, device=positions.device) / width
    return positions.unsqueeze(-1) / ROTARY_BASE**exponents


def grid_angles(grid: tuple[int, int, int], head_width: int) -> Tensor:
    """Angles [L, head width / 2] of every token of a (time, row, column) grid.

    A third of the pairs turns with the row, a third with the column, and what remains with time, as the
    released model was trained.
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


def attention_to_regions(query: Tensor, key: Tensor, regions: Tensor) -> Tensor:
    """How much every token attends to each region of the first latent frame, averaged over heads.

    One head at a time: the whole map of a released-size chunk would take gigabytes. The last of an odd number
    of heads is not counted, as in the reference, which averages two halves.

    Args:
        query: [B, L, heads, head width], rotated.
        key: [B, S, heads, head width], rotated keys of the first latent frame.
        regions: [R, S], 1 inside a region and 0 outside.

    Returns:
        [B, R, L] in the query's type.
    """
    regions = (regions / regions.sum(dim=1, keepdim=True)).to(query.dtype)
    heads = max(1, query.shape[2] // 2 * 2)
    total = query.new_zeros(query.shape[0], regions.shape[0], query.shape[1])
    for head in range(heads):
        scores = query[:, :, head] @ key[:, :, head].transpose(-1, -2) / query.shape[-1] ** 0.5
        total += regions @ scores.softmax(dim=-1).transpose(-1, -2)
    return total / heads
