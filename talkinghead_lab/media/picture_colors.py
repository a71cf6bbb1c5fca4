"""Convert pictures to 8-bit sRGB: ICC profiles, PNG gamma, 16 bits and transparency."""

import io
import re
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps

from talkinghead_lab.media import frame_colors, gamut

Warn = Callable[[str], None]

# Modes of pictures that a profile of a colour space applies to.
MODES_OF_SPACE = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}
# Where pillow-heif puts the code points of ITU-T H.273. Pillow does not read those of PNG and AVIF.
CODE_POINTS = "nclx_profile"
STORED_CODE_POINTS = {"PNG": rb"\0\0\0\x04cICP(.)(.)", "AVIF": rb"colrnclx\0(.)\0(.)"}
# Pillow scales these samples to 8 bits, but not the transparent colour of the file.
TRANSPARENT_SCALE = {"L;2": 85, "L;4": 17, "RGB;16B": 1 / 256}
BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0  # TIFF 6.0
PNG_GAMMA = 1 / 2.2  # what PNG files in sRGB state
GAMMA_TOLERANCE = 0.02
CHROMATICITY_TOLERANCE = 0.005


def upright_srgb(picture: Image.Image, background: str, warn: Warn) -> Image.Image:
    """The picture as 8-bit sRGB without transparency, turned and mirrored as its metadata says.

    A profile that is damaged or does not fit the picture is ignored with a warning, as in browsers.

    Args:
        picture: any mode of Pillow, not loaded yet.
        background: what is seen behind transparent pixels; a colour that Pillow's ImageColor knows.
        warn: called with what the user should know about the colours.

    Raises:
        ValueError: floating-point samples.
    """
    _scale_transparent_color(picture)
    black, white = _ends(picture)
    upright = ImageOps.exif_transpose(picture)
    colors, alpha = _colors_and_alpha(upright, black, white)
    colors = _to_srgb(colors, upright.info, warn)
    if alpha is None:
        return colors
    return Image.composite(colors, Image.new("RGB", colors.size, background), alpha)


def code_points(start: bytes, file_format: str | None) -> dict[str, int] | None:
    """Primaries and transfer by the code points in the first bytes of a file, if there are any."""
    found = re.search(STORED_CODE_POINTS.get(file_format or "", b"$^"), start, re.DOTALL)
    if not found:
        return None
    return {"color_primaries": found[1][0], "transfer_characteristics": found[2][0]}


def _scale_transparent_color(picture: Image.Image) -> None:
    tile = getattr(picture, "tile", None)
    scale = TRANSPARENT_SCALE.get(str(tile[0].args)) if tile else None
    given = picture.info.get("transparency")
    if scale is not None and given is not None:
        scaled = [int(scale * value) for value in np.atleast_1d(given)]
        picture.info["transparency"] = tuple(scaled) if len(scaled) > 1 else scaled[0]


def _ends(picture: Image.Image) -> tuple[int, int]:
    """Black and white of integer samples; Pillow neither scales nor inverts those of TIFF."""
    tags = getattr(picture, "tag_v2", {})
    white = (1 << tags.get(BITS_PER_SAMPLE, (16,))[0]) - 1
    return (white, 0) if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO else (0, white)


def _colors_and_alpha(picture: Image.Image, black: int, white: int) -> tuple[Image.Image, Image.Image | None]:
    """Opaque 8-bit colours of a mode that profiles apply to, and their transparency."""
    if picture.mode == "F":
        raise ValueError("floating-point samples have no known range")
    alpha = picture.convert("RGBA").getchannel("A") if picture.has_transparency_data else None
    if picture.mode.startswith("I"):
        samples = np.asarray(picture)
        if max(black, white) > np.iinfo(np.int32).max:
            samples = samples.view(np.uint32)
        levels = (samples.astype(np.float64) - black) * (255 / (white - black))
        return Image.fromarray(levels.round().clip(0, 255).astype(np.uint8)), alpha
    if picture.mode in ("1", "L", "LA"):
        return picture.convert("L"), alpha
    if picture.mode in ("CMYK", "LAB"):
        return picture, alpha
    return picture.convert("RGBA" if alpha else "RGB").convert("RGB"), alpha


