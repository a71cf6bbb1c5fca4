"""How long a run still takes, from its own pace; the estimate hardly ever rises.

Importing this module does not import torch.
"""

import math
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from talkinghead_lab.sampling.chunks import Chunk

# By how much an estimate may exceed an earlier one.
LARGEST_RISE = 1.2
# Seconds of decoding a chunk over those of one forward pass of the transformer: 6.2 to 6.7 for the bundled
# model on two CPU cores, 0.5 to 0.8 for the released one on an H100 (docs/performance-forward-pass.md).
# Rather too much, so that the estimate falls when decoding turns out faster.
DECODE_PASSES = {"embedded": 7.0, "released": 1.0}
KNOWN_SHARE = 0.25  # of decoding or measuring, after which its own pace counts
FRAMES_AT_ONCE = 8  # of a decoded piece, at most
# Seconds per million pixels on two cores of a Xeon at 2.5 GHz, which did other work, too: H.264, and all
# measures of the finished video.
ENCODE_SECONDS = 0.06
MEASURE_SECONDS = 0.3
# Joining the chunks; what follows the last measured frame.
MUX_SECONDS = 0.15
LAST_SECONDS = 0.3
STARTING = "reading the inputs, loading the networks"
# What stages of a run are called where its progress is shown; others encode prompt, recording and pictures.
IN_WORDS = {"decode": "decoding", "mux": "writing the video", "measure": "measuring the video"}


@dataclass(frozen=True)
class Work:
    """What a run has to do.

    Args:
        chunks: of the whole video.
        finished: how many of them earlier calls made.
        steps: sampling steps of a chunk.
        passes: forward passes of each of these steps.
        pixels: of a frame.
        checkpoint: `embedded` or `released`.
        cached: whether a step may be skipped, so that steps of one chunk take different times.
    """

    chunks: "Sequence[Chunk]"
    finished: int
    steps: int
    passes: tuple[int, ...]
    pixels: int
    checkpoint: str
    cached: bool = False


@dataclass
class _Place:
    """How far a run is: chunk and stage, steps and decoded frames of that chunk."""

    chunk: int = 0
    stage: str = "read"
    steps: int = 0
    frames: int = 0
    measured: int = 0  # frames of the finished video
    encoded: float = 0.0  # seconds of encoding its pictures


@dataclass
class _Pace:
    """Seconds that parts of this run took; of forward passes, decoding and measuring, seconds per frame."""

    passes: "deque[float]" = field(default_factory=deque)  # means of each step
    by_number: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    slowest_pass: float = 0.0
    decode: float | None = None
    measure: float | None = None
    encoding: float = 0.0  # of a chunk's pictures


