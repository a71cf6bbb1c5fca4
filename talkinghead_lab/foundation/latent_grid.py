"""Conversions between frames, latents and tokens, and the symbols used for shapes in this package.

| symbol | meaning |
| --- | --- |
| B | batch; 1 unless stated otherwise |
| C | latent channels (16 in the released VAE) |
| F | video frames, 25 per second; 4n + 1 in a chunk |
| H, W | height and width in pixels |
| T, h, w | latent frames, height and width: T = 1 + (F − 1) / 4, h = H / 8, w = W / 8 |
| L | tokens of one chunk: T · h/2 · w/2 |
| S | tokens of one latent frame: h/2 · w/2 |
| D | width of the transformer |
| P | speakers, 1 or 2 |
| A | audio tokens of one latent frame |
"""

import math
from dataclasses import dataclass

FRAMES_PER_SECOND = 25
FRAMES_PER_LATENT = 4
INEXACT = 1e-6  # frames; times in seconds are rounded
PIXELS_PER_LATENT = 8
PIXELS_PER_TOKEN = 16
# Of one chunk: 14 times as many as 1280x720 with 81 frames. One activation of the 14B model has 10 GiB there.
MOST_TOKENS = 2**20
LONGEST_SIDE = 16_384  # pixels: of x264, and the 1,024 rotary positions of the released weights


def first_frame(seconds: float) -> int:
    """The number of the first frame of a video that begins at a time or after it."""
    return math.ceil(seconds * FRAMES_PER_SECOND - INEXACT)


@dataclass(frozen=True)
class LatentGrid:
    """The sizes of one chunk of video in pixels, latents and tokens.

    Args:
        frames: F, of the form 4n + 1.
        height: H, a multiple of 16.
        width: W, a multiple of 16.
    """

    frames: int
    height: int
    width: int

    @property
    def latent_frames(self) -> int:
        """Latent frames T."""
        return latent_frames(self.frames)

    @property
    def latent_height(self) -> int:
        """Latent height h."""
        return self.height // PIXELS_PER_LATENT

    @property
    def latent_width(self) -> int:
        """Latent width w."""
        return self.width // PIXELS_PER_LATENT

    @property
    def tokens_per_frame(self) -> int:
        """Tokens S of one latent frame."""
        return (self.height // PIXELS_PER_TOKEN) * (self.width // PIXELS_PER_TOKEN)

    @property
    def tokens(self) -> int:
        """Tokens L of the chunk."""
        return self.latent_frames * self.tokens_per_frame

    def latent_shape(self, channels: int) -> tuple[int, int, int, int]:
        """[C, T, h, w] of the chunk's latent."""
        return channels, self.latent_frames, self.latent_height, self.latent_width


def latent_frames(frames: int) -> int:
    """T for `frames` video frames: one latent frame for the first, then one for every four."""
    return 1 + (frames - 1) // FRAMES_PER_LATENT


def is_whole_chunk(frames: int) -> bool:
    """Whether `frames` video frames fill their latent frames exactly (1, 5, 9, …, 81, …)."""
    return frames >= 1 and (frames - 1) % FRAMES_PER_LATENT == 0


def whole_chunk(frames: int) -> int:
    """The smallest chunk that holds `frames` frames and fills at least two latent frames exactly."""
    return 1 + FRAMES_PER_LATENT * max(1, -(-(frames - 1) // FRAMES_PER_LATENT))


def largest_size(width: int, height: int, frames: int) -> tuple[int, int]:
    """The largest (W, H) of about the shape of a size that keeps sides and chunks within their limits."""
    width, height = min(width, LONGEST_SIDE), min(height, LONGEST_SIDE)
    scale = math.sqrt(MOST_TOKENS / latent_frames(frames) / (width * height)) * PIXELS_PER_TOKEN
    if scale >= 1:
        return width, height
    wide, high = (max(1, int(side * scale) // PIXELS_PER_TOKEN) for side in (width, height))
    most = MOST_TOKENS // latent_frames(frames)  # a side of one token leaves room for so many on the other
    return min(wide, most // high) * PIXELS_PER_TOKEN, min(high, most) * PIXELS_PER_TOKEN
