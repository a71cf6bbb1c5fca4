"""The layers of the video autoencoder. They are causal in time and process a video piece by piece.

A layer needs some frames before a piece. They are kept in a `CausalState`, a dictionary that the caller owns;
the modules hold no state. Every layer is called with a piece [B, channels, f, h, w] and that dictionary, so a
network is a list of layers run in order. Submodules have the names of the tensors in `Wan2.1_VAE.pth`.
"""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

# What a layer keeps of the frames before the current piece, each [B, channels, 1, h, w]: usually its last
# input frames, oldest first.
PastFrames = tuple[Tensor, ...]
CausalState = dict[nn.Module, PastFrames]
LANES = 16  # float32 values of a 512-bit vector register
MIN_SQUARED_NORM = 1e-24  # of the channels at a position


def state_of(layer: nn.Module, state: CausalState) -> CausalState:
    """The part of a state that belongs to a layer and its submodules."""
    return {module: state[module] for module in layer.modules() if module in state}


def equal_states(before: CausalState, after: CausalState) -> bool:
    """Whether two states of one layer are identical in every bit."""
    return before.keys() == after.keys() and all(
        torch.equal(*frames) for module in after for frames in zip(before[module], after[module], strict=True)
    )


def last_frames(x: Tensor, count: int) -> PastFrames:
    """The last frames of a piece, copied: a view would keep the memory of the full piece allocated."""
    frames = x[:, :, -count:].split(1, dim=2)
    return tuple(f if f.nbytes == f.untyped_storage().nbytes() else f.clone() for f in frames)


class CausalConv3d(nn.Conv3d):
    """A convolution causal in time, with zeros before the first frame.

    It is computed frame by frame, as a 2D convolution over the stacked channels of the frames in its window:
    the same sums, faster on a GPU and ten times as fast on a CPU. On a CPU, output channels that do not fill
    vector registers are stacked instead: each frame is convolved once with the weights of all times, and what
    it adds to later frames is kept, not the frame.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: tuple[int, int, int]) -> None:
        time, height, width = kernel_size
        super().__init__(in_channels, out_channels, kernel_size, padding=(0, height // 2, width // 2))
        self.past_frames = time - 1
        self.stacked_fill_registers = -(-time * out_channels // LANES) < time * -(-out_channels // LANES)

    def forward(self, x: Tensor, state: CausalState) -> Tensor:  # type: ignore[override]
        """[B, C, f, h, w] → [B, out channels, f, h, w]."""
        if self._stacks_outputs(x):
            return self._sum_of_stacked_outputs(x, state)
        past: PastFrames = ()
        if self.past_frames:
            past = state.get(self) or self.zero_frames(x)
            state[self] = (*past, *last_frames(x, self.past_frames))[-self.past_frames :]
        # Channels last in memory, here and in the outputs; otherwise every convolution converts the layout.
        frames = [_channels_last(frame) for frame in (*past, *x.split(1, dim=2))]
        outputs = []
        for last in range(self.past_frames, len(frames)):
            window = _cat(frames[last - self.past_frames : last + 1], dim=-1)
            outputs.append(_channels_first(self.of_window(window, self.bias)))
        return _cat(outputs, dim=2)

    def of_window(self, window: Tensor, bias: Tensor | None) -> Tensor:
        """The output for the last frame of a window [B, h, w, frames · C]: [B, h, w, out channels]."""
        weight = self.weight.permute(0, 3, 4, 2, 1).flatten(3).permute(0, 3, 1, 2)
        y = F.conv2d(window.permute(0, 3, 1, 2), weight, bias, padding=self.padding[1:])
        return y.permute(0, 2, 3, 1)

    def zero_frames(self, x: Tensor) -> PastFrames:
        """The past of this layer before the first frame."""
        if self._stacks_outputs(x):
            return (x.new_zeros(len(x), self.past_frames * self.out_channels, 1, *x.shape[3:]),)
        return (torch.zeros_like(x[:, :, :1]),) * self.past_frames

    def _stacks_outputs(self, x: Tensor) -> bool:
        return self.stacked_fill_registers and x.device.type == "cpu"

    def _sum_of_stacked_outputs(self, x: Tensor, state: CausalState) -> Tensor:
        """The state is one tensor: sums for the frame after the next, and for the next frame."""
        weight = self.weight.permute(2, 0, 3, 4, 1).flatten(0, 1).permute(0, 3, 1, 2)
        bias = None if self.bias is None else F.pad(self.bias, (self.past_frames * self.out_channels, 0))
        (past,) = state.get(self) or self.zero_frames(x)
        outputs = []
        for frame in x.unbind(2):
            sums = F.conv2d(frame, weight, bias, padding=self.padding[1:]).unsqueeze(2)
            sums[:, self.out_channels :] += past
            past = sums[:, : -self.out_channels]
            outputs.append(sums[:, -self.out_channels :])
        # Copied: a view would keep the memory of all sums allocated.
        state[self] = (past.clone(),)
        return _cat(outputs, dim=2)


def _cat(parts: Sequence[Tensor], dim: int) -> Tensor:
    """`torch.cat` without the copy of a single tensor."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=dim)


