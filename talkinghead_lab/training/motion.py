"""Motion of head and face, and captions that describe it.

A `Performance` has an action, an expression and a caption; `perform` turns it into tracks. Left and right are
the viewer's. Idle motion is a sum of slow sines, so tracks are smooth.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from talkinghead_lab.training.avatar import POSE_LIMITS

FRAMES_PER_SECOND = 25

ACTIONS = {
    "still": ("keeping still", "without moving the head", "holding the head still", "perfectly still"),
    "calm": ("calm", "calmly", "with little movement", "moving gently"),
    "lively": ("lively", "with lively movements", "full of energy", "moving a lot"),
    "nodding": ("nodding", "nodding the head", "nodding in agreement", "nodding yes"),
    "shaking": (
        "shaking the head",
        "shaking the head no",
        "turning the head from side to side",
        "disagreeing",
    ),
    "left": ("looking left", "looking to the left", "turned to the left", "facing left"),
    "right": ("looking right", "looking to the right", "turned to the right", "facing right"),
    "up": ("looking up", "looking upwards", "raising the head", "with the head raised"),
    "leaning": ("leaning in", "leaning forward", "coming closer", "moving towards the camera"),
    "talking": ("", "to the camera", "in a room", "facing the camera"),
}
EXPRESSIONS = {
    "neutral": ("",),
    "smiling": ("smiling", "with a smile", "happily", "in a friendly way"),
}
SUBJECTS = ("a person", "a presenter", "someone", "the speaker", "a drawn presenter", "a portrait")
VERBS = ("talks", "is talking", "speaks", "is speaking", "talking", "speaking")

# Idle amplitude of each action: turn, nod and tilt in degrees, then shift in half-pictures and scale.
_IDLE = {
    "still": (0.25, 0.2, 0.15, 0.001, 0.001),
    "calm": (1.5, 1.0, 0.7, 0.006, 0.004),
    "lively": (9.0, 5.0, 4.0, 0.030, 0.020),
}
_DEFAULT_IDLE = (2.5, 1.6, 1.2, 0.010, 0.006)
_POSE = tuple(POSE_LIMITS)


@dataclass(frozen=True)
class Performance:
    """Content of a clip: a key of ACTIONS, a key of EXPRESSIONS, and the caption that describes them."""

    action: str
    expression: str
    caption: str


def caption_for(action: str, expression: str, rng: np.random.Generator) -> str:
    """A short phrase for an action and an expression, with random wording."""
    details = [str(rng.choice(words)) for words in (ACTIONS[action], EXPRESSIONS[expression])]
    details = [words for words in details if words]
    if len(details) == 2 and rng.random() < 0.5:
        details.reverse()
    joined = str(rng.choice([" and ", ", "])).join(details)
    form = rng.random()
    if form < 0.25 and joined:
        return joined
    subject, verb = str(rng.choice(SUBJECTS)), str(rng.choice(VERBS))
    return f"{subject} {verb}{', ' if form < 0.7 and joined else ' '}{joined}".strip()


def sample_performance(rng: np.random.Generator) -> Performance:
    """A random action, smiling in three of ten cases, and a caption that describes it."""
    action = str(rng.choice(list(ACTIONS)))
    expression = "smiling" if rng.random() < 0.3 else "neutral"
    return Performance(action, expression, caption_for(action, expression, rng))


def perform(performance: Performance, frames: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Tracks of a performance that starts facing the viewer.

    Returns:
        `pose` [F, 6] and `face` [F, 5], the channels of `avatar.Motion`; poses are within `POSE_LIMITS`.
    """
    time = np.arange(frames) / FRAMES_PER_SECOND
    pose = dict(zip(_POSE, _idle(performance.action, time, rng), strict=True))
    gaze_x, gaze_y = 0.25 * _glances(time, rng), 0.15 * _glances(time, rng)
    brows = 0.25 * _drift(time, 0.5, rng)
    side = {"left": -1.0, "right": 1.0}.get(performance.action, 0.0)
    if performance.action == "nodding":
        pose["nod"] += rng.uniform(6, 10) * _sway(time, rng)
    elif performance.action == "shaking":
        pose["turn"] += rng.uniform(9, 15) * _sway(time, rng)
    elif side:
        amount = side * _arrive(time, rng)
        pose["turn"] += rng.uniform(12, 17) * amount
        gaze_x = gaze_x + 0.6 * amount
    elif performance.action == "up":
        amount = _arrive(time, rng)
        pose["nod"] -= rng.uniform(7, 11) * amount
        gaze_y, brows = gaze_y - 0.6 * amount, brows + 0.3 * amount
    elif performance.action == "leaning":
        amount = _arrive(time, rng)
        pose["scale"] += rng.uniform(0.09, 0.13) * amount
        pose["shift_y"] += 0.03 * amount
    elif performance.action == "lively":
        brows = brows + 0.5 * _drift(time, 1.0, rng)
    resting = rng.uniform(0.65, 1.0) if performance.expression == "smiling" else 0.08 * rng.standard_normal()
    smile = resting + 0.06 * _drift(time, 0.4, rng)
    limited = [np.clip(pose[name], *POSE_LIMITS[name]) for name in _POSE]
    face: list[Any] = [gaze_x, gaze_y, _blinks(frames, rng), brows, smile]
    return _tracks(limited, 90), _tracks(np.broadcast_arrays(*face), 1)


