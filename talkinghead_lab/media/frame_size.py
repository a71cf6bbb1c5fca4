"""Choose a frame size for an image and fit the image to it."""

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor

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


def nearest_size(width: int, height: int, resolution: str) -> tuple[int, int]:
    """The released frame size (width, height) whose aspect ratio is nearest to an image's.

    Compares height / width; released ratios are rounded to two digits, as in the released tables.
    """
    return min(RELEASED_SIZES[resolution], key=lambda size: abs(round(size[1] / size[0], 2) - height / width))


def fit(image: Image.Image, width: int, height: int) -> Tensor:
    """Scale an image to cover a frame and crop its centre: uint8 [3, H, W]."""
    covering = covering_size(image.size, (width, height))
    scaled = torch.from_numpy(np.array(image.resize(covering, Image.Resampling.BILINEAR)))
    top, left = crop_start(covering[1], height), crop_start(covering[0], width)
    return scaled[top : top + height, left : left + width].permute(2, 0, 1).contiguous()


def covering_size(source: tuple[int, int], frame: tuple[int, int]) -> tuple[int, int]:
    """(width, height) of the source, scaled to just cover the frame."""
    scale = max(frame[1] / source[1], frame[0] / source[0])
    return math.ceil(scale * source[0]), math.ceil(scale * source[1])


def crop_start(length: int, kept: int) -> int:
    """Start of a centred crop, rounded half to even as in torchvision's `center_crop`."""
    return round((length - kept) / 2)