def _channels_last(frame: Tensor) -> Tensor:
    """[B, C, 1, h, w] → [B, h, w, C]."""
    return frame.squeeze(2).permute(0, 2, 3, 1)


def _channels_first(frame: Tensor) -> Tensor:
    """[B, h, w, C] → [B, C, 1, h, w]."""
    return frame.permute(0, 3, 1, 2).unsqueeze(2)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the channels of each position, in float32, with a learned gain."""

    def __init__(self, dim: int, spatial_dims: int = 3) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim, *[1] * spatial_dims))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, ...] → [B, C, ...]."""
        channels = x.shape[1]
        if x.device.type == "cpu" and x.dtype == torch.float32:
            # There, PyTorch's function is not one kernel but six passes over the input, and these are three.
            norm = torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp(min=MIN_SQUARED_NORM**0.5)
            return x * (channels**0.5 / norm) * self.gamma
        normed = F.rms_norm(x.movedim(1, -1), (channels,), self.gamma.flatten(), self.eps)
        return normed.movedim(-1, 1)

    @property
    def eps(self) -> float:
        """Added to the mean square; it only bounds the norm and its gradient where all channels are zero."""
        return MIN_SQUARED_NORM / self.gamma.shape[0]


def _pair(layers: nn.ModuleDict, norm: str, convolution: str) -> tuple[RMSNorm, CausalConv3d]:
    return cast(RMSNorm, layers[norm]), cast(CausalConv3d, layers[convolution])


