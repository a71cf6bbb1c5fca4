"""Match the colours of a video to a reference image."""

from collections.abc import Sequence

import torch
from torch import Tensor

# sRGB primaries at white point D65, 2° observer (IEC 61966-2-1), to the precision of scikit-image.
XYZ_FROM_RGB = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)
WHITE_XYZ = (0.95047, 1.0, 1.08883)
FRAMES_AT_ONCE = 4  # Lab copies of a complete chunk would take several times its memory


def match_colors(video: Tensor, reference: Tensor, strength: float = 1.0) -> Tensor:
    """Give every frame the colour statistics of a reference (Reinhard et al. 2001, in CIE Lab).

    Shifts and scales each frame's L, a and b to the reference's mean and standard deviation, then blends the
    result with the frame. Processes a few frames at a time to limit memory.

    Args:
        video: [3, F, H, W] in [-1, 1].
        reference: [3, H, W] in [-1, 1].
        strength: weight of the result, from 0 (unchanged video) to 1.

    Returns:
        [3, F, H, W] in [-1, 1], with the video's type and device.
    """
    if strength == 0:
        return video
    target = lab_from_rgb(_unit_range(reference.to(video.device))[:, None])
    mean, deviation = _statistics(target)
    matched = torch.empty_like(video)
    for start in range(0, video.shape[1], FRAMES_AT_ONCE):
        frames = _unit_range(video[:, start : start + FRAMES_AT_ONCE])
        lab = lab_from_rgb(frames)
        own_mean, own_deviation = _statistics(lab)
        # A constant channel has nothing to scale and gets the reference's mean.
        gain = torch.where(own_deviation > 0, deviation / own_deviation, 0.0)
        corrected = _rgb_from_lab((lab - own_mean) * gain + mean)
        matched[:, start : start + FRAMES_AT_ONCE] = torch.lerp(frames, corrected, strength) * 2 - 1
    return matched


def _unit_range(pixels: Tensor) -> Tensor:
    return ((pixels.float() + 1) / 2).clamp(0, 1)


def _statistics(lab: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of each frame, [3, F, 1, 1]."""
    deviation, mean = torch.std_mean(lab, dim=(-2, -1), correction=0, keepdim=True)
    return mean, deviation


def lab_from_rgb(rgb: Tensor) -> Tensor:
    """Convert sRGB in [0, 1] to CIE Lab, channels first (CIE 15; sRGB curve of IEC 61966-2-1)."""
    linear = torch.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    xyz = torch.einsum("xc,c...->x...", _constant(XYZ_FROM_RGB, rgb), linear)
    ratio = xyz / _constant(WHITE_XYZ, rgb).view(3, *[1] * (rgb.ndim - 1))
    x, y, z = torch.where(ratio > 0.008856, ratio ** (1 / 3), 7.787 * ratio + 16 / 116)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def _rgb_from_lab(lab: Tensor) -> Tensor:
    """Convert CIE Lab to sRGB, clipped to [0, 1]."""
    lightness, green_red, blue_yellow = lab
    y = (lightness + 16) / 116
    root = torch.stack([green_red / 500 + y, y, (y - blue_yellow / 200).clamp(min=0)])
    ratio = torch.where(root > 0.2068966, root**3, (root - 16 / 116) / 7.787)
    xyz = ratio * _constant(WHITE_XYZ, lab).view(3, *[1] * (lab.ndim - 1))
    rgb_from_xyz = torch.linalg.inv(torch.tensor(XYZ_FROM_RGB, dtype=torch.float64))
    linear = torch.einsum("cx,x...->c...", rgb_from_xyz.to(xyz, non_blocking=True), xyz)
    curved = 1.055 * linear.clamp(min=0.0031308) ** (1 / 2.4) - 0.055
    return torch.where(linear > 0.0031308, curved, linear * 12.92).clamp(0, 1)


def _constant(values: Sequence[float] | Sequence[Sequence[float]], like: Tensor) -> Tensor:
    """Values in the type and on the device of a tensor; without waiting for the work that it has to do."""
    return torch.tensor(values, dtype=like.dtype).to(like.device, non_blocking=True)