def _to_srgb(colors: Image.Image, info: Mapping[Any, Any], warn: Warn) -> Image.Image:
    if profile := info.get("icc_profile"):
        try:
            return _by_profile(colors, ImageCms.ImageCmsProfile(io.BytesIO(profile)))
        except (ImageCms.PyCMSError, OSError, ValueError) as error:
            warn(f"The colour profile of the picture is ignored ({error}); its colours may be off.")
    if colors.mode == "LAB":
        return _converted(colors, ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")))
    colors = colors.convert("RGB")
    if nclx := info.get(CODE_POINTS):
        return _by_code_points(colors, nclx["color_primaries"], nclx["transfer_characteristics"])
    if "gamma" in info and "srgb" not in info:  # PNG
        return _by_gamma(colors, info["gamma"], info.get("chromaticity"), warn)
    return colors


def _by_profile(colors: Image.Image, profile: ImageCms.ImageCmsProfile) -> Image.Image:
    space = profile.profile.xcolor_space.strip()
    if (colors.mode, space) == ("L", "RGB"):
        colors = colors.convert("RGB")
    if colors.mode != MODES_OF_SPACE.get(space):
        raise ValueError(f"it is for {space}, the picture is {colors.mode}")
    if colors.mode == "RGB":
        probe = _probe()
        shift = np.asarray(_converted(probe, profile), np.int16) - np.asarray(probe)
        if np.abs(shift).max() <= 1:  # sRGB: a conversion would only round
            return colors
    return _converted(colors, profile)


def _converted(colors: Image.Image, profile: ImageCms.ImageCmsProfile) -> Image.Image:
    converted = ImageCms.profileToProfile(
        colors,
        profile,
        ImageCms.createProfile("sRGB"),
        renderingIntent=ImageCms.Intent.PERCEPTUAL,  # as in browsers
        outputMode="RGB",
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    return cast(Image.Image, converted)  # None only in place


def _probe() -> Image.Image:
    """Colours that tell two RGB spaces apart."""
    levels = np.linspace(0, 255, 9).astype(np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1)
    return Image.fromarray(np.ascontiguousarray(grid.reshape(27, 27, 3)))


def _by_code_points(colors: Image.Image, primaries: int, transfer: int) -> Image.Image:
    if frame_colors.is_srgb(primaries, transfer):
        return colors
    return Image.fromarray(frame_colors.to_srgb(np.asarray(colors, np.uint16) * 257, primaries, transfer))


def _by_gamma(
    colors: Image.Image, gamma: float, chromaticity: tuple[float, ...] | None, warn: Warn
) -> Image.Image:
    """Convert by the chunks gAMA and cHRM, PNG specification (third edition), 11.3.2."""
    white_first = np.reshape(chromaticity or (), (-1, 2))
    primaries = np.roll(white_first, -1, axis=0) if len(white_first) == 4 else np.array(gamut.SRGB)
    usual_gamma = abs(gamma - PNG_GAMMA) <= GAMMA_TOLERANCE
    if usual_gamma and np.abs(primaries - gamut.SRGB).max() <= CHROMATICITY_TOLERANCE:
        return colors
    try:
        matrix = gamut.to_srgb_primaries(primaries)
    except ValueError as error:
        warn(f"The primaries of the picture are ignored ({error}); its colours may be off.")
        matrix = np.eye(3, dtype=np.float32)
    levels = np.linspace(0, 1, 256, dtype=np.float32)
    light_of = _srgb_light(levels) if usual_gamma or gamma <= 0 else levels ** (1 / gamma)
    out = [_srgb_values(light_of[rows] @ matrix.T) for rows in np.array_split(np.asarray(colors), 16)]
    return Image.fromarray(np.concatenate(out))


def _srgb_light(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """IEC 61966-2-1: light of values in [0, 1]."""
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4).astype(np.float32)


def _srgb_values(light: NDArray[np.float32]) -> NDArray[np.uint8]:
    """IEC 61966-2-1: 8-bit values of light, clipped to [0, 1]."""
    light = light.clip(0, 1)
    values = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.round(255 * values).astype(np.uint8)
