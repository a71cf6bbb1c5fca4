"""How the head and face move, and the words that say so.

A `Performance` names an action, an expression and a caption; `perform` turns it into tracks. Left and right
are the viewer's. Idle motion is a sum of slow sines, so that a track has no corners.
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
    """What a clip shows: a key of ACTIONS, a key of EXPRESSIONS, and the caption that asks for them."""

    action: str
    expression: str
    caption: str


def caption_for(action: str, expression: str, dice: np.random.Generator) -> str:
    """A short phrase for an action and an expression, in one of many wordings."""
    details = [str(dice.choice(words)) for words in (ACTIONS[action], EXPRESSIONS[expression])]
    details = [words for words in details if words]
    if len(details) == 2 and dice.random() < 0.5:
        details.reverse()
    joined = str(dice.choice([" and ", ", "])).join(details)
    form = dice.random()
    if form < 0.25 and joined:
        return joined
    subject, verb = str(dice.choice(SUBJECTS)), str(dice.choice(VERBS))
    return f"{subject} {verb}{', ' if form < 0.7 and joined else ' '}{joined}".strip()


def sample_performance(dice: np.random.Generator) -> Performance:
    """An action, half of the time with a smile or without, and a caption that names it."""
    action = str(dice.choice(list(ACTIONS)))
    expression = "smiling" if dice.random() < 0.3 else "neutral"
    return Performance(action, expression, caption_for(action, expression, dice))


def perform(performance: Performance, frames: int, dice: np.random.Generator) -> tuple[Tensor, Tensor]:
    """The head and face of a performance that begins facing the viewer.

    Returns:
        `pose` [F, 6] and `face` [F, 5], the channels of `avatar.Motion`; poses lie within `POSE_LIMITS`.
    """
    time = np.arange(frames) / FRAMES_PER_SECOND
    pose = dict(zip(_POSE, _idle(performance.action, time, dice), strict=True))
    gaze_x, gaze_y = 0.25 * _glances(time, dice), 0.15 * _glances(time, dice)
    brows = 0.25 * _drift(time, 0.5, dice)
    side = {"left": -1.0, "right": 1.0}.get(performance.action, 0.0)
    if performance.action == "nodding":
        pose["nod"] += dice.uniform(6, 10) * _sway(time, dice)
    elif performance.action == "shaking":
        pose["turn"] += dice.uniform(9, 15) * _sway(time, dice)
    elif side:
        amount = side * _arrive(time, dice)
        pose["turn"] += dice.uniform(12, 17) * amount
        gaze_x = gaze_x + 0.6 * amount
    elif performance.action == "up":
        amount = _arrive(time, dice)
        pose["nod"] -= dice.uniform(7, 11) * amount
        gaze_y, brows = gaze_y - 0.6 * amount, brows + 0.3 * amount
    elif performance.action == "leaning":
        amount = _arrive(time, dice)
        pose["scale"] += dice.uniform(0.09, 0.13) * amount
        pose["shift_y"] += 0.03 * amount
    elif performance.action == "lively":
        brows = brows + 0.5 * _drift(time, 1.0, dice)
    resting = (
        dice.uniform(0.65, 1.0) if performance.expression == "smiling" else 0.08 * dice.standard_normal()
    )
    smile = resting + 0.06 * _drift(time, 0.4, dice)
    limited = [np.clip(pose[name], *POSE_LIMITS[name]) for name in _POSE]
    face: list[Any] = [gaze_x, gaze_y, _blinks(frames, dice), brows, smile]
    return _tracks(limited, 90), _tracks(np.broadcast_arrays(*face), 1)


def _tracks(channels: Sequence[np.ndarray], limit: float) -> Tensor:
    """[frames, channels], clamped."""
    return torch.tensor(np.stack(channels, 1), dtype=torch.float32).clamp(-limit, limit)


def _drift(time: np.ndarray, pace: float, dice: np.random.Generator) -> np.ndarray:
    """A smooth wander of about unit size: four sines of 0.15 to 0.8 Hz, times `pace`."""
    hertz = pace * dice.uniform(0.15, 0.8, 4)
    phase = dice.uniform(0, 2 * math.pi, 4)
    return np.sin(2 * math.pi * hertz[:, None] * time + phase[:, None]).sum(0) * 0.55


def _idle(action: str, time: np.ndarray, dice: np.random.Generator) -> list[np.ndarray]:
    turn, nod, tilt, shift, scale = _IDLE.get(action, _DEFAULT_IDLE)
    pace = 1.3 if action == "lively" else 0.7
    sizes = (turn, nod, tilt, shift, 0.6 * shift, scale)
    wander = [size * _drift(time, pace, dice) for size in sizes]
    wander[-1] = wander[-1] + 1
    return wander


def _sway(time: np.ndarray, dice: np.random.Generator) -> np.ndarray:
    """A to and fro of 0.8 to 1.3 Hz that starts softly and never quite stops."""
    strength = 0.8 + 0.2 * np.sin(2 * math.pi * 0.23 * time + dice.uniform(0, 6))
    start = np.clip(time / 0.4, 0, 1)
    return start * strength * np.sin(2 * math.pi * dice.uniform(0.8, 1.3) * time + dice.choice([0, math.pi]))


def _arrive(time: np.ndarray, dice: np.random.Generator) -> np.ndarray:
    """0 at first, 1 from about a second on (minimum-jerk, Flash and Hogan 1985)."""
    t = np.clip((time - dice.uniform(0.0, 0.3)) / dice.uniform(0.5, 1.0), 0, 1)
    return t**3 * (10 - 15 * t + 6 * t * t)


def _glances(time: np.ndarray, dice: np.random.Generator) -> np.ndarray:
    """Gaze that holds for one to three seconds and jumps within two frames."""
    targets, holds = dice.normal(0, 1, 512), dice.uniform(1, 3, 512)
    held = targets[np.minimum(np.searchsorted(np.cumsum(holds), time), 511)]
    return np.convolve(np.pad(held, 1, mode="edge"), [0.25, 0.5, 0.25], mode="valid")


def _blinks(frames: int, dice: np.random.Generator) -> np.ndarray:
    """A blink of about a fifth of a second every two to six seconds."""
    track = np.zeros(frames + 8)
    profile = np.array([0.45, 1.0, 1.0, 0.6, 0.2])
    frame = int(dice.uniform(10, 100))
    while frame < frames:
        track[frame : frame + 5] = np.maximum(track[frame : frame + 5], profile)
        frame += int(dice.uniform(2.0, 6.0) * FRAMES_PER_SECOND)
    return track[:frames]
