"""Signed distance functions and anti-aliased painting on batches of frames.

Distances are in canvas units: the square picture spans −1 … 1 on both axes, y grows downwards. Distances are
negative inside a shape. Formulas follow Inigo Quilez, "2D distance functions". A shape without an exact
distance uses its implicit function divided by the gradient norm, which is exact to first order at the edge.
"""

from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor


def ellipse(x: Tensor, y: Tensor, radius_x: Tensor | float, radius_y: Tensor | float) -> Tensor:
    """Distance to an axis-aligned ellipse at the origin, exact to first order at its edge."""
    u, v = x / radius_x, y / radius_y
    k0 = torch.hypot(u, v)
    k1 = torch.hypot(u / radius_x, v / radius_y)
    return k0 * (k0 - 1) / k1.clamp_min(1e-4)


def circle(x: Tensor, y: Tensor, radius: Tensor | float) -> Tensor:
    """Distance to a circle at the origin."""
    return torch.hypot(x, y) - radius


def superellipse(
    x: Tensor, y: Tensor, radius_x: Tensor | float, radius_y: Tensor | float, power: Tensor | float
) -> Tensor:
    """Distance to |x/rx|^n + |y/ry|^n = 1: rounder than a box, squarer than an ellipse for n > 2."""
    u, v = (x / radius_x).abs().clamp_min(1e-4), (y / radius_y).abs().clamp_min(1e-4)
    u_power, v_power = u**power, v**power
    level = (u_power + v_power) ** (1 / power)
    scale = level / (u_power + v_power)
    gradient = torch.hypot(scale * u_power / u / radius_x, scale * v_power / v / radius_y)
    return (level - 1) / gradient.clamp_min(1e-3)


def box(
    x: Tensor,
    y: Tensor,
    half_width: Tensor | float,
    half_height: Tensor | float,
    radius: Tensor | float = 0.0,
) -> Tensor:
    """Distance to a box at the origin with rounded corners; `radius` is within the half sizes."""
    u, v = x.abs() - (half_width - radius), y.abs() - (half_height - radius)
    outside = torch.hypot(u.clamp_min(0), v.clamp_min(0))
    return outside + torch.maximum(u, v).clamp_max(0) - radius


def segment(
    x: Tensor, y: Tensor, start: tuple[float, float], end: tuple[float, float], radius: float | Tensor
) -> Tensor:
    """Distance to a line segment with round ends."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    along = (((x - start[0]) * dx + (y - start[1]) * dy) / (dx * dx + dy * dy)).clamp(0, 1)
    return torch.hypot(x - start[0] - along * dx, y - start[1] - along * dy) - radius


def convex(x: Tensor, y: Tensor, *corners: tuple[Tensor | float, Tensor | float]) -> Tensor:
    """Distance to a convex polygon inside its edges; corners run clockwise on the screen."""
    sides = []
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        dx, dy = torch.as_tensor(x1 - x0), torch.as_tensor(y1 - y0)
        sides.append(((x - x0) * dy - (y - y0) * dx) / torch.hypot(dx, dy))
    return reduce(torch.maximum, sides)


def smooth_union(a: Tensor, b: Tensor, width: float) -> Tensor:
    """Union of two shapes, blended over `width` (polynomial smooth minimum)."""
    blend = (0.5 + 0.5 * (b - a) / width).clamp(0, 1)
    return torch.lerp(b, a, blend) - width * blend * (1 - blend)


def smoothstep(low: Tensor | float, high: Tensor | float, value: Tensor) -> Tensor:
    """0 below `low`, 1 above `high`, smooth between; reversed if `low` > `high`."""
    t = ((value - low) / (high - low)).clamp(0, 1)
    return t * t * (3 - 2 * t)


def bump(value: Tensor) -> Tensor:
    """(1 − v²)² inside |v| < 1, 0 outside."""
    t = (1 - value * value).clamp_min(0)
    return t * t


@dataclass(frozen=True)
class Canvas:
    """A batch of pictures with pixel coordinates; painting changes `colour` in place.

    Args:
        colour: [N, 3, H, W], sRGB in 0 … 1.
        x: [1, 1, W].
        y: [1, H, 1].
        pixel: the size of a pixel in canvas units.
        extent: rows and columns of the full canvas that this one covers.
    """

    colour: Tensor
    x: Tensor
    y: Tensor
    pixel: float
    extent: tuple[slice, slice] = (slice(None), slice(None))

    @classmethod
    def blank(cls, count: int, size: int, device: torch.device) -> "Canvas":
        """`count` black pictures of size × size pixels."""
        line = (torch.arange(size, device=device) + 0.5) * (2 / size) - 1
        colour = torch.zeros(count, 3, size, size, device=device)
        return cls(colour, line.view(1, 1, -1), line.view(1, -1, 1), 2 / size)

    def window(self, left: float, top: float, right: float, bottom: float) -> "Canvas":
        """The part of a full canvas between the given edges, as a view of its pixels."""
        columns = slice(*(round((edge + 1) / self.pixel) for edge in (left, right)))
        rows = slice(*(round((edge + 1) / self.pixel) for edge in (top, bottom)))
        return Canvas(
            self.colour[:, :, rows, columns],
            self.x[..., columns],
            self.y[:, rows],
            self.pixel,
            (rows, columns),
        )

    def crop(self, full: Tensor) -> Tensor:
        """The part of a full-canvas tensor [..., H, W] that is inside this window."""
        return full[..., self.extent[0], self.extent[1]]

    def inside(self, distance: Tensor) -> Tensor:
        """Coverage 0 … 1 of each pixel by a shape, anti-aliased over one pixel."""
        return (0.5 - distance / self.pixel).clamp(0, 1)

    def paint(self, coverage: Tensor, colour: Tensor) -> None:
        """Blend `colour` ([N, 3, 1, 1] or [N, 3, H, W]) over the picture by `coverage` [N, H, W]."""
        self.colour.lerp_(colour.expand_as(self.colour), coverage.unsqueeze(1).expand_as(self.colour))

    def shade(self, amount: Tensor, tint: Tensor | float) -> None:
        """Multiply the picture by `tint` ([N, 3, 1, 1] or a number), weighted by `amount` [N, H, W]."""
        self.colour.mul_(1 + amount.unsqueeze(1) * (tint - 1))