class TimeLeft:
    """Estimates the seconds until a run is finished: sampling, decoding, colours, encoding, measures.

    It is told what happens, in the thread of the run, and may be asked in any thread. Between two events, the
    estimate falls with the clock, but not below what follows the current part of the work.

    Args:
        now: gives the time in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.now = now
        self.listeners: list[Callable[[], None]] = []  # called after every event, in the thread of the run
        self._lock = threading.RLock()
        self._work: Work | None = None
        self._place, self._pace = _Place(), _Pace()
        self._part_began = self._told = now()
        self._estimate: float | None = None  # when it was told
        self._after_part = 0.0  # what of the estimate follows the current part
        self._lowest = math.inf
        self._fraction = 0.0  # of the work, so an estimate that must not rise does not count here

    @property
    def place(self) -> str:
        """How far the run is, in words."""
        with self._lock:
            work, place = self._work, self._place
            if work is None:
                return STARTING
            if self.ending:
                return IN_WORDS["measure" if place.stage == "measure" else "mux"]
            chunk = f"chunk {place.chunk + 1} of {len(work.chunks)}"
            if place.stage == "sampling":
                return f"{chunk} · step {place.steps} of {work.steps}"
            return f"{chunk} · {IN_WORDS.get(place.stage, 'encoding')}"

    @property
    def status(self) -> str:
        """How far the run is, and the time left if it is known, in words."""
        left = self.seconds()
        return self.place + ("" if left is None else f" · about {in_words(max(1.0, left))} left")

    @property
    def ending(self) -> bool:
        """Whether all chunks are made."""
        return self._work is not None and self._place.chunk == len(self._work.chunks)

    def plan(self, work: Work) -> None:
        """Tell what is to be done."""
        with self._lock:
            self._work = work
            self._place.chunk = work.finished
            self._pace.passes = deque(maxlen=2 * work.steps)
            self._fraction = work.finished / len(work.chunks)

    def enter(self, stage: str) -> None:
        """Tell that a stage of `StageClock` begins."""
        with self._lock:
            if self._place.stage in ("image", "vae_encode"):
                self._place.encoded += self.now() - self._part_began
            if stage == "sampling":
                self._pace.encoding = self._place.encoded
            self._place.stage = stage
            self._part_began = self.now()
        self._changed()

    def step(self) -> None:
        """Tell that a sampling step is done."""
        with self._lock:
            if self._work:
                self._count_step(self._work)
                self._place.steps += 1
            self._part_began = self.now()
        self._changed()

    def decoded(self, frames: int) -> None:
        """Tell that new frames of a chunk were decoded."""
        with self._lock:
            work, place = self._work, self._place
            if work:
                # Overlap frames come first and are not told of.
                place.frames = max(place.frames, work.chunks[place.chunk].repeated) + frames
                if place.frames >= KNOWN_SHARE * work.chunks[place.chunk].frames:
                    self._pace.decode = (self.now() - self._part_began) / place.frames
        self._changed()

    def end_chunk(self) -> None:
        """Tell that all frames of a chunk are decoded."""
        with self._lock:
            self._place = _Place(self._place.chunk + 1, "vae_encode")
            self._part_began = self.now()
        self._changed()

    def measured(self) -> None:
        """Tell that a frame of the finished video was measured."""
        with self._lock:
            self._place.measured += 1
            if self._work and self._place.measured >= KNOWN_SHARE * _frames(self._work):
                self._pace.measure = (self.now() - self._part_began) / self._place.measured
        self._changed()

    def seconds(self) -> float | None:
        """The estimate; None: not known yet."""
        with self._lock:
            if self._estimate is None:
                return None
            return max(self._estimate - (self.now() - self._told), self._after_part, 0.0)

    def fraction(self) -> float:
        """Finished share of the work, 0 to 1, which never falls."""
        return self._fraction

    def _count_step(self, work: Work) -> None:
        first = not self._pace.slowest_pass and self._place.steps == 0 and self._place.chunk == work.finished
        if first and work.steps > 1:  # it may compile, and copies what later ones find
            return
        passes = work.passes[self._place.steps]
        if not passes:  # the step moves nothing
            return
        seconds = (self.now() - self._part_began) / work.chunks[self._place.chunk].frames / passes
        self._pace.passes.append(seconds)
        self._pace.by_number[self._place.steps].append(seconds)
        self._pace.slowest_pass = max(self._pace.slowest_pass, seconds)

    def _changed(self) -> None:
        with self._lock:
            work = self._work
            if work and self._pace.passes:
                shown, left = self.seconds(), self._left(work)
                self._lowest = min(self._lowest, math.inf if shown is None else shown)
                self._estimate, self._told = min(left, LARGEST_RISE * self._lowest), self.now()
                self._fraction = max(self._fraction, 1 - left / max(left, self._whole(work), 1e-9))
                self._after_part = max(0.0, self._estimate - self._part(work))
        for listener in self.listeners:
            listener()

    def _left(self, work: Work) -> float:
        """Seconds of all that is not done, the current part included."""
        place = self._place
        later = sum(self._chunk(work, number) for number in range(place.chunk + 1, len(work.chunks)))
        if self.ending:
            current = 0.0
        elif place.stage in ("sampling", "decode"):
            current = self._rest_of_chunk(work)
        else:
            current = self._chunk(work, place.chunk)
        return later + current + self._ending(work)

    def _rest_of_chunk(self, work: Work) -> float:
        frames, place = work.chunks[self._place.chunk].frames, self._place
        steps = sum(self._step(work, number) for number in range(place.steps, work.steps))
        return steps * frames + self._decode(work) * (frames - place.frames)

    def _part(self, work: Work) -> float:
        """Seconds of the part that is under way: a step, a few decoded frames, a stage."""
        place = self._place
        if self.ending:
            return {"mux": MUX_SECONDS, "measure": FRAMES_AT_ONCE * self._measure(work)}.get(place.stage, 0.0)
        frames = work.chunks[place.chunk].frames
        if place.stage == "decode":
            return self._decode(work) * (FRAMES_AT_ONCE if place.frames else frames)
        if place.stage == "sampling":
            return self._step(work, place.steps) * frames if place.steps < work.steps else 0.0
        return self._pace.encoding

    def _chunk(self, work: Work, number: int) -> float:
        frames = work.chunks[number].frames
        steps = sum(self._step(work, step) for step in range(work.steps))
        return self._pace.encoding + frames * (steps + self._decode(work))

    def _step(self, work: Work, number: int) -> float:
        """Seconds of a step for each frame."""
        known = self._pace.by_number[number] if work.cached else []
        known = known or list(self._pace.passes)
        return sum(known) / len(known) * work.passes[number]

    def _decode(self, work: Work) -> float:
        """Seconds of decoding for each frame."""
        if self._pace.decode is not None:
            return self._pace.decode
        return DECODE_PASSES[work.checkpoint] * self._pace.slowest_pass

    def _measure(self, work: Work) -> float:
        """Seconds of measuring for each frame."""
        return MEASURE_SECONDS * work.pixels / 1e6 if self._pace.measure is None else self._pace.measure

    def _ending(self, work: Work) -> float:
        """Seconds from the last decoded frame on."""
        measure = self._measure(work) * (_frames(work) - self._place.measured) + LAST_SECONDS
        if self._place.stage == "measure":
            return measure
        if self._place.stage == "mux":
            return MUX_SECONDS + measure
        # Frames are encoded while the next ones are decoded.
        encode = max(0.0, ENCODE_SECONDS * work.pixels / 1e6 - self._decode(work)) * work.chunks[-1].new
        return encode + MUX_SECONDS + measure

    def _whole(self, work: Work) -> float:
        chunks = sum(self._chunk(work, number) for number in range(len(work.chunks)))
        return chunks + self._ending(work)


def _frames(work: Work) -> int:
    """Frames of the finished video."""
    return sum(chunk.new for chunk in work.chunks)


def in_words(seconds: float) -> str:
    """Format a duration."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
