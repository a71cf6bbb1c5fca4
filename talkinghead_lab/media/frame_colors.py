"""Convert decoded video frames to 8-bit sRGB: matrix, range, primaries, transfer and transparency.

Code points are those of ITU-T H.273, which libav uses. BT.709 video counts as sRGB, as in players.
"""

from typing import Any, cast

import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray
from PIL import Image

from talkinghead_lab.media import gamut

# Matrix coefficients.
MATRIX_709, UNSPECIFIED, RESERVED, MATRIX_601, MATRIX_2020 = 1, 2, 3, 6, 9
CONVERTIBLE = {MATRIX_709, 4, 5, MATRIX_601, 7, MATRIX_2020}
# What the primaries tell about a missing matrix.
MATRIX_OF_PRIMARIES = {1: MATRIX_709, 5: MATRIX_601, 6: MATRIX_601, 9: MATRIX_2020}
HD_WIDTH, HD_HEIGHT = 1280, 720  # from here on, players take a missing matrix for BT.709's

WIDE_PRIMARIES = {9: gamut.BT2020, 11: gamut.DCI_P3, 12: gamut.DISPLAY_P3}
PQ, HLG = 16, 18  # transfer characteristics
SDR_GAMMA = 2.4  # ITU-R BT.1886

REFERENCE_WHITE = 203.0  # cd/m² of SDR white in HDR, ITU-R BT.2408
PEAK = 1000.0  # cd/m²: nominal peak of HLG; most PQ videos are mastered for it
KNEE = 0.7  # of SDR white; brighter light is compressed, darker is kept
BAND = 256  # rows converted at a time: a whole 8K frame would need gigabytes


def to_rgb(frame: VideoFrame, background: str = "white") -> NDArray[np.uint8]:
    """The frame as it is shown on an SDR screen.

    HDR is tone-mapped, wide gamuts are clipped to sRGB, and transparency is composited over the background.

    Args:
        frame: any pixel format.
        background: colour that Pillow's ImageColor knows.

    Returns:
        [H, W, 3].

    Raises:
        ValueError: the matrix of the frame is not supported.
    """
    frame.colorspace = _matrix(frame)
    if is_srgb(frame.color_primaries, frame.color_trc):
        colors = _pixels(frame, "rgb24")
    else:
        codes = _pixels(frame, "rgb48le")
        colors = to_srgb(codes, frame.color_primaries, frame.color_trc)
    if not _has_alpha(frame):
        return colors
    alpha = Image.fromarray(np.ascontiguousarray(_pixels(frame, "rgba")[..., 3]))
    behind = Image.new("RGB", alpha.size, background)
    return np.array(Image.composite(Image.fromarray(colors), behind, alpha))


def _pixels(frame: VideoFrame, layout: str) -> NDArray[Any]:
    """[H, W, C]; with a thread for each core, libav would start and end them for every frame."""
    return cast(NDArray[Any], frame.to_ndarray(format=layout, threads=1))


def _matrix(frame: VideoFrame) -> int:
    """The matrix of the frame; if missing, the one of its primaries or of its size."""
    given = frame.colorspace
    if frame.format.is_rgb or frame.format.has_palette or given in CONVERTIBLE:
        return given
    if given not in (0, UNSPECIFIED, RESERVED):
        raise ValueError(f"its colours have matrix {given} of ITU-T H.273, such as ICtCp or Dolby Vision 5")
    if frame.color_trc in (PQ, HLG):
        return MATRIX_2020
    high_definition = frame.width >= HD_WIDTH or frame.height >= HD_HEIGHT
    return MATRIX_OF_PRIMARIES.get(frame.color_primaries, MATRIX_709 if high_definition else MATRIX_601)


def _has_alpha(frame: VideoFrame) -> bool:
    return frame.format.has_palette or any(component.is_alpha for component in frame.format.components)


def is_srgb(primaries: int, transfer: int) -> bool:
    """Whether RGB values are shown as they are: neither HDR nor a wide gamut."""
    return primaries not in WIDE_PRIMARIES and transfer not in (PQ, HLG)


def to_srgb(codes: NDArray[np.uint16], primaries: int, transfer: int) -> NDArray[np.uint8]:
    """16-bit RGB in HDR or a wide gamut as 8-bit sRGB; uint16 and uint8 [H, W, 3]."""
    light_of, hdr = _light(transfer), transfer in (PQ, HLG)
    matrix = gamut.to_srgb_primaries(WIDE_PRIMARIES.get(primaries, gamut.BT2020))
    colors = np.empty(codes.shape, np.uint8)
    for top in range(0, len(codes), BAND):
        light = np.maximum(light_of[codes[top : top + BAND]] @ matrix.T, 0)
        if hdr:
            brightest = light.max(-1, keepdims=True)
            light *= _compressed(brightest) / np.maximum(brightest, 1e-6)
        colors[top : top + BAND] = np.round(255 * np.minimum(light, 1) ** (1 / SDR_GAMMA))
    return colors


def _light(transfer: int) -> NDArray[np.float32]:
    """Light of each 16-bit value, in units of SDR white."""
    signal = np.linspace(0, 1, 1 << 16)
    if transfer == PQ:
        light = _pq(signal) / REFERENCE_WHITE
    elif transfer == HLG:
        light = _hlg(signal) / REFERENCE_WHITE
    else:
        light = signal**SDR_GAMMA
    return light.astype(np.float32)


def _pq(signal: NDArray[np.float64]) -> NDArray[np.float64]:
    """Light in cd/m²: the EOTF of ITU-R BT.2100, table 4."""
    power = signal ** (32 / 2523)
    ratio = np.maximum(power - 3424 / 4096, 0) / (2413 / 128 - 2392 / 128 * power)
    light: NDArray[np.float64] = 10000 * ratio ** (16384 / 2610)
    return light


def _hlg(signal: NDArray[np.float64]) -> NDArray[np.float64]:
    """Light in cd/m²: ITU-R BT.2100, table 5, with the system gamma of 1.2 applied to each channel.

    As in SDR and in zimg: applied to luminance, saturated colours converted from SDR would come back paler.
    """
    scene = np.where(
        signal <= 0.5, signal**2 / 3, (np.exp((signal - 0.55991073) / 0.17883277) + 0.28466892) / 12
    )
    light: NDArray[np.float64] = PEAK * scene**1.2
    return light


def _compressed(light: NDArray[np.float32]) -> NDArray[np.float32]:
    """Linear to the knee, then a hyperbola that ends at (PEAK, 1), equal in slope at the knee (Möbius)."""
    peak = PEAK / REFERENCE_WHITE
    scale = KNEE**2 - 2 * KNEE + peak
    a = -(KNEE**2) * (peak - 1) / scale
    b = (KNEE**2 - 2 * KNEE * peak + peak) / (peak - 1)
    bright = np.maximum(light, KNEE)
    curve = (b * b + 2 * b * KNEE + KNEE**2) / (b - a) * (bright + a) / (bright + b)
    return np.where(light <= KNEE, light, curve)
