"""Triton kernels of the video autoencoder's residual blocks, on frames with the channels last in memory.

Between two convolutions, PyTorch passes several times over a frame: bias, norm, activation, window, shortcut.
Here one or two passes do. Needs Triton.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# Elements that one program of four warps holds.
ELEMENTS = 2048


@triton.jit
def _activated_window(
    frames, biases, gammas, older, newer, outputs, windows, eps, positions,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    channel = tl.arange(0, PADDED)[None, :]
    exists = channel < WIDTH
    inside = (row < positions) & exists
    here, window = row * WIDTH + channel, row * (3 * WIDTH) + channel
    tl.store(windows + window, tl.load(older + here, inside), inside)
    tl.store(windows + window + WIDTH, tl.load(newer + here, inside), inside)
    x = tl.load(frames + here, inside, other=0.0).to(tl.float32)
    if biases is not None:
        x += tl.load(biases + channel, exists, other=0.0).to(tl.float32)
    x *= tl.rsqrt(tl.sum(x * x, 1)[:, None] / WIDTH + eps)
    x *= tl.load(gammas + channel, exists, other=0.0).to(tl.float32)
    x = (x * tl.sigmoid(x)).to(outputs.dtype.element_ty)
    tl.store(outputs + here, x, inside)
    tl.store(windows + window + 2 * WIDTH, x, inside)


def activated_window(
    frame: Tensor, bias: Tensor | None, gamma: Tensor, eps: float, older: Tensor, newer: Tensor
) -> tuple[Tensor, Tensor]:
    """SiLU(RMSNorm(frame + bias)), and the window that the next convolution reads.

    Args:
        frame: [B, H, W, C], contiguous, as all frames here.
        bias: [C], of the convolution that made the frame; None: it was added already.
        gamma: [C], of the norm.
        eps: added to the mean square.
        older, newer: the two activated frames before, [B, H, W, C].

    Returns:
        The activated frame [B, H, W, C], and its channels behind those of the two before, [B, H, W, 3C].
    """
    width = frame.shape[-1]
    activated, window = torch.empty_like(frame), frame.new_empty(*frame.shape[:-1], 3 * width)
    padded = triton.next_power_of_2(width)
    rows = max(1, ELEMENTS // padded)
    positions = frame.numel() // width
    _activated_window[(triton.cdiv(positions, rows),)](
        frame, bias, gamma, older, newer, activated, window, eps, positions,
        WIDTH=width, PADDED=padded, ROWS=rows, num_warps=4,
    )  # fmt: skip
    return activated, window


@triton.jit
def _add(frames, biases, shortcuts, size, WIDTH: tl.constexpr, ELEMENTS: tl.constexpr):
    here = tl.program_id(0).to(tl.int64) * ELEMENTS + tl.arange(0, ELEMENTS)
    inside = here < size
    x = tl.load(frames + here, inside).to(tl.float32) + tl.load(shortcuts + here, inside).to(tl.float32)
    x += tl.load(biases + here % WIDTH, inside).to(tl.float32)
    tl.store(frames + here, x.to(frames.dtype.element_ty), inside)


def add_(frame: Tensor, bias: Tensor, shortcut: Tensor) -> Tensor:
    """Add the bias [C] and the shortcut [B, H, W, C] to a frame [B, H, W, C], in place."""
    _add[(triton.cdiv(frame.numel(), ELEMENTS),)](
        frame, bias, shortcut, frame.numel(), WIDTH=frame.shape[-1], ELEMENTS=ELEMENTS, num_warps=4
    )
    return frame
