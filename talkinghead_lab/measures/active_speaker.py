"""Whether each of two people moves the mouth to the own voice, and to that alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from talkinghead_lab.errors import TalkingHeadError
from talkinghead_lab.measures import lips
from talkinghead_lab.measures.cartoon_faces import MouthReader
from talkinghead_lab.measures.measure import Measure
from talkinghead_lab.measures.photographed_faces import FaceTracker
from talkinghead_lab.media.audio import SAMPLE_RATE, Wave
from talkinghead_lab.media.video import Frames

OWN, OTHER, SILENT = "active_speaker_own", "active_speaker_other", "active_speaker_silent"
ONE_SPEAKER = "one person speaks, and there are no others"
NO_PERSON = "no region shows a single silent person"
SHARE_OF_SQUARE = 0.9  # height of a presenter's head and shoulders in the square that the reader takes


@dataclass(frozen=True)
class Person:
    """One of two people in a video.

    Args:
        box: [left, top, right, bottom] of the person in the frame; None: nobody in particular.
        voice: [samples] at 16 kHz; all zeros: the person is silent.
    """

    box: tuple[int, int, int, int] | None
    voice: Wave


class PeopleReader:
    """Reads the mouths of people frame by frame, each in an own part of the frame.

    Args:
        people: two of them.
        cartoon: whether they are cartoon presenters; others need MediaPipe's face landmarker.
        most_frames: later frames are ignored.
    """

    def __init__(self, people: Sequence[Person], cartoon: bool, most_frames: int) -> None:
        self.people, self._cartoon, self._most_frames = people, cartoon, most_frames
        self._readers: list[MouthReader | FaceTracker | None] = []
        self._frames, self._why_not = 0, NO_PERSON
        for person in people:
            self._readers.append(self._reader() if person.box else None)

    def _reader(self) -> MouthReader | FaceTracker | None:
        try:
            return MouthReader() if self._cartoon else FaceTracker(self._most_frames)
        except TalkingHeadError as error:
            self._why_not = f"no reader of photographed faces: {error}"
            return None

    def add(self, pixels: Frames) -> None:
        """Add the next frame, uint8 [H, W, 3]."""
        self._frames += 1
        for person, reader in zip(self.people, self._readers, strict=True):
            if reader is None or person.box is None or self._frames > self._most_frames:
                continue
            box = _square(person.box, pixels.shape[1], pixels.shape[0]) if self._cartoon else person.box
            left, top, right, bottom = box
            reader.add(np.ascontiguousarray(pixels[top:bottom, left:right]))

    def measures(self) -> list[Measure]:
        """How each mouth goes with its own voice and with the other's, and what it does in silence."""
        openings = [None if reader is None else self._openings(reader) for reader in self._readers]
        read = [
            (person, other, opening)
            for person, other, opening in zip(self.people, reversed(self.people), openings, strict=True)
            if opening is not None
        ]
        own = [_follows(opening, person.voice) for person, _, opening in read if person.voice.any()]
        others = [_follows(opening, other.voice) for _, other, opening in read if other.voice.any()]
        return [
            self._of(OWN, min(own, default=None)),
            self._of(OTHER, max(others, default=None)),
            self._of(SILENT, _silent_share(read)),
        ]

    def _openings(self, reader: MouthReader | FaceTracker) -> lips.Openings | None:
        try:
            return reader.openings() if isinstance(reader, MouthReader) else reader.faces().opening
        except TalkingHeadError as error:
            self._why_not = f"the reader of photographed faces follows none: {error}"
            return None

    def _of(self, name: str, value: float | None) -> Measure:
        return Measure.of(name, value, self._why_not if value is None else None)


def not_taken() -> list[Measure]:
    """The measures of a video with one speaker."""
    return [Measure.of(name, None, ONE_SPEAKER) for name in (OWN, OTHER, SILENT)]


def _follows(openings: lips.Openings, voice: Wave) -> float:
    """A mouth's correlation with a voice's loudness; 0 for a mouth that does not move."""
    return lips.correlation_with_loudness(openings, voice, SAMPLE_RATE) or 0.0


def _silent_share(read: Sequence[tuple[Person, Person, lips.Openings]]) -> float | None:
    """Mean opening in frames without the own voice, over that in frames with it; of all mouths together."""
    silent, spoken = [np.zeros(0)], [np.zeros(0)]
    for person, _, opening in read:
        quiet = lips.silent_frames(person.voice, SAMPLE_RATE, len(opening))
        silent.append(opening[quiet])
        spoken.append(opening[~quiet])
    shut, moving = np.concatenate(silent), np.concatenate(spoken)
    if not len(shut) or not len(moving) or moving.mean() <= 0:
        return None
    return float(shut.mean() / moving.mean())


def _square(box: tuple[int, int, int, int], width: int, height: int) -> tuple[int, int, int, int]:
    """The square around a presenter's head and shoulders that the mouth reader takes, within the frame."""
    left, top, right, bottom = box
    side = min(width, height, round(max(right - left, bottom - top) / SHARE_OF_SQUARE))
    x = min(max(0, (left + right - side) // 2), width - side)
    y = min(max(0, (top + bottom - side) // 2), height - side)
    return x, y, x + side, y + side
