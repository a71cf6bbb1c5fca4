"""Convert linear RGB of other primaries to those of sRGB and BT.709."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

# CIE 1931 (x, y) of red, green, blue and white, ITU-T H.273 table 2.
SRGB = ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060), (0.3127, 0.3290))
BT2020 = ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), (0.3127, 0.3290))
DCI_P3 = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), (0.314, 0.351))
DISPLAY_P3 = (*DCI_P3[:3], (0.3127, 0.3290))
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def to_srgb_primaries(chromaticities: ArrayLike) -> NDArray[np.float32]:
    """The 3x3 matrix from linear RGB of these primaries to linear sRGB; white stays white.

    Args:
        chromaticities: (x, y) of red, green, blue and white.

    Raises:
        ValueError: no colour space has these primaries.
    """
    try:
        matrix = np.linalg.solve(_to_d65(SRGB), _to_d65(chromaticities))
    except np.linalg.LinAlgError:
        matrix = np.full((3, 3), np.nan)
    if not np.isfinite(matrix).all():
        raise ValueError(f"impossible primaries: {np.asarray(chromaticities).tolist()}")
    return matrix.astype(np.float32)


def _to_d65(chromaticities: ArrayLike) -> NDArray[np.float64]:
    """The matrix from linear RGB to CIE XYZ, adapted to D65 by the Bradford transform."""
    xy = np.asarray(chromaticities, np.float64).reshape(4, 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        red, green, blue, white = np.column_stack([xy, 1 - xy.sum(1)]) / xy[:, 1:]
    primaries = np.column_stack([red, green, blue])
    to_xyz = primaries * np.linalg.solve(primaries, white)
    x, y = SRGB[3]
    cones = BRADFORD @ np.array([x / y, 1, (1 - x - y) / y]) / (BRADFORD @ white)
    adapted: NDArray[np.float64] = np.linalg.solve(BRADFORD, cones[:, None] * BRADFORD) @ to_xyz
    return adapted
