"""Checks of a finished video: a verdict for each, with the figure behind it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from talkinghead_lab.foundation.latent_grid import FRAMES_PER_SECOND
from talkinghead_lab.measures.lips import correlation_with_loudness
from talkinghead_lab.media import audio, video

CODECS = ("h264", "aac")
BLACK_LEVEL = 24  # of 255: a black frame is darker in nearly all of its samples
NEARLY_ALL = 0.99
STILL_CHANGE = 4.0  # levels of 255, mean over a block; encoders refine a still picture by up to 2.6
BLOCKS = 8  # along each side of the frame; a moving mouth alone fills one or two blocks
LONGEST_STILL_SECONDS = 2.0
LONGEST_STILL_SHARE = 0.75  # of a shorter video
SMALLEST_CORRELATION = 0.3
STANDARD_ERRORS = 3  # of a chance correlation, 1/√frames; short videos prove nothing below
FEWEST_FRAMES = 25

Check = dict[str, Any]


class StillnessMeter:
    """Counts black frames and the longest run of frames that show the same picture."""

    def __init__(self) -> None:
        self.frames = self.black = self.longest_still = 0
        self._still = 0
        self._first: video.Frames | None = None  # of the current run of equal frames

    def add(self, pixels: video.Frames) -> None:
        """Add the next frame, uint8 [H, W, 3]."""
        self.frames += 1
        self.black += bool(np.count_nonzero(pixels >= BLACK_LEVEL) < (1 - NEARLY_ALL) * pixels.size)
        if self._first is not None and _largest_change(self._first, pixels) < STILL_CHANGE:
            self._still += 1
            self.longest_still = max(self.longest_still, self._still)
        else:
            self._first, self._still = pixels, 0


def check_video(
    facts: video.VideoFacts,
    meter: StillnessMeter,
    frame_count: int,
    seconds: float,
    openings: NDArray[np.float64] | None,
    speech: audio.Wave,
    warnings: Sequence[str] = (),
) -> dict[str, Any]:
    """Check a video against what it was made from.

    Args:
        facts: of the file.
        meter: has seen every frame.
        frame_count: how many frames the video should have.
        seconds: how long it should last.
        openings: of a cartoon presenter's mouth, [F]; None: nobody read them.
        speech: the recording, mono at 16 kHz.
        warnings: what was said about the request before the video was made. A warning does not fail a video.

    Returns:
        `passed`, whether no check failed, and under each check's name `passed` (None: not measured), what was
        `measured`, and the `reason` of a None.
    """
    checks: dict[str, Check] = {
        "streams": _check(facts.codecs == CODECS, "+".join(facts.codecs)),
        "frame_count": _check(meter.frames == facts.frame_count == frame_count, meter.frames),
        "length": _length(facts, seconds),
        "not_black": _check(meter.black == 0, f"{meter.black} black frames"),
        "not_frozen": _not_frozen(meter.longest_still, meter.frames),
        "mouth_moves_with_speech": _mouth(openings, speech),
        "no_warnings": _no_warnings(warnings),
    }
    return {"passed": all(check["passed"] is not False for check in checks.values()), **checks}


def _check(passed: bool, measured: object) -> Check:
    return {"passed": passed, "measured": measured}


def _not_measured(reason: str) -> Check:
    return {"passed": None, "measured": None, "reason": reason}


def _no_warnings(warnings: Sequence[str]) -> Check:
    if not warnings:
        return _check(True, "none")
    return {"passed": None, "measured": f"{len(warnings)} given", "reason": " ".join(warnings)}


def _length(facts: video.VideoFacts, seconds: float) -> Check:
    """Picture and sound both last as long as expected, to within a frame; at least one frame."""
    wanted = max(seconds, 1 / FRAMES_PER_SECOND)
    away = max(abs(facts.duration_seconds - wanted), abs(facts.audio_seconds - wanted))
    return _check(away < 1 / FRAMES_PER_SECOND, f"{facts.duration_seconds:.2f} of {seconds:.2f} s")


def _not_frozen(still: int, frames: int) -> Check:
    if frames < 2:
        return _not_measured("a single frame has nothing to move")
    longest = min(LONGEST_STILL_SECONDS * FRAMES_PER_SECOND, LONGEST_STILL_SHARE * (frames - 1))
    return _check(still < longest, f"longest still stretch {still / FRAMES_PER_SECOND:.2f} s")


def _largest_change(first: video.Frames, second: video.Frames) -> float:
    """Mean absolute difference in the block that differs most."""
    height, width = (side - side % BLOCKS for side in first.shape[:2])
    change = np.abs(first[:height, :width].astype(np.int16) - second[:height, :width])
    return float(change.reshape(BLOCKS, height // BLOCKS, BLOCKS, width // BLOCKS, 3).mean((1, 3, 4)).max())


def _mouth(openings: NDArray[np.float64] | None, speech: audio.Wave) -> Check:
    """Pearson's correlation of the mouth's opening and the loudness, at the best lag of a few frames."""
    if openings is None:
        return _not_measured(
            "the mouth reader knows one speaking cartoon presenter of the bundled model, not photographs"
        )
    best = correlation_with_loudness(openings, speech, audio.SAMPLE_RATE)
    if len(openings) < FEWEST_FRAMES or best is None:
        return _not_measured("there is too little speech to judge the mouth by")
    smallest = max(SMALLEST_CORRELATION, STANDARD_ERRORS / len(openings) ** 0.5)
    return _check(best >= smallest, f"correlation {best:.2f}")
