"""Read portraits."""

import logging
import warnings
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from talkinghead_lab.errors import MediaError, MediaTooLarge
from talkinghead_lab.media.picture_colors import CODE_POINTS, Warn, code_points, upright_srgb

logger = logging.getLogger(__name__)

PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis"}  # still pictures in HEVC, ISO/IEC 23008-12
HEAD = 1 << 18  # bytes read to recognise a format and its colours, which may follow a profile
# Formats that are recognised but not read, by their first bytes.
UNREAD_FORMATS = {
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"8BPS": "Photoshop",
    b"%PDF": "PDF",
    b"v/1\x01": "OpenEXR",
}
MIN_SIDE = 16
MAX_PIXELS = 80_000_000  # 240 MB decoded
MAX_ASPECT_RATIO = 8  # about twice that of the widest released frame; little of a wider image would be left


def read_portrait(
    path: str | Path,
    background: str = "white",
    max_pixels: int = MAX_PIXELS,
    warn: Warn = logger.warning,
) -> Image.Image:
    """Read an image upright, as 8-bit sRGB.

    Applies EXIF rotation and colour profiles and scales 16 bits to 8. Of an animation, reads the first frame.

    Args:
        path: the image, of any name.
        background: what is seen behind transparent pixels; a colour that Pillow's ImageColor knows.
        max_pixels: of the image.
        warn: called with what the user should know about the image.

    Raises:
        MediaError: not an image, damaged, or an unusable size or shape.
    """
    path = Path(path)
    try:
        with _opened(path) as picture:
            check_size(*picture.size, path, max_pixels)
            return upright_srgb(picture, background, warn)
    except MediaError:
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(path, str(error), max_pixels) from error
    except Exception as error:  # Pillow's decoders raise almost anything for a damaged file
        reason = "unknown format" if isinstance(error, UnidentifiedImageError) else error
        raise _unread(path, str(reason), "Open it in an image viewer and save it as PNG.") from error


def is_picture(path: str | Path) -> bool:
    """Whether a file contains a still or animated image, whatever its name."""
    try:
        with _opened(Path(path)):
            return True
    except (MediaError, Image.DecompressionBombError):
        return True  # recognised; read_portrait says why it is refused
    except Exception:  # as in read_portrait
        return False


def _opened(path: Path) -> Image.Image:
    """Open an image of a known format.

    Raises:
        MediaError: it is of a format that is recognised but not read.
    """
    with path.open("rb") as file:
        start = file.read(HEAD)
    unread = next((name for first, name in UNREAD_FORMATS.items() if start.startswith(first)), None)
    if unread:
        raise _unread(path, f"{unread} is not supported", "Save it as PNG or JPEG.")
    if not _is_heic(start):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # check_size says why not
            picture = Image.open(path, formats=PICTURE_FORMATS)
        if points := code_points(start, picture.format):
            picture.info[CODE_POINTS] = points
            if picture.format == "PNG":  # cICP precedes all other chunks: third edition, 4.3
                picture.info.pop("icc_profile", None)
        return picture
    try:
        from pillow_heif import HeifImageFile
    except ImportError:
        remedy = "Run `pip install 'talkinghead_lab[heic]'`, or save it as JPEG."
        raise _unread(path, "HEIC needs the extra `heic`", remedy) from None
    heic: Image.Image = HeifImageFile(path)  # type: ignore[no-untyped-call]
    return heic


def _is_heic(start: bytes) -> bool:
    """Whether a file type box (ISO/IEC 14496-12, 4.3) lists a brand of HEVC pictures."""
    if start[4:8] != b"ftyp":
        return False
    brands = start[8 : min(int.from_bytes(start[:4], "big"), HEAD)]
    return any(brands[at : at + 4] in HEIC_BRANDS for at in range(0, len(brands), 4))


def check_size(width: int, height: int, path: Path, max_pixels: int = MAX_PIXELS) -> None:
    """Refuse unusable sizes and shapes.

    Raises:
        MediaTooLarge: too many pixels.
        MediaError: too small, or too narrow.
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
    if width * height > max_pixels:
        raise _too_large(path, f"{width}x{height}", max_pixels)


def _unread(path: Path, reason: str, remedy: str) -> MediaError:
    return MediaError(
        f"the image cannot be read ({reason})",
        received=str(path),
        allowed=f"{', '.join(PICTURE_FORMATS)}, HEIC, or a video to dub",
        remedy=remedy,
    )


def _too_large(path: Path, found: str, max_pixels: int) -> MediaTooLarge:
    return MediaTooLarge(
        "the image is too large",
        received=f"{path}, {found}",
        allowed=f"up to {max_pixels / 1e6:g} million pixels",
        remedy="Scale it down; frames have at most one million pixels.",
    )
