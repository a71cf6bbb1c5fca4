"""Read portraits."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from talkinghead_lab.errors import MediaError

PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
MIN_SIDE = 16
MAX_PIXELS = 80_000_000  # 240 MB decoded
MAX_ASPECT_RATIO = 8  # about twice that of the widest released frame; little of a wider image would be left


def read_portrait(path: str | Path, background: str = "white") -> Image.Image:
    """Read an image upright, as 8-bit RGB.

    Applies EXIF rotation, puts transparency on white and scales 16 bits to 8. Of an animation, reads the
    first frame.

    Raises:
        MediaError: not an image, damaged, or an unusable size or shape.
    """
    path = Path(path)
    try:
        with Image.open(path, formats=PICTURE_FORMATS) as picture:
            check_size(*picture.size, path)
            return _flat_rgb(ImageOps.exif_transpose(picture), background)
    except MediaError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(path, str(error)) from error
    except Exception as error:  # Pillow's decoders raise almost anything for a damaged file
        reason = "unknown format" if isinstance(error, UnidentifiedImageError) else error
        raise MediaError(
            f"the image cannot be read ({reason})",
            received=str(path),
            allowed=f"{', '.join(PICTURE_FORMATS)}, or a video to dub",
            remedy="Open it in an image viewer and save it as PNG.",
        ) from error


def is_picture(path: str | Path) -> bool:
    """Whether a file contains a still or animated image, whatever its name."""
    try:
        with Image.open(path, formats=PICTURE_FORMATS):
            return True
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return True
    except Exception:  # as in read_portrait
        return False


def check_size(width: int, height: int, path: Path) -> None:
    """Refuse unusable sizes and shapes.

    Raises:
        MediaError: too small, too large, or too narrow.
    """
    received = f"{path}, {width}x{height}"
    if min(width, height) < MIN_SIDE:
        raise MediaError(
            "the image is too small",
            received=received,
            allowed=f"at least {MIN_SIDE} pixels per side",
            remedy="Choose an image in which the face is visible.",
        )
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise MediaError(
            "the image is too narrow",
            received=received,
            allowed=f"an aspect ratio of at most {MAX_ASPECT_RATIO} to 1",
            remedy="Crop it around the person.",
        )
    if width * height > MAX_PIXELS:
        raise _too_large(path, f"{width}x{height}")


def _too_large(path: Path, found: str) -> MediaError:
    return MediaError(
        "the image is too large",
        received=f"{path}, {found}",
        allowed=f"up to {MAX_PIXELS // 1_000_000} million pixels",
        remedy="Scale it down; frames have at most one million pixels.",
    )


def _flat_rgb(picture: Image.Image, background: str) -> Image.Image:
    if picture.mode == "F":
        raise ValueError("floating-point samples have no known range")
    if picture.mode.startswith("I"):
        samples = np.asarray(picture).astype(np.float64) / 257  # 65535 becomes 255
        return Image.fromarray(samples.round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, background), picture).convert("RGB")
    return picture.convert("RGB")
