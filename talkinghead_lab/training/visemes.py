"""Mouth motion from timed phonemes.

The classes are the fourteen visemes and the neutral face of MPEG-4 facial animation (ISO/IEC 14496-2;
Tekalp and Ostermann, "Face and 2-D mesh animation in MPEG-4", Signal Processing: Image Communication 15,
2000). Neighbours blend by dominance functions after Cohen and Massaro, "Modeling coarticulation in
synthetic visual speech" (1993): each segment pulls every articulator towards its target with a strength
that decays with the distance from the segment's middle.
"""

from dataclasses import dataclass

import numpy as np

FRAMES_PER_SECOND = 25
SILENCE = 0


@dataclass(frozen=True)
class Segment:
    """A timed phoneme: its name in the synthesiser's alphabet, start and end in seconds."""

    phoneme: str
    start: float
    end: float


# Targets of each viseme: opening, width, rounding, teeth, tongue (see `avatar.Motion`); then the dominance of
# its opening and of its lip shape. Closed or rounded lips dominate their neighbours.
VISEMES = np.array(
    [
        # open  width  round teeth tongue  hold  shape
        [0.00,  0.00,  0.00, 0.00, 0.00,   1.0,  0.6],  # 0  silence
        [0.00, -0.05,  0.05, 0.00, 0.00,   5.0,  0.8],  # 1  p b m
        [0.10,  0.05,  0.00, 0.80, 0.00,   3.0,  0.8],  # 2  f v
        [0.20,  0.05,  0.00, 0.55, 0.80,   1.0,  0.6],  # 3  th dh
        [0.22,  0.10,  0.00, 0.60, 0.40,   0.9,  0.3],  # 4  t d
        [0.28,  0.00,  0.00, 0.30, 0.10,   0.5,  0.2],  # 5  k g ng
        [0.20, -0.35,  0.50, 0.80, 0.10,   1.2,  1.0],  # 6  ch j sh zh
        [0.14,  0.35,  0.00, 0.95, 0.00,   1.6,  0.7],  # 7  s z
        [0.26,  0.10,  0.00, 0.45, 0.55,   0.9,  0.3],  # 8  n l
        [0.26, -0.20,  0.35, 0.35, 0.30,   0.8,  0.8],  # 9  r
        [0.95,  0.05,  0.00, 0.45, 0.25,   1.3,  0.8],  # 10 a
        [0.60,  0.35,  0.00, 0.55, 0.25,   1.1,  0.8],  # 11 e
        [0.36,  0.60,  0.00, 0.70, 0.20,   1.1,  1.0],  # 12 i
        [0.64, -0.35,  0.55, 0.20, 0.10,   1.2,  1.2],  # 13 o
        [0.30, -0.70,  0.95, 0.10, 0.05,   1.3,  1.6],  # 14 u w
    ]
)  # fmt: skip

