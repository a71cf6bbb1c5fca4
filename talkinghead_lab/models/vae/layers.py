"""The layers of the video autoencoder: they look only backwards in time and take a video in pieces.

What a layer has to remember of the frames before a piece is kept in a `CausalState`, a plain dictionary that
the caller owns; nothing is stored on the modules. Every layer is called with a piece [B, channels, f, h, w]
and that dictionary, so that a network is a list of layers run in order. Submodule names are those of the
tensors of `Wan2.1_VAE.pth`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

# What each layer remembers of the frames before the current piece, each [B, channels, 1, h, w], oldest first.
Past = tuple[Tensor, ...]
CausalState = dict[nn.Module, Past]
LEAST_SQUARES = 1e-24  # of a position's channels


def memory_of(layer: nn.Module, state: CausalState) -> CausalState:
    """The part of a state that belongs to a layer and its submodules."""
    return {module: state[module] for module in layer.modules() if module in state}


def same_memory(before: CausalState, after: CausalState) -> bool:
    """Whether two states of one layer are equal to the bit."""
    return before.keys() == after.keys() and all(
        torch.equal(*frames) for module in after for frames in zip(before[module], after[module], strict=True)
    )


def last_frames(x: Tensor, count: int) -> Past:
    """The last frames of a piece. Copies, because a view would keep the whole piece alive."""
    frames = x[:, :, -count:].split(1, dim=2)
    return tuple(f if f.nbytes == f.untyped_storage().nbytes() else f.clone() for f in frames)


class CausalConv3d(nn.Conv3d):
    """A convolution that sees no later frames; before the first frame lie zeros.

    It is computed frame by frame, as a 2D convolution over the stacked channels of the frames that one sees:
    the same sums, faster on a GPU and ten times as fast on a CPU.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: tuple[int, int, int]) -> None:
        time, height, width = kernel_size
        super().__init__(in_channels, out_channels, kernel_size, padding=(0, height // 2, width // 2))
        self.frames_remembered = time - 1

    def forward(self, x: Tensor, state: CausalState) -> Tensor:  # type: ignore[override]
        past: Past = ()
        if self.frames_remembered:
            past = state.get(self) or self.nothing_before(x)
            state[self] = (*past, *last_frames(x, self.frames_remembered))[-self.frames_remembered :]
        frames = [*past, *x.split(1, dim=2)]
        # Channels last in memory, here and so in all that follows: a convolution then lays nothing out anew.
        weight = rearrange(self.weight, "o c t h w -> o h w (t c)").permute(0, 3, 1, 2)
        pictures = [rearrange(frame, "b c 1 h w -> b h w c") for frame in frames]
        outputs = []
        for last in range(self.frames_remembered, len(frames)):
            seen = _joined(pictures[last - self.frames_remembered : last + 1], dim=-1).permute(0, 3, 1, 2)
            outputs.append(F.conv2d(seen, weight, self.bias, padding=self.padding[1:]).unsqueeze(2))
        return _joined(outputs, dim=2)

    def nothing_before(self, x: Tensor) -> Past:
        """The memory of this layer before any frame."""
        return (torch.zeros_like(x[:, :, :1]),) * self.frames_remembered


def _joined(parts: Sequence[Tensor], dim: int) -> Tensor:
    """`torch.cat` that does not copy where nothing is to be joined."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=dim)


class RMSNorm(nn.Module):
    """Scales the channels of a position to a root mean square of one, times a learned gain, in float32."""

    def __init__(self, dim: int, spatial_dims: int = 3) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim, *[1] * spatial_dims))

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        # What is added under the root only bounds it, and its gradient, where all channels are zero.
        normed = F.rms_norm(x.movedim(1, -1), (channels,), self.gamma.flatten(), LEAST_SQUARES / channels)
        return normed.movedim(-1, 1)


class ResidualBlock(nn.Module):
    """Two normalised causal convolutions beside a shortcut."""

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
        layers = self.residual
        y = layers["2"](F.silu(layers["0"](x)), state)
        y = layers["6"](F.silu(layers["3"](y)), state)
        return y + (x if self.shortcut is None else self.shortcut(x, state))


class AttentionBlock(nn.Module):
    """Self-attention with one head among the positions of each frame."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = RMSNorm(dim, spatial_dims=2)
        self.to_qkv = nn.Conv2d(dim, dim * 3, 1)
        self.proj = nn.Conv2d(dim, dim, 1)
        nn.init.zeros_(self.proj.weight)

    def forward(self, x: Tensor, state: CausalState) -> Tensor:
        batch, _, _, height, _ = x.shape
        qkv = self.to_qkv(self.norm(rearrange(x, "b c t h w -> (b t) c h w")))
        query, key, value = rearrange(qkv, "n (three c) h w -> three n 1 (h w) c", three=3).unbind(0)
        y = F.scaled_dot_product_attention(query, key, value)
        y = self.proj(rearrange(y, "n 1 (h w) c -> n c h w", h=height))
        return x + rearrange(y, "(b t) c h w -> b c t h w", b=batch)


class Downsample(nn.Module):
    """Halves the picture, and where `temporal` the frames after the very first."""

    def __init__(self, dim: int, temporal: bool) -> None:
        super().__init__()
        self.resample = nn.ModuleDict({"1": nn.Conv2d(dim, dim, 3, stride=2)})
        self.time_conv = nn.Conv3d(dim, dim, (3, 1, 1), stride=(2, 1, 1)) if temporal else None

    def forward(self, x: Tensor, state: CausalState) -> Tensor:
        batch = x.shape[0]
        x = F.pad(_pictures(x), (0, 1, 0, 1))
        x = rearrange(self.resample["1"](x), "(b t) c h w -> b c t h w", b=batch)
        return x if self.time_conv is None else self._halve_time(self.time_conv, x, state)

    def _halve_time(self, time_conv: nn.Conv3d, x: Tensor, state: CausalState) -> Tensor:
        previous = state.get(self)
        state[self] = last_frames(x, 1)
        if previous is not None:
            return time_conv(torch.cat([*previous, x], dim=2))
        # The very first frame stays as it is.
        first = x[:, :, :1]
        return first if x.shape[2] == 1 else torch.cat([first, time_conv(x)], dim=2)


def _pictures(x: Tensor) -> Tensor:
    """Frames [B, C, f, h, w] as [(B f), C, h, w] with channels last, as convolutions leave them.

    Copied, because a single frame's strides do not tell, and PyTorch would go on with channels first.
    """
    return rearrange(x, "b c t h w -> (b t) c h w").clone(memory_format=torch.channels_last)


class Upsample(nn.Module):
    """Doubles the picture and halves its channels; where `temporal` doubles the frames after the first."""

    def __init__(self, dim: int, temporal: bool) -> None:
        super().__init__()
        self.resample = nn.ModuleDict({"1": nn.Conv2d(dim, dim // 2, 3, padding=1)})
        self.time_conv = CausalConv3d(dim, dim * 2, (3, 1, 1)) if temporal else None

    def forward(self, x: Tensor, state: CausalState) -> Tensor:
        if self.time_conv is not None:
            x = _double_time(self.time_conv, x, state)
        batch = x.shape[0]
        x = F.interpolate(_pictures(x), scale_factor=2, mode="nearest-exact")
        return rearrange(self.resample["1"](x), "(b t) c h w -> b c t h w", b=batch)


def _double_time(time_conv: CausalConv3d, x: Tensor, state: CausalState) -> Tensor:
    """Two frames for each, but one for the very first, which the convolution never sees."""
    passed = x[:, :, :0]
    if time_conv not in state:
        state[time_conv] = time_conv.nothing_before(x)
        passed, x = x[:, :, :1], x[:, :, 1:]
        if x.shape[2] == 0:
            return passed
    doubled = rearrange(time_conv(x, state), "b (two c) t h w -> b c (t two) h w", two=2)
    return torch.cat([passed, doubled], dim=2) if passed.shape[2] else doubled


class Head(nn.ModuleDict):
    """The normalised convolution that ends the encoder and the decoder."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__({"0": RMSNorm(in_dim), "2": CausalConv3d(in_dim, out_dim, (3, 3, 3))})

    def forward(self, x: Tensor, state: CausalState) -> Tensor:
        return self["2"](F.silu(self["0"](x)), state)
