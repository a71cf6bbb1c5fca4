"""The Inception network of FID (Szegedy et al. 2016), as TensorFlow released it in 2015.

Layers and names are those of torch-fidelity's `weights-inception-2015-12-05-6726825d.pth`. The release
differs from the paper: average pooling ignores the padding, and the last block takes the maximum instead.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

PICTURE_SIZE = 299
CHANNELS = 2048
Kernel = int | tuple[int, int]
Step = list[tuple[str, int, Kernel]]  # convolutions side by side: name, output channels, kernel


class Inception(nn.Module):
    """Embeds pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Convolution(3, 32, 3, 2, padded=False)
        self.Conv2d_2a_3x3 = _Convolution(32, 32, 3, padded=False)
        self.Conv2d_2b_3x3 = _Convolution(32, 64, 3)
        self.Conv2d_3b_1x1 = _Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = _Convolution(80, 192, 3, padded=False)
        for name, channels, pooled in (("b", 192, 32), ("c", 256, 64), ("d", 288, 64)):
            self.add_module(f"Mixed_5{name}", _Mixed(channels, _fine(pooled)))
        self.Mixed_6a = _Halving(
            288, [[("branch3x3", 384, 3)]], _chain("branch3x3dbl", (64, 1), (96, 3), (96, 3))
        )
        for name, inner in (("b", 128), ("c", 160), ("d", 160), ("e", 192)):
            self.add_module(f"Mixed_6{name}", _Mixed(768, _middle(inner)))
        self.Mixed_7a = _Halving(
            768,
            _chain("branch3x3", (192, 1), (320, 3)),
            _chain("branch7x7x3", (192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3)),
        )
        self.Mixed_7b = _Mixed(1280, _coarse())
        self.Mixed_7c = _Mixed(2048, _coarse(), maximum=True)
        self.fc = nn.Linear(CHANNELS, 1008)  # of the classifier; not used, but in the released file

    def forward(self, frames: Tensor) -> Tensor:
        """Frames, uint8 [N, 3, H, W] → features [N, 2048]."""
        x = (resized(frames.float()) - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = functional.max_pool2d(x, 3, 2)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = functional.max_pool2d(x, 3, 2)
        for name, block in self.named_children():
            if name.startswith("Mixed"):
                x = block(x)
        return x.mean((2, 3))


def resized(pixels: Tensor) -> Tensor:
    """Bilinear as in TensorFlow 1, without half-pixel centres: [N, C, H, W] → [N, C, 299, 299]."""
    for axis in (2, 3):
        size = pixels.shape[axis]
        at = torch.arange(PICTURE_SIZE, device=pixels.device) * torch.tensor(size / PICTURE_SIZE)
        low = at.long()
        share = (at - low).view((-1, 1) if axis == 2 else (1, -1))
        first = pixels.index_select(axis, low)
        pixels = first + (pixels.index_select(axis, (low + 1).clamp_max(size - 1)) - first) * share
    return pixels


class _Convolution(nn.Module):
    def __init__(
        self, entering: int, leaving: int, kernel: Kernel, stride: int = 1, padded: bool = True
    ) -> None:
        super().__init__()
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (sides[0] // 2, sides[1] // 2) if padded else (0, 0)
        self.conv = nn.Conv2d(entering, leaving, sides, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(leaving, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(x)))


class _Mixed(nn.Module):
    """Branches of convolutions side by side; the last one begins with pooling."""

    def __init__(self, channels: int, branches: list[list[Step]], maximum: bool = False) -> None:
        super().__init__()
        self._maximum = maximum
        self._branches = [[[name for name, *_ in step] for step in branch] for branch in branches]
        for branch in branches:
            entering = channels
            for step in branch:
                for name, leaving, kernel in step:
                    self.add_module(name, _Convolution(entering, leaving, kernel))
                entering = sum(leaving for _, leaving, _ in step)

    def forward(self, x: Tensor) -> Tensor:
        pooled = (
            functional.max_pool2d(x, 3, 1, 1)
            if self._maximum
            else functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        )
        outputs = []
        for branch in self._branches:
            y = pooled if branch is self._branches[-1] else x
            for step in branch:
                y = torch.cat([self.get_submodule(name)(y) for name in step], 1)
            outputs.append(y)
        return torch.cat(outputs, 1)


class _Halving(nn.Module):
    """Chains of convolutions, whose last ones halve the picture, beside pooling that does."""

    def __init__(self, channels: int, *chains: list[Step]) -> None:
        super().__init__()
        self._chains = [[name for ((name, *_),) in chain] for chain in chains]
        for chain in chains:
            entering = channels
            for ((name, leaving, kernel),) in chain:
                last = name == chain[-1][0][0]
                self.add_module(name, _Convolution(entering, leaving, kernel, 2 if last else 1, not last))
                entering = leaving

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for chain in self._chains:
            y = x
            for name in chain:
                y = self.get_submodule(name)(y)
            outputs.append(y)
        return torch.cat([*outputs, functional.max_pool2d(x, 3, 2)], 1)


def _chain(name: str, *convolutions: tuple[int, Kernel]) -> list[Step]:
    return [[(f"{name}_{i}", *convolution)] for i, convolution in enumerate(convolutions, 1)]


def _fine(pooled: int) -> list[list[Step]]:
    return [
        [[("branch1x1", 64, 1)]],
        _chain("branch5x5", (48, 1), (64, 5)),
        _chain("branch3x3dbl", (64, 1), (96, 3), (96, 3)),
        [[("branch_pool", pooled, 1)]],
    ]


def _middle(inner: int) -> list[list[Step]]:
    wide, high = (1, 7), (7, 1)
    return [
        [[("branch1x1", 192, 1)]],
        _chain("branch7x7", (inner, 1), (inner, wide), (192, high)),
        _chain("branch7x7dbl", (inner, 1), (inner, high), (inner, wide), (inner, high), (192, wide)),
        [[("branch_pool", 192, 1)]],
    ]


def _coarse() -> list[list[Step]]:
    return [
        [[("branch1x1", 320, 1)]],
        [*_chain("branch3x3", (384, 1)), _fork("branch3x3_2")],
        [*_chain("branch3x3dbl", (448, 1), (384, 3)), _fork("branch3x3dbl_3")],
        [[("branch_pool", 192, 1)]],
    ]


def _fork(name: str) -> Step:
    return [(f"{name}a", 384, (1, 3)), (f"{name}b", 384, (3, 1))]