def _convolve_activated(
    norm: RMSNorm,
    convolution: CausalConv3d,
    frame: Tensor,
    state: CausalState,
    offset: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """The convolution of SiLU(norm(frame + offset)), whose input Triton makes in one pass.

    Args:
        norm: before the activation.
        convolution: of three frames.
        frame: [B, h, w, C].
        state: of the layers.
        offset: [C]; None: 0.
        bias: of the convolution, [out channels]; None: it is left to the next pass.

    Returns:
        [B, h, w, out channels].
    """
    from talkinghead_lab.models.kernels.triton_frames import activated_window

    past = state.get(convolution) or convolution.zero_frames(_channels_first(frame))
    older, newer = (_channels_last(each).contiguous() for each in past)
    gamma = norm.gamma.flatten()
    activated, window = activated_window(frame.contiguous(), offset, gamma, norm.eps, older, newer)
    state[convolution] = (past[1], _channels_first(activated))
    return convolution.of_window(window, bias)


class ResidualBlock(nn.Module):
    """Two normalised causal convolutions with a shortcut."""

    has_triton_kernels = False

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.residual = nn.ModuleDict(
            {
                "0": RMSNorm(in_dim),
                "2": CausalConv3d(in_dim, out_dim, (3, 3, 3)),
                "3": RMSNorm(out_dim),
                "6": CausalConv3d(out_dim, out_dim, (3, 3, 3)),
            }
        )
        self.shortcut = CausalConv3d(in_dim, out_dim, (1, 1, 1)) if in_dim != out_dim else None

    def forward(self, x: Tensor, state: CausalState) -> Tensor:
        """[B, in_dim, f, h, w] → [B, out_dim, f, h, w]."""
        layers = self.residual
        if self.has_triton_kernels:
            return _cat([self._fused(frame, state) for frame in x.split(1, dim=2)], dim=2)
        y = layers["2"](F.silu(layers["0"](x)), state)
        y = layers["6"](F.silu(layers["3"](y)), state)
        return y + (x if self.shortcut is None else self.shortcut(x, state))

    def _fused(self, frame: Tensor, state: CausalState) -> Tensor:
        from talkinghead_lab.models.kernels.triton_frames import add_

        (norm, first), (second_norm, second) = _pair(self.residual, "0", "2"), _pair(self.residual, "3", "6")
        assert second.bias is not None
        shortcut = _channels_last(frame if self.shortcut is None else self.shortcut(frame, state))
        y = _convolve_activated(norm, first, _channels_last(frame), state)
        y = _convolve_activated(second_norm, second, y, state, first.bias)
        return _channels_first(add_(y, second.bias, shortcut.contiguous()))


class AttentionBlock(nn.Module):
    """Single-head self-attention among the positions of each frame."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = RMSNorm(dim, spatial_dims=2)
        self.to_qkv = nn.Conv2d(dim, dim * 3, 1)
        self.proj = nn.Conv2d(dim, dim, 1)
        nn.init.zeros_(self.proj.weight)

    def forward(self, x: Tensor, state: CausalState) -> Tensor:
        """[B, dim, f, h, w] → [B, dim, f, h, w]."""
        batch, _, _, height, _ = x.shape
        qkv = self.to_qkv(self.norm(rearrange(x, "b c t h w -> (b t) c h w")))
        query, key, value = rearrange(qkv, "n (three c) h w -> three n 1 (h w) c", three=3).unbind(0)
        y = F.scaled_dot_product_attention(query, key, value)
        y = self.proj(rearrange(y, "n 1 (h w) c -> n c h w", h=height))
        return x + rearrange(y, "(b t) c h w -> b c t h w", b=batch)


class Downsample(nn.Module):
    """Halves height and width and, if `temporal`, the number of frames after the very first."""

    def __init__(self, dim: int, temporal: bool) -> None:
        super().__init__()
        self.resample = nn.ModuleDict({"1": nn.Conv2d(dim, dim, 3, stride=2)})
        self.time_conv = nn.Conv3d(dim, dim, (3, 1, 1), stride=(2, 1, 1)) if temporal else None

    def forward(self, x: Tensor, state: CausalState) -> Tensor:
        """[B, dim, f, h, w] → [B, dim, f or f / 2, h / 2, w / 2]."""
        batch = x.shape[0]
        x = F.pad(_frames_as_batch(x), (0, 1, 0, 1))
        x = rearrange(self.resample["1"](x), "(b t) c h w -> b c t h w", b=batch)
        return x if self.time_conv is None else self._halve_time(self.time_conv, x, state)

    def _halve_time(self, time_conv: nn.Conv3d, x: Tensor, state: CausalState) -> Tensor:
        previous = state.get(self)
        state[self] = last_frames(x, 1)
        if previous is not None:
            return time_conv(torch.cat([*previous, x], dim=2))
        # The very first frame is passed through.
        first = x[:, :, :1]
        return first if x.shape[2] == 1 else torch.cat([first, time_conv(x)], dim=2)


def _frames_as_batch(x: Tensor) -> Tensor:
    """[B, C, f, h, w] → [(B f), C, h, w] with channels last in memory.

    Copied, because PyTorch cannot infer the layout from the strides of a single frame and would use channels
    first.
    """
    return rearrange(x, "b c t h w -> (b t) c h w").clone(memory_format=torch.channels_last)


class Upsample(nn.Module):
    """Doubles height and width, halves the channels; if `temporal`, doubles the frames after the first."""

    def __init__(self, dim: int, temporal: bool) -> None:
        super().__init__()
        self.resample = nn.ModuleDict({"1": nn.Conv2d(dim, dim // 2, 3, padding=1)})
        self.time_conv = CausalConv3d(dim, dim * 2, (3, 1, 1)) if temporal else None

    def forward(self, x: Tensor, state: CausalState) -> Tensor:
        """[B, dim, f, h, w] → [B, dim / 2, f or 2f, 2h, 2w]."""
        if self.time_conv is not None:
            x = _double_time(self.time_conv, x, state)
        doubled = _double_size(_frames_as_batch(x))
        return rearrange(self.resample["1"](doubled), "(b t) c h w -> b c t h w", b=len(x))


def _double_size(images: Tensor) -> Tensor:
    """Nearest neighbours, [B, C, h, w] → [B, C, 2h, 2w], with channels last in memory."""
    in_words = images.shape[1] * images.element_size() % 8 == 0
    if images.device.type == "cpu" or torch.is_grad_enabled() or not in_words:
        return F.interpolate(images, scale_factor=2, mode="nearest-exact")
    # On a GPU, that takes six times as long as a copy of eight bytes at a time.
    words = images.permute(0, 2, 3, 1).contiguous().view(torch.int64)
    repeated = words[:, :, None, :, None].expand(-1, -1, 2, -1, 2, -1)
    doubled = rearrange(repeated, "b h two_h w two_w c -> b (h two_h) (w two_w) c")
    return doubled.view(images.dtype).permute(0, 3, 1, 2)


def _double_time(time_conv: CausalConv3d, x: Tensor, state: CausalState) -> Tensor:
    """Two frames for each, except the very first, which bypasses the convolution."""
    first = x[:, :, :0]
    if time_conv not in state:
        state[time_conv] = time_conv.zero_frames(x)
        first, x = x[:, :, :1], x[:, :, 1:]
        if x.shape[2] == 0:
            return first
    doubled = rearrange(time_conv(x, state), "b (two c) t h w -> b c (t two) h w", two=2)
    return torch.cat([first, doubled], dim=2) if first.shape[2] else doubled


class Head(nn.ModuleDict):
    """The final layers of encoder and decoder: norm, activation and convolution."""

    has_triton_kernels = False

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__({"0": RMSNorm(in_dim), "2": CausalConv3d(in_dim, out_dim, (3, 3, 3))})

    def forward(self, x: Tensor, state: CausalState) -> Tensor:
        """[B, in_dim, f, h, w] → [B, out_dim, f, h, w]."""
        norm, convolution = _pair(self, "0", "2")
        if not self.has_triton_kernels:
            return convolution(F.silu(norm(x)), state)
        frames = map(_channels_last, x.split(1, dim=2))
        made = [_convolve_activated(norm, convolution, each, state, bias=convolution.bias) for each in frames]
        return _cat([_channels_first(frame) for frame in made], dim=2)