# Phonemes of flite (CMU alphabet) and of espeak-ng (its own) → one viseme, or several for a glide.
_CMU = {
    "pau": (0,), "aa": (10,), "ae": (10, 11), "ah": (10, 11), "ao": (13,), "aw": (10, 14),
    "ax": (11, 5), "ay": (10, 12), "b": (1,), "ch": (6,), "d": (4,), "dh": (3,), "eh": (11,),
    "er": (9,), "ey": (11, 12), "f": (2,), "g": (5,), "hh": (5,), "ih": (12,), "iy": (12,),
    "jh": (6,), "k": (5,), "l": (8,), "m": (1,), "n": (8,), "ng": (5,), "ow": (13, 14),
    "oy": (13, 12), "p": (1,), "r": (9,), "s": (7,), "sh": (6,), "t": (4,), "th": (3,),
    "uh": (14, 13), "uw": (14,), "v": (2,), "w": (14,), "y": (12,), "z": (7,), "zh": (6,),
}  # fmt: skip
_ESPEAK = {
    "_": (0,), "a#": (11, 5), "a": (10, 11), "aa": (10,), "A": (10,), "@": (11, 5), "3": (9,),
    "V": (10, 11), "e": (11,), "E": (11,), "I": (12,), "i": (12,), "0": (13, 10), "O": (13,),
    "o": (13,), "U": (14, 13), "u": (14,), "8": (14, 12), "aI": (10, 12), "aU": (10, 14),
    "OI": (13, 12), "eI": (11, 12), "oU": (13, 14), "e@": (11,), "i@": (12, 11), "U@": (14, 13),
    "o@": (13,), "O@": (13,), "A@": (10,), "@L": (8,), "aI@": (10, 12, 11), "aU@": (10, 14, 11),
    "p": (1,), "b": (1,), "m": (1,), "f": (2,), "v": (2,), "T": (3,), "D": (3,), "t": (4,), "d": (4,),
    "k": (5,), "g": (5,), "N": (5,), "h": (5,), "x": (5,), "?": (5,), ";": (12,), "tS": (6,),
    "dZ": (6,), "S": (6,), "Z": (6,), "s": (7,), "z": (7,), "n": (8,), "l": (8,), "L": (8,),
    "r": (9,), "R": (9,), "w": (14,), "j": (12,), "tr": (4, 9), "*": (4,),
}  # fmt: skip


def visemes_of(phoneme: str) -> tuple[int, ...]:
    """Sequence of visemes of a phoneme of either synthesiser, ignoring marks of length and variant.

    Raises:
        KeyError: the phoneme is in neither alphabet.
    """
    if phoneme in _CMU and phoneme not in _ESPEAK:
        return _CMU[phoneme]
    if phoneme in _ESPEAK:
        return _ESPEAK[phoneme]
    bare = phoneme.lstrip("',%=").rstrip('0123456789#:;!-^"~') or phoneme
    for length in range(len(bare), 0, -1):
        if bare[:length] in _ESPEAK:
            return _ESPEAK[bare[:length]]
    return _CMU[phoneme]


def viseme_track(segments: list[Segment], frames: int, loudness: np.ndarray | None = None) -> np.ndarray:
    """Mouth channels of each video frame, at the middle of the frame.

    Args:
        segments: timed phonemes.
        frames: F, at 25 per second.
        loudness: [F], 0 … 1; the mouth opens less where it is low.

    Returns:
        [F, 5]: the channels of `avatar.Motion.mouth`.
    """
    parts = [part for segment in segments for part in _parts(segment)]
    if not parts:
        return np.zeros((frames, 5), np.float32)
    viseme = np.array([part[0] for part in parts])
    start, end = np.array([part[1:] for part in parts]).T
    times = (np.arange(frames)[:, None] + 0.5) / FRAMES_PER_SECOND
    # Each segment mostly keeps to itself; an overlap of about 25 ms keeps short ones visible at 25 fps.
    reach = 0.36 * (end - start) + 0.022
    away = np.abs(times - (start + end) / 2) / np.minimum(reach, 0.30)
    inside = np.maximum(np.abs(times - (start + end) / 2) - (end - start) / 2 + 0.03, 0) / 0.03
    silent = viseme == SILENCE
    fall = np.where(silent, np.exp(-np.minimum(inside, 40.0)), np.exp(-(np.minimum(away, 12.0) ** 1.5)))
    targets = VISEMES[viseme]
    hold, shape = fall * targets[:, 5] + 1e-12, fall * targets[:, 6] + 1e-12
    opening = hold @ targets[:, :1] / hold.sum(1, keepdims=True)
    lips = shape @ targets[:, 1:5] / shape.sum(1, keepdims=True)
    if loudness is not None:
        opening = opening * (0.65 + 0.40 * loudness[:, None])
    return np.concatenate([np.clip(opening, 0, 1), lips], 1).astype(np.float32)


def _parts(segment: Segment) -> list[tuple[int, float, float]]:
    visemes = visemes_of(segment.phoneme)
    edges = np.linspace(segment.start, segment.end, len(visemes) + 1)
    return [(v, a, b) for v, a, b in zip(visemes, edges[:-1], edges[1:], strict=True)]
