"""Pictures: reading a portrait, the frame size it gets, cropping, speaker masks and colour matching."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional

from talkinghead_lab.errors import InvalidRequest, MediaError
from talkinghead_lab.latent_grid import PIXELS_PER_LATENT

PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
SHORTEST_SIDE = 16
LARGEST_PIXELS = 80_000_000  # decodes into 240 MB
WIDEST_SHAPE = 8  # twice the widest released frame; a wider picture would be cropped to a sliver

# (width, height) of the released model's frames: multiples of 64, about 627² and 960² pixels.
RELEASED_SIZES = {
    "infinitetalk-480": (
        *((1216, 320), (1024, 384), (896, 448), (768, 512), (704, 576), (640, 640), (576, 704), (512, 768)),
        *((448, 832), (448, 896), (384, 960), (384, 1088), (320, 1152), (320, 1216), (320, 1280)),
    ),
    "infinitetalk-720": (
        *(
            (2048, 448),
            (1792, 512),
            (1600, 576),
            (1408, 640),
            (1280, 704),
            (1216, 768),
            (1088, 832),
            (1024, 896),
        ),
        *(
            (960, 960),
            (896, 1024),
            (832, 1088),
            (768, 1152),
            (768, 1216),
            (704, 1280),
            (704, 1344),
            (640, 1408),
        ),
        *((640, 1472), (576, 1536), (576, 1664), (512, 1856), (512, 1920)),
    ),
}
HALF_MARGIN = 0.05  # of a default speaker mask: what is left free on each side of its half of the picture

# sRGB primaries at white point D65, 2° observer (IEC 61966-2-1), with the digits that scikit-image uses.
XYZ_FROM_RGB = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)
WHITE_XYZ = (0.95047, 1.0, 1.08883)
FRAMES_AT_ONCE = 4  # Lab copies of a whole chunk would take several times its own memory


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


def nearest_size(width: int, height: int, resolution: str) -> tuple[int, int]:
    """The released frame size (width, height) whose shape is nearest to a picture's.

    Shapes are compared as height / width, the released ones rounded to two digits as in the released tables.
    """
    return min(RELEASED_SIZES[resolution], key=lambda size: abs(round(size[1] / size[0], 2) - height / width))


def fit(image: Image.Image, width: int, height: int) -> Tensor:
    """Scale a picture to cover a frame and cut its centre out: uint8 [3, H, W]."""
    covering = _covering_size(image.size, (width, height))
    scaled = torch.from_numpy(np.array(image.resize(covering, Image.Resampling.BILINEAR)))
    top, left = _crop_start(covering[1], height), _crop_start(covering[0], width)
    return scaled[top : top + height, left : left + width].permute(2, 0, 1).contiguous()


def _covering_size(source: tuple[int, int], frame: tuple[int, int]) -> tuple[int, int]:
    """(width, height) of the smallest copy of the source that covers the frame."""
    scale = max(frame[1] / source[1], frame[0] / source[0])
    return math.ceil(scale * source[0]), math.ceil(scale * source[1])


def _crop_start(length: int, kept: int) -> int:
    """Where a centred crop begins; halves go to the even neighbour, as in torchvision's `center_crop`."""
    return round((length - kept) / 2)


def speaker_masks(
    source_size: tuple[int, int],
    boxes: Sequence[tuple[int, int, int, int]] | None,
    frame_size: tuple[int, int],
) -> Tensor:
    """Where each of two speakers is, after the frame was cut from its source.

    Args:
        source_size: (width, height) of the source picture.
        boxes: [left, top, right, bottom] in source pixels, for the first and the second speaker; none: each
            gets half of the picture, less a margin of 5 % a side.
        frame_size: (W, H) of the frame.

    Returns:
        float32 [3, h, w] of zeros and ones: first speaker, second speaker, background.

    Raises:
        InvalidRequest: nothing of a speaker's box is left in the frame.
    """
    covering = _covering_size(source_size, frame_size)
    speakers = []
    for number, (left, top, right, bottom) in enumerate(boxes or _halves(*source_size), start=1):
        columns = _kept_span(left, right, source_size[0], covering[0], frame_size[0])
        rows = _kept_span(top, bottom, source_size[1], covering[1], frame_size[1])
        mask = torch.outer(rows, columns)
        if not mask.any():
            raise InvalidRequest(
                f"nothing of the box of speaker {number} is left in the frame",
                received=[left, top, right, bottom],
                allowed="[left, top, right, bottom] in pixels of the picture, {}x{}".format(*source_size),
                remedy="The frame is the centre of the scaled picture, {}x{}.".format(*frame_size),
            )
        speakers.append(mask)
    background = 1 - torch.stack(speakers).amax(dim=0)
    return torch.stack([*speakers, background])


