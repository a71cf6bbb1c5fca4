"""Read masks: pictures that show where the speakers of another picture are."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from talkinghead_lab.errors import InvalidRequest
from talkinghead_lab.media.image import MAX_PIXELS, read_portrait

Mask = NDArray[np.bool_]  # [H, W]: where a speaker is

# The colours of a file with all speakers, in their order; black is nobody.
COLORS = {
    "red": (True, False, False),
    "green": (False, True, False),
    "blue": (False, False, True),
    "yellow": (True, True, False),
    "magenta": (True, False, True),
    "cyan": (False, True, True),
}
FIELD = "speaker_masks"
ON = 128  # half of the range


def read_masks(paths: Sequence[str | Path], max_pixels: int = MAX_PIXELS) -> tuple[Mask, ...]:
    """Read a mask per speaker, in their order.

    Every channel of a pixel counts as on from half of its range, so that smooth edges do no harm.
    Transparent pixels are black.

    Args:
        paths: one file per speaker, white where the speaker is, or one file for all in which each has the
            next of `COLORS`.
        max_pixels: of a file.

    Raises:
        MediaError: a file is no picture, or has an unusable size.
        InvalidRequest: a mask is empty, coloured where it should be white, or masks overlap.
    """
    drawn = [(str(path), _channels(path, max_pixels)) for path in paths]
    if len(drawn) == 1 and _is_colored(drawn[0][1]).any():
        return _by_color(*drawn[0])
    masks = tuple(_only_white(path, channels) for path, channels in drawn)
    if len({mask.shape for mask in masks}) == 1:  # the others are refused by their sizes
        _check_apart(masks)
    return masks


def check_masks(masks: Sequence[Mask], size: tuple[int, int], voices: int) -> None:
    """Check masks against the picture, (width, height), and the number of recordings.

    Raises:
        InvalidRequest: they do not go together.
    """
    for number, mask in enumerate(masks, start=1):
        height, width = mask.shape
        if (width, height) != size:
            raise InvalidRequest(
                f"the mask of speaker {number} has another size than the picture",
                received=f"{width}x{height}",
                allowed="{}x{}, as the picture before it is cropped or scaled".format(*size),
                field=FIELD,
            )
    if masks and voices > 1 and len(masks) != voices:
        raise InvalidRequest(
            f"there are {voices} recordings, and a mask is needed for each",
            received=f"{len(masks)} {'mask or colour' if len(masks) == 1 else 'masks or colours'}",
            remedy="Draw one mask or colour per recording; without second_audio_path, the first one speaks "
            "and the others are silent.",
            field=FIELD,
        )


def _channels(path: str | Path, max_pixels: int) -> NDArray[np.bool_]:
    """Which channels of a picture are on, [H, W, 3].

    Raises:
        MediaError: it is no picture, or has an unusable size.
        InvalidRequest: none is on.
    """
    picture = np.asarray(read_portrait(path, "black", max_pixels, warn=lambda warning: None))
    if picture.max() < ON:
        raise InvalidRequest(
            "a mask is empty: no pixel is white or coloured",
            received=f"{path}, no value above {picture.max()} of 255",
            allowed=f"white where the speaker is, {ON} to 255",
            remedy="Draw the speaker bright and opaque; numbers 0 and 1 must become 0 and 255.",
            field=FIELD,
        )
    return picture >= ON


def _is_colored(channels: NDArray[np.bool_]) -> Mask:
    return np.asarray(channels.any(axis=-1)) & ~_white(channels)


def _white(channels: NDArray[np.bool_]) -> Mask:
    return np.asarray(channels.all(axis=-1))


def _only_white(path: str, channels: NDArray[np.bool_]) -> Mask:
    colored = _is_colored(channels)
    if colored.any():
        raise InvalidRequest(
            "a mask is coloured: of several files, each is white where its speaker is, and black elsewhere",
            received=f"{path}, {colored.sum()} coloured pixels, the first {_first(colored)}",
            remedy="For a colour per speaker, give one file.",
            field=FIELD,
        )
    return _white(channels)


def _by_color(path: str, channels: NDArray[np.bool_]) -> tuple[Mask, ...]:
    white = _white(channels)
    if white.any():
        raise InvalidRequest(
            "a mask with colours has white pixels, too",
            received=f"{path}, {white.sum()} white pixels, the first {_first(white)}",
            allowed=f"black, and a colour per speaker in this order: {', '.join(COLORS)}",
            field=FIELD,
        )
    found = {name: _white(channels == np.array(color)) for name, color in COLORS.items()}
    used = [name for name, mask in found.items() if mask.any()]
    if used != list(COLORS)[: len(used)]:
        missing = next(name for name in COLORS if name not in used)
        raise InvalidRequest(
            f"the colour of speaker {list(COLORS).index(missing) + 1}, {missing}, is missing from the mask",
            received=f"{path}, {' and '.join(used)}",
            allowed=f"a colour per speaker in this order: {', '.join(COLORS)}",
            field=FIELD,
        )
    return tuple(found[name] for name in used)


def _check_apart(masks: Sequence[Mask]) -> None:
    for second, mask in enumerate(masks):
        for first, other in enumerate(masks[:second]):
            shared = mask & other
            if shared.any():
                raise InvalidRequest(
                    f"the masks of speakers {first + 1} and {second + 1} overlap",
                    received=f"{shared.sum()} shared pixels, the first {_first(shared)}",
                    remedy="Leave every pixel to one speaker.",
                    field=FIELD,
                )


def _first(mask: Mask) -> str:
    row, column = np.argwhere(mask)[0]
    return f"in column {column}, row {row}"
