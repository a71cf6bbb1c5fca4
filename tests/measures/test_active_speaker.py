"""Two drawn presenters whose mouths are known: whose voice each follows, and who is silent."""

import numpy as np
import pytest
import torch
from torch import Generator

from talkinghead_lab.measures import active_speaker
from talkinghead_lab.measures.active_speaker import OTHER, OWN, SILENT, PeopleReader, Person
from talkinghead_lab.training.avatar import Motion, render, sample_identity

FRAMES = 100
LEFT, RIGHT = (26, 13, 134, 157), (186, 13, 294, 157)
SHUT = np.zeros(FRAMES)


def opening(seed: int) -> np.ndarray:
    """Words and pauses of a mouth, 0 shut … 1 wide."""
    draw = np.random.default_rng(seed)
    syllables = np.repeat(draw.uniform(0.2, 0.9, FRAMES // 4), 4) * np.repeat(
        draw.random(FRAMES // 20) > 0.3, 20
    )
    return np.convolve(syllables, np.ones(3) / 3, "same")


def voice(of: np.ndarray) -> np.ndarray:
    """A hum as loud as a mouth is open, [samples] at 16 kHz."""
    times = np.arange(FRAMES * 640) / 16_000
    return (0.3 * np.repeat(of, 640) * np.sin(2 * np.pi * 150 * times)).astype(np.float32)


def video(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Two presenters side by side, uint8 [F, 160, 320, 3]."""
    sides, generator = [], Generator().manual_seed(7)
    for each in (left, right):
        motion = Motion.still(FRAMES)
        motion.mouth[:, 0] = torch.from_numpy(each)
        sides.append(render(sample_identity(generator), motion))
    return ((torch.cat(sides, dim=3) + 1) * 127.5).byte().permute(0, 2, 3, 1).numpy()


def measured(frames: np.ndarray, people: list[Person]) -> dict[str, float | None]:
    reader = PeopleReader(people, cartoon=True, most_frames=FRAMES)
    for pixels in frames:
        reader.add(pixels)
    return {measure.name: measure.value for measure in reader.measures()}


def test_swapped_voices_are_told_from_right_ones():
    first, second = opening(1), opening(2)
    frames = video(first, second)
    right = measured(frames, [Person(LEFT, voice(first)), Person(RIGHT, voice(second))])
    swapped = measured(frames, [Person(LEFT, voice(second)), Person(RIGHT, voice(first))])
    assert right[OWN] > 0.85
    assert swapped[OWN] < 0.5 < 0.85 < swapped[OTHER]
    assert right[OTHER] == pytest.approx(swapped[OWN], abs=0.3)
    assert right[SILENT] < swapped[SILENT]


def test_a_silent_person_who_stays_shut_is_told_from_one_who_does_not():
    said = opening(3)
    people = [Person(LEFT, voice(said)), Person(RIGHT, voice(SHUT))]
    shut, moving = (measured(video(said, other), people) for other in (SHUT, said))
    assert shut[OWN] > 0.85 and moving[OWN] > 0.85
    assert shut[OTHER] < 0.5 < 0.85 < moving[OTHER]
    assert shut[SILENT] < 0.1 < 0.3 < moving[SILENT]


def test_nobody_in_particular_is_silent():
    said = opening(3)
    found = measured(video(said, said), [Person(LEFT, voice(said)), Person(None, voice(SHUT))])
    assert found[OWN] > 0.85
    assert found[OTHER] is None


def test_why_nothing_is_measured_is_said(monkeypatch):
    monkeypatch.delenv("FACE_LANDMARKER", raising=False)
    reader = PeopleReader(
        [Person(LEFT, voice(SHUT)), Person(RIGHT, voice(SHUT))], cartoon=False, most_frames=9
    )
    assert all("FACE_LANDMARKER is not set" in measure.why_not for measure in reader.measures())
    assert {measure.name for measure in active_speaker.not_taken()} == {OWN, OTHER, SILENT}
