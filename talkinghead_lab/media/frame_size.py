"""Choose a frame size for an image and fit the image to it."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from talkinghead_lab.errors import InvalidRequest

Crop = Literal["center", "top", "face", "none"]
Box = tuple[int, int, int, int]
Size = tuple[int, int]

# (width, height) of the released model's frames: multiples of 64 with about 627² and 960² pixels.
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
INEXACT = 1e-6
LARGEST_STRETCH = 1  # pixels of the frame: a whole picture that leaves less empty is scaled to fill it
BLUR = 0.05  # radius of blurred padding, as a share of the frame's shorter side


def nearest_size(width: int, height: int, resolution: str) -> tuple[int, int]:
    """The released frame size (width, height) whose aspect ratio is nearest to an image's.

    Compares height / width; released ratios are rounded to two digits, as in the released tables.
    """
    return min(RELEASED_SIZES[resolution], key=lambda size: abs(round(size[1] / size[0], 2) - height / width))


@dataclass(frozen=True)
class Framing:
    """How pictures of another shape are brought into the frame.

    Args:
        crop: the part that is kept: the centre; the top; around the face; or, with none, the whole picture.
        pad: with `crop` none, what surrounds the picture: edge, blur, or a colour as #rrggbb.
        face: with `crop` face, its centre (x, y) as fractions of the picture's width and height.
    """

    crop: Crop = "center"
    pad: str | None = None
    face: tuple[float, float] | None = None


CENTER = Framing()


@dataclass(frozen=True)
class Placement:
    """Where the frame lies on a picture.

    Args:
        source: (width, height) of the picture.
        scaled: (width, height) of the picture, scaled for the frame.
        frame: (W, H).
        left, top: of the frame on the scaled picture; negative where the picture is padded.
    """

    source: Size
    scaled: Size
    frame: Size
    left: int
    top: int

    @property
    def kept(self) -> Box:
        """[left, top, right, bottom] of the part of the picture that is in the frame, in its pixels."""
        edges = []
        for axis, start in enumerate((self.left, self.top)):
            scale = self.source[axis] / self.scaled[axis]
            stop = min(start + self.frame[axis], self.scaled[axis])
            # Whole pixels only; the products are inexact.
            edges.append((math.ceil(max(0, start) * scale - INEXACT), math.floor(stop * scale + INEXACT)))
        (left, right), (top, bottom) = edges
        return left, top, right, bottom


def place(source: Size, frame: Size, framing: Framing = CENTER) -> Placement:
    """Lay a frame on a picture.

    Raises:
        InvalidRequest: the whole picture is to be kept, it does not fill the frame, and no padding is given.
    """
    if framing.crop == "none":
        return _whole(source, frame, framing)
    scaled = covering_size(source, frame)
    left, top = (crop_start(length, kept) for length, kept in zip(scaled, frame, strict=True))
    if framing.crop == "top":
        top = 0
    elif framing.crop == "face":
        assert framing.face is not None, "the face must have been found"
        left, top = (
            min(max(0, round(centre * length - kept / 2)), length - kept)
            for centre, length, kept in zip(framing.face, scaled, frame, strict=True)
        )
    return Placement(source, scaled, frame, left, top)


def fit(image: Image.Image, width: int, height: int, framing: Framing = CENTER) -> Tensor:
    """Bring an image into a frame: uint8 [3, H, W]. Errors as for `place`."""
    pixels = torch.from_numpy(np.array(fit_image(image, (width, height), framing)))
    return pixels.permute(2, 0, 1).contiguous()


def fit_image(image: Image.Image, frame: Size, framing: Framing = CENTER) -> Image.Image:
    """Bring an image into a frame. Errors as for `place`."""
    placed = place(image.size, frame, framing)
    scaled = image.resize(placed.scaled, Image.Resampling.BILINEAR)
    if framing.crop == "none":
        return _padded(scaled, placed, framing.pad)
    left, top = placed.left, placed.top
    return scaled.crop((left, top, left + frame[0], top + frame[1]))


def covering_size(source: tuple[int, int], frame: tuple[int, int]) -> tuple[int, int]:
    """(width, height) of the source, scaled to just cover the frame."""
    scale = max(frame[1] / source[1], frame[0] / source[0])
    return math.ceil(scale * source[0]), math.ceil(scale * source[1])


def crop_start(length: int, kept: int) -> int:
    """Start of a centred crop, rounded half to even as in torchvision's `center_crop`."""
    return round((length - kept) / 2)


def _whole(source: Size, frame: Size, framing: Framing) -> Placement:
    scale = min(frame[0] / source[0], frame[1] / source[1])
    width, height = (max(1, round(scale * side)) for side in source)
    gaps = frame[0] - width, frame[1] - height
    if max(gaps) <= LARGEST_STRETCH:
        return Placement(source, frame, frame, 0, 0)
    if framing.pad is None:
        raise InvalidRequest(
            "with `crop: none`, the picture does not fill the frame",
            received="a picture of {}x{} pixels for a frame of {}x{}".format(*source, *frame),
            remedy="Set `pad` to edge, blur or a colour such as '#808080', `frame_size` to the shape of the "
            "picture, or another `crop`.",
            field="pad",
        )
    return Placement(source, (width, height), frame, -(gaps[0] // 2), -(gaps[1] // 2))


def _padded(scaled: Image.Image, placed: Placement, pad: str | None) -> Image.Image:
    """The scaled picture in the middle of a frame."""
    offset, (width, height) = (-placed.left, -placed.top), placed.frame
    if pad is None:  # it fills the frame
        return scaled
    if pad == "edge":
        after = height - scaled.height - offset[1], width - scaled.width - offset[0]
        gaps = (offset[1], after[0]), (offset[0], after[1]), (0, 0)
        return Image.fromarray(np.pad(np.asarray(scaled), gaps, mode="edge"))
    if pad == "blur":
        radius = BLUR * min(width, height)
        canvas = fit_image(scaled, placed.frame).filter(ImageFilter.GaussianBlur(radius))
    else:
        canvas = Image.new("RGB", placed.frame, pad)
    canvas.paste(scaled, offset)
    return canvas
