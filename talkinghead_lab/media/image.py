"""Pictures: reading a portrait, the frame size it gets, cropping, speaker masks and colour matching."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from talkinghead_lab.errors import MediaError

PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
SHORTEST_SIDE = 16
LARGEST_PIXELS = 80_000_000  # decodes into 240 MB
WIDEST_SHAPE = 8  # twice the widest released frame; a wider picture would be cropped to a sliver


def read_portrait(path: str | Path) -> Image.Image:
    """Read a picture upright, as 8-bit RGB.

    EXIF rotation is applied, transparency laid on white and 16 bits scaled to 8; an animation gives its first
    frame.

    Raises:
        MediaError: not a picture, damaged, or of a size or shape that no frame can be cut from.
    """
    path = Path(path)
    try:
        with Image.open(path, formats=PICTURE_FORMATS) as picture:
            check_size(*picture.size, path)
            return _flat_rgb(ImageOps.exif_transpose(picture))
    except MediaError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(path, str(error)) from error
    except Exception as error:  # a damaged file makes Pillow's decoders raise nearly anything
        reason = "unknown format" if isinstance(error, UnidentifiedImageError) else error
        raise MediaError(
            f"not a picture that can be read ({reason})",
            received=str(path),
            allowed=f"{', '.join(PICTURE_FORMATS)}, or a video to dub",
            remedy="Open it in a picture viewer and save it as PNG.",
        ) from error


def is_picture(path: str | Path) -> bool:
    """Whether the content of a file is that of a still or animated picture."""
    try:
        with Image.open(path, formats=PICTURE_FORMATS):
            return True
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return True
    except Exception:  # as in read_portrait
        return False


def check_size(width: int, height: int, path: Path) -> None:
    """Refuse sizes and shapes that no frame can be cut from.

    Raises:
        MediaError: too small, too large, or too far from square.
    """
    received = f"{path}, {width}x{height}"
    if min(width, height) < SHORTEST_SIDE:
        raise MediaError(
            "the picture is too small",
            received=received,
            allowed=f"at least {SHORTEST_SIDE} pixels a side",
            remedy="Choose a picture in which the face can be seen.",
        )
    if max(width, height) > WIDEST_SHAPE * min(width, height):
        raise MediaError(
            "the picture is too long and narrow",
            received=received,
            allowed=f"sides of at most {WIDEST_SHAPE} to 1",
            remedy="Crop it around the person.",
        )
    if width * height > LARGEST_PIXELS:
        raise _too_large(path, f"{width}x{height}")


def _too_large(path: Path, found: str) -> MediaError:
    return MediaError(
        "the picture is too large",
        received=f"{path}, {found}",
        allowed=f"up to {LARGEST_PIXELS // 1_000_000} million pixels",
        remedy="Scale it down; frames have at most a million.",
    )


def _flat_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "F":
        raise ValueError("floating-point samples have no known range")
    if picture.mode.startswith("I"):
        samples = np.asarray(picture).astype(np.float64) / 257  # 65535 becomes 255
        return Image.fromarray(samples.round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return picture.convert("RGB")