def _halves(width: int, height: int) -> list[tuple[int, int, int, int]]:
    half, (top, bottom) = width // 2, (int(height * HALF_MARGIN), int(height * (1 - HALF_MARGIN)))
    left, right = int(half * HALF_MARGIN), int(half * (1 - HALF_MARGIN))
    second_left, second_right = int(half * HALF_MARGIN + half), int(half * (1 - HALF_MARGIN) + half)
    return [(left, top, right, bottom), (second_left, top, second_right, bottom)]


def _kept_span(start: int, stop: int, source: int, covering: int, frame: int) -> Tensor:
    """One axis of a box, [frame / 8] of zeros and ones: scaled, cropped and brought to latents.

    A box is the product of its axes and nearest neighbour keeps it one: no mask of the source's size is made.
    """
    span = torch.zeros(1, 1, source)
    span[..., max(0, start) : stop] = 1
    begin = _crop_start(covering, frame)
    cropped = functional.interpolate(span, size=covering, mode="nearest")[..., begin : begin + frame]
    return functional.interpolate(cropped, size=frame // PIXELS_PER_LATENT, mode="nearest")[0, 0]


def to_unit_range(pixels: Tensor) -> Tensor:
    """uint8 pixels to float32 in [−1, 1]."""
    return pixels.float() / 127.5 - 1


def match_colors(video: Tensor, reference: Tensor, strength: float = 1.0) -> Tensor:
    """Give every frame the colour statistics of a reference (Reinhard et al. 2001, in CIE Lab).

    Each frame's L, a and b get the reference's mean and standard deviation; the result is blended with the
    frame. Works in slices of frames, so that memory beyond the result stays small.

    Args:
        video: [3, F, H, W] in [-1, 1].
        reference: [3, H, W] in [-1, 1].
        strength: 0 leaves the video as it is, 1 matches fully.

    Returns:
        [3, F, H, W] in [-1, 1], of the video's type and on its device.
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
        # A channel without variation has nothing to stretch and takes the reference's mean.
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
    """sRGB in [0, 1] to CIE Lab, channels first (CIE 15; sRGB curve of IEC 61966-2-1)."""
    linear = torch.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    xyz = torch.einsum("xc,c...->x...", rgb.new_tensor(XYZ_FROM_RGB), linear)
    ratio = xyz / rgb.new_tensor(WHITE_XYZ).view(3, *[1] * (rgb.ndim - 1))
    x, y, z = torch.where(ratio > 0.008856, ratio ** (1 / 3), 7.787 * ratio + 16 / 116)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def _rgb_from_lab(lab: Tensor) -> Tensor:
    """The way back; colours outside sRGB are clipped to [0, 1]."""
    lightness, green_red, blue_yellow = lab
    y = (lightness + 16) / 116
    root = torch.stack([green_red / 500 + y, y, (y - blue_yellow / 200).clamp(min=0)])
    ratio = torch.where(root > 0.2068966, root**3, (root - 16 / 116) / 7.787)
    xyz = ratio * lab.new_tensor(WHITE_XYZ).view(3, *[1] * (lab.ndim - 1))
    rgb_from_xyz = torch.linalg.inv(torch.tensor(XYZ_FROM_RGB, dtype=torch.float64)).to(xyz)
    linear = torch.einsum("cx,x...->c...", rgb_from_xyz, xyz)
    curved = 1.055 * linear.clamp(min=0.0031308) ** (1 / 2.4) - 0.055
    return torch.where(linear > 0.0031308, curved, linear * 12.92).clamp(0, 1)