def _tracks(channels: Sequence[np.ndarray], limit: float) -> Tensor:
    """Stack channels to [frames, channels], clamped to ±`limit`."""
    return torch.tensor(np.stack(channels, 1), dtype=torch.float32).clamp(-limit, limit)


def _drift(time: np.ndarray, pace: float, rng: np.random.Generator) -> np.ndarray:
    """Smooth drift of about unit size: four sines of 0.15 to 0.8 Hz, times `pace`."""
    hertz = pace * rng.uniform(0.15, 0.8, 4)
    phase = rng.uniform(0, 2 * math.pi, 4)
    drift: np.ndarray = np.sin(2 * math.pi * hertz[:, None] * time + phase[:, None]).sum(0) * 0.55
    return drift


def _idle(action: str, time: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    turn, nod, tilt, shift, scale = _IDLE.get(action, _DEFAULT_IDLE)
    pace = 1.3 if action == "lively" else 0.7
    sizes = (turn, nod, tilt, shift, 0.6 * shift, scale)
    wander = [size * _drift(time, pace, rng) for size in sizes]
    wander[-1] = wander[-1] + 1
    return wander


def _sway(time: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Oscillation of 0.8 to 1.3 Hz with a soft start and slowly varying strength."""
    strength = 0.8 + 0.2 * np.sin(2 * math.pi * 0.23 * time + rng.uniform(0, 6))
    start = np.clip(time / 0.4, 0, 1)
    swing = np.sin(2 * math.pi * rng.uniform(0.8, 1.3) * time + rng.choice([0, math.pi]))
    swayed: np.ndarray = start * strength * swing
    return swayed


def _arrive(time: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Ramp from 0 to 1 within about a second (minimum jerk, Flash and Hogan 1985)."""
    t = np.clip((time - rng.uniform(0.0, 0.3)) / rng.uniform(0.5, 1.0), 0, 1)
    return t**3 * (10 - 15 * t + 6 * t * t)


def _glances(time: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Gaze targets held for one to three seconds, with jumps over two frames."""
    targets, holds = rng.normal(0, 1, 512), rng.uniform(1, 3, 512)
    held = targets[np.minimum(np.searchsorted(np.cumsum(holds), time), 511)]
    return np.convolve(np.pad(held, 1, mode="edge"), [0.25, 0.5, 0.25], mode="valid")


def _blinks(frames: int, rng: np.random.Generator) -> np.ndarray:
    """Blinks of about 0.2 s every two to six seconds."""
    track = np.zeros(frames + 8)
    profile = np.array([0.45, 1.0, 1.0, 0.6, 0.2])
    frame = int(rng.uniform(10, 100))
    while frame < frames:
        track[frame : frame + 5] = np.maximum(track[frame : frame + 5], profile)
        frame += int(rng.uniform(2.0, 6.0) * FRAMES_PER_SECOND)
    return track[:frames]
