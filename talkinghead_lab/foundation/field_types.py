"""Types of request fields that need more than a range to be checked."""

import itertools
import re
from collections.abc import Sequence
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from talkinghead_lab.foundation.latent_grid import PIXELS_PER_TOKEN, first_frame, is_whole_chunk
from talkinghead_lab.foundation.paths import absolute


def _auto_or_whole_tokens(value: str) -> str:
    if value == "auto":
        return value
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", value)
    if not match or any(side == 0 or side % PIXELS_PER_TOKEN for side in map(int, match.groups())):
        raise ValueError(f"must be auto or WIDTHxHEIGHT, both multiples of {PIXELS_PER_TOKEN}")
    return value


def _fills_its_latent_frames(value: int) -> int:
    if not is_whole_chunk(value):
        below = 4 * ((value - 1) // 4) + 1
        raise ValueError(f"must be 4n + 1; the nearest values are {below} and {below + 4}")
    return value


def _enclose_something(boxes: "tuple[Box, ...]") -> "tuple[Box, ...]":
    for left, top, right, bottom in boxes:
        if not (0 <= left < right and 0 <= top < bottom):
            raise ValueError("must be [left, top, right, bottom], 0 <= left < right and 0 <= top < bottom")
    return boxes


def _in_order(shares: tuple[float, float]) -> tuple[float, float]:
    if not 0 <= shares[0] < shares[1] <= 1:
        raise ValueError("must be [from, to], 0 <= from < to <= 1")
    return shares


def _falling(levels: tuple[float, ...]) -> tuple[float, ...]:
    if not levels[0] <= 1 or not levels[-1] > 0 or any(a <= b for a, b in itertools.pairwise(levels)):
        raise ValueError("must fall from at most 1 to above 0; the last level, 0, is added: leave it out")
    return levels


class _Timed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    start: float = Field(ge=0, le=7200, description="seconds into the video")


Timed = TypeVar("Timed", bound=Sequence[_Timed])


def _from_the_beginning_on(entries: Timed) -> Timed:
    frames = [first_frame(entry.start) for entry in entries]
    if frames[0] != 0 or any(a >= b for a, b in itertools.pairwise(frames)):
        raise ValueError("`start` must be 0 in the first entry, and rise by a frame (0.04 s) or more in each")
    return entries


MediaPath = Annotated[str, BeforeValidator(absolute)]
Text = Annotated[str, Field(max_length=2000)]


class TimedText(_Timed):
    """A prompt from a time on."""

    text: Text


class TimedFile(_Timed):
    """A picture or video from a time on."""

    file: MediaPath


TimedTexts = Annotated[
    tuple[TimedText, ...], Field(min_length=1, max_length=100), AfterValidator(_from_the_beginning_on)
]
TimedFiles = Annotated[
    tuple[TimedFile, ...], Field(min_length=1, max_length=100), AfterValidator(_from_the_beginning_on)
]
Prompts = Text | TimedTexts
Pictures = MediaPath | TimedFiles
WeightPath = MediaPath | None
FrameSize = Annotated[str, AfterValidator(_auto_or_whole_tokens)]
WholeChunk = Annotated[int, AfterValidator(_fills_its_latent_frames)]
Box = tuple[int, int, int, int]
MOST_REGIONS = 6  # as many as there are colours for masks
Boxes = Annotated[
    tuple[Box, ...], Field(min_length=1, max_length=MOST_REGIONS), AfterValidator(_enclose_something)
]
MaskPaths = Annotated[tuple[MediaPath, ...], Field(min_length=1, max_length=MOST_REGIONS)]
Interval = Annotated[tuple[float, float], AfterValidator(_in_order)]
GuidanceScale = Annotated[float, Field(ge=0, le=30)]
# A scale, or its schedule over the steps.
GuidanceScales = GuidanceScale | Annotated[tuple[GuidanceScale, ...], Field(min_length=1, max_length=1000)]
Sigmas = Annotated[tuple[float, ...], Field(min_length=1, max_length=1000), AfterValidator(_falling)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Segment(BaseModel):
    """A recording on the time line of a dialogue."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    speaker: int = Field(ge=1, le=2, description="whose region speaks: 1 or 2")
    start: float = Field(0.0, ge=0, le=7200, description="seconds")
    end: float | None = Field(None, gt=0, le=7200, description="seconds; unset: the end of the recording")
    file: MediaPath = Field(description="recording, or a video with speech, from its beginning")

    @model_validator(mode="after")
    def _ends_after_its_start(self) -> "Segment":
        if self.end is not None and self.end <= self.start:
            raise ValueError("`end` must be after `start`")
        return self


MOST_SEGMENTS = 200
Segments = Annotated[tuple[Segment, ...], Field(min_length=1, max_length=MOST_SEGMENTS)]
Loudness = Annotated[float, Field(ge=-70, le=0)]  # LUFS; speech at 0 would clip long before
Loudnesses = Annotated[tuple[Loudness, ...], Field(min_length=1, max_length=2)]
LoraScale = Annotated[float, Field(ge=-10, le=10)]
# A strength, or its schedule over the steps.
LoraScales = LoraScale | Annotated[tuple[LoraScale, ...], Field(min_length=1, max_length=1000)]


class Lora(BaseModel):
    """A LoRA file and its strength."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    path: MediaPath = Field(description="LoRA file, .safetensors, or sample:NAME for a bundled one")
    scale: LoraScales = Field(
        1.0, description="strength; 1.0: as trained; a list is spread evenly over the steps"
    )
