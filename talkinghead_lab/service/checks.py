"""What is checked of a finished video before it is announced: a verdict, with the figure behind it."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from talkinghead_lab.foundation.latent_grid import FRAMES_PER_SECOND
from talkinghead_lab.measures import lips
from talkinghead_lab.media import audio, video
from talkinghead_lab.media.pixels import to_unit_range
from talkinghead_lab.models.judges import face_reader

CODECS = ("h264", "aac")
BLACK_LEVEL = 24  # of 255: a frame is black where nearly all of it is below
NEARLY_ALL = 99  # percent of a frame's pixels
STILL_CHANGE = (
    4.0  # levels of 255, mean over a block of pixels; an encoder refines a still picture by up to 2.6
)
BLOCKS = 8  # a side of the frame; a mouth that moves alone fills one or two
LONGEST_STILL_SECONDS = 2.0
LONGEST_STILL_SHARE = 0.75  # of a shorter video
SMALLEST_CORRELATION = 0.3
STANDARD_ERRORS = 3  # of a correlation by chance, 1/√frames, below which short videos prove nothing
FEWEST_FRAMES = 25
FRAMES_AT_ONCE = 64

Check = dict[str, Any]


def check_video(path: Path, recording: Path, frame_count: int, drawn: bool) -> dict[str, Any]:
    """Check a video against the recording that it was made of.

    Args:
        path, recording: the files.
        frame_count: what was announced.
        drawn: the video was made by the small model, whose presenters the reader of mouths was trained on.

    Returns:
        `passed`, whether no check failed, and under each check's name `passed` (None: not measured), what
        was `measured`, and why where it was not.

    Raises:
        MediaError: a file cannot be read.
    """
    facts = video.probe(path)
    speech = audio.read_speech(recording)
    seconds = len(speech) / audio.SAMPLE_RATE
    black, still, decoded, opening = _measure(path, drawn)
    checks: dict[str, Check] = {
        "streams": _check(facts.codecs == CODECS, "+".join(facts.codecs)),
        "frame_count": _check(decoded == facts.frame_count == frame_count, decoded),
        "length": _length(facts, seconds),
        "not_black": _check(black == 0, f"{black} black frames"),
        "not_frozen": _not_frozen(still, decoded),
        "mouth_moves_with_speech": _mouth(opening, speech) if drawn else _not_measured(
            "the reader of mouths knows only the drawn presenters of the small model, not photographs"
        ),
    }  # fmt: skip
    return {"passed": all(check["passed"] is not False for check in checks.values()), **checks}


def _check(passed: bool, measured: object) -> Check:
    return {"passed": passed, "measured": measured}


def _not_measured(reason: str) -> Check:
    return {"passed": None, "measured": None, "reason": reason}


def _length(facts: video.VideoFacts, seconds: float) -> Check:
    """Picture and sound both last as long as the recording, to a frame; at least one frame."""
    wanted = max(seconds, 1 / FRAMES_PER_SECOND)
    away = max(abs(facts.duration_seconds - wanted), abs(facts.audio_seconds - wanted))
    return _check(away < 1 / FRAMES_PER_SECOND, f"{facts.duration_seconds:.2f} of {seconds:.2f} s")


def _not_frozen(still: int, frames: int) -> Check:
    if frames < 2:
        return _not_measured("a single frame has nothing to move")
    longest = min(LONGEST_STILL_SECONDS * FRAMES_PER_SECOND, LONGEST_STILL_SHARE * (frames - 1))
    return _check(still < longest, f"longest still stretch {still / FRAMES_PER_SECOND:.2f} s")


def _measure(path: Path, drawn: bool) -> tuple[int, int, int, Tensor]:
    """(black frames, most frames in a row like the one they follow, frames, mouth opening [F] if drawn)."""
    black = still = longest = frames = 0
    openings, first = [torch.zeros(0)], None  # `first` of the frames that look the same
    for batch in _batches(video.read_frames(path)):
        for frame in batch:
            black += int(np.percentile(frame, NEARLY_ALL) < BLACK_LEVEL)
            if first is not None and _largest_change(first, frame) < STILL_CHANGE:
                still += 1
                longest = max(longest, still)
            else:
                first, still = frame, 0
        if drawn:
            pixels = torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2)
            openings.append(face_reader.mouth_opening(to_unit_range(pixels)))
        frames += len(batch)
    return black, longest, frames, torch.cat(openings)


def _largest_change(first: video.Frames, second: video.Frames) -> float:
    """Mean absolute difference in the block that differs most."""
    height, width = (side - side % BLOCKS for side in first.shape[:2])
    change = np.abs(first[:height, :width].astype(np.int16) - second[:height, :width])
    return float(change.reshape(BLOCKS, height // BLOCKS, BLOCKS, width // BLOCKS, 3).mean((1, 3, 4)).max())


def _batches(frames: Iterator[video.Frames]) -> Iterator[list[video.Frames]]:
    while batch := list(itertools.islice(frames, FRAMES_AT_ONCE)):
        yield batch


def _mouth(opening: Tensor, speech: NDArray[np.float32]) -> Check:
    """Pearson's correlation of the mouth's opening and the loudness, at the best lag of a few frames."""
    best = lips.correlation_with_loudness(opening.double().numpy(), speech, audio.SAMPLE_RATE)
    if len(opening) < FEWEST_FRAMES or best is None:
        return _not_measured("there is too little speech to see a mouth move with")
    smallest = max(SMALLEST_CORRELATION, STANDARD_ERRORS / len(opening) ** 0.5)
    return _check(best >= smallest, f"correlation {best:.2f}")
