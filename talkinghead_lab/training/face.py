"""Drawing the head without hair: skull, ears, eyes, brows, nose, mouth, beard and glasses.

Head units are canvas units of an upright, centred head at scale 1. `x`, `y` follow the silhouette. `u`, `v`
follow the skin of a turning and nodding head, so features drawn in them move as on an ellipsoid.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from talkinghead_lab.training.shapes import (
    Canvas,
    box,
    bump,
    circle,
    ellipse,
    smooth_union,
    smoothstep,
    superellipse,
)

HEAD_CENTRE_Y = 0.0
FIT = 1.07  # canvas units in a head unit
EYE_LINE = -0.05
MOUTH_LINE = 0.30
TOP = 0.53  # from the head's centre to the top of the skull
MOUTH_HEIGHT = 0.21  # gap between the lips of a fully open mouth
JAW_DROP = 0.055  # how far the chin moves down with a fully open mouth
BALL = (0.60, 0.80, 0.52)  # half axes of the ellipsoid under the skin: across, down, towards the viewer

Numbers = dict[str, Tensor]


@dataclass(frozen=True)
class HeadSpace:
    """Coordinates of a canvas in head units, each [N, H, W]; see the module docstring."""

    x: Tensor
    y: Tensor
    u: Tensor
    v: Tensor
    sin_turn: Tensor
    sin_nod: Tensor

    def within(self, window: Canvas) -> "HeadSpace":
        """The same coordinates in a window of the canvas."""
        x, y, u, v = (window.crop(t) for t in (self.x, self.y, self.u, self.v))
        return HeadSpace(x, y, u, v, self.sin_turn, self.sin_nod)

    @classmethod
    def on(cls, canvas: Canvas, motion: Numbers) -> "HeadSpace":
        """Undo shift, scale and tilt for `x`, `y`; also undo turn and nod for `u`, `v`."""
        left = (canvas.x - motion["shift_x"]) / (motion["scale"] * FIT)
        down = (canvas.y - motion["shift_y"] - HEAD_CENTRE_Y) / (motion["scale"] * FIT)
        tilt, turn, nod = (torch.deg2rad(motion[name]) for name in ("tilt", "turn", "nod"))
        # The head tilts about the neck, not about its centre.
        pivot = 0.45
        cosine, sine = torch.cos(tilt), torch.sin(tilt)
        x = cosine * left + sine * (down - pivot)
        y = cosine * (down - pivot) - sine * left + pivot
        across, height, depth = BALL
        front = (1 - (x / across) ** 2 - (y / height) ** 2).clamp_min(0.02).sqrt() * depth
        u = x * torch.cos(turn) - front * torch.sin(turn)
        v = y * torch.cos(nod) - front * torch.sin(nod)
        return cls(x, y, u, v, torch.sin(turn), torch.sin(nod))


def head_distance(space: HeadSpace, who: Numbers, motion: Numbers, grow: float = 0.0) -> Tensor:
    """Distance to the outline of skull and jaw; the jaw drops with the opening and swings with the turn."""
    chin = who["chin"] + JAW_DROP * motion["opening"] + 0.09 * space.sin_nod + grow
    lower = (space.y / chin).clamp(0, 1.2)
    x = space.x - 0.10 * space.sin_turn * lower
    width = (who["face_width"] + grow) * (1 - who["taper"] * lower * lower)
    power = torch.where(space.y > 0, who["jaw"], torch.full_like(who["jaw"], 2.15))
    return superellipse(x, space.y, width, torch.where(space.y > 0, chin, TOP + grow), power)


def shadow_tone(who: Numbers) -> Tensor:
    """Factor for skin in shade: darker, and redder because light passes through skin."""
    tone = torch.tensor([0.80, 0.66, 0.64], device=who["skin"].device).view(1, 3, 1, 1)
    return tone.expand_as(who["skin"])


def draw_ears(canvas: Canvas, space: HeadSpace, who: Numbers) -> None:
    """Draw the ears; the one on the far side of a turn moves forward."""
    skin = who["skin"]
    for side in (-1.0, 1.0):
        x = (space.x + 0.09 * space.sin_turn) * side - (who["face_width"] + 0.015)
        y = space.y - 0.03 - 0.05 * space.sin_nod
        outer = ellipse(x, y + 0.12 * x, 0.068 * who["ear"], 0.125 * who["ear"])
        coverage = canvas.inside(outer)
        canvas.paint(coverage, skin * 0.97)
        canvas.shade(coverage * bump((outer + 0.05) / 0.035) * 0.6, shadow_tone(who))
        pearl = circle(x + 0.005, y - 0.15, 0.022)
        canvas.paint(
            canvas.inside(pearl) * who["earring"], skin.new_tensor([0.98, 0.86, 0.5]).view(1, 3, 1, 1)
        )


def draw_head(canvas: Canvas, space: HeadSpace, who: Numbers, motion: Numbers) -> Tensor:
    """Draw skin, soft light and cheeks; return the head's coverage, which clips what is drawn on it."""
    outline = head_distance(space, who, motion)
    coverage = canvas.inside(outline)
    canvas.paint(coverage, who["skin"])
    tone = shadow_tone(who)
    light = space.x * who["light_side"] * 1.1 + space.y * 0.55 + 0.30 * space.u * space.u
    canvas.shade(coverage * smoothstep(-0.05, 0.62, light) * 0.62, tone)
    canvas.shade(coverage * smoothstep(-0.10, 0.01, outline) * 0.28, tone)
    glow = bump((space.u + 0.16 * who["light_side"]) / 0.42) * bump((space.v + 0.24) / 0.34)
    canvas.paint(coverage * glow * 0.20, 0.45 + 0.55 * who["skin"])
    blush = sum(
        bump(torch.hypot(space.u - side * 0.25, (space.v - 0.14 + 0.03 * motion["smile"]) * 1.25) / 0.16)
        for side in (-1, 1)
    )
    red = who["skin"].new_tensor([1.02, 0.74, 0.72]).view(1, 3, 1, 1)
    canvas.shade(coverage * blush * (0.55 * who["blush"]), red)
    if who["freckles"].any():
        spots = sum(
            canvas.inside(circle(space.u.abs() - dx, space.v - dy, 0.007))
            for dx, dy in ((0.17, 0.07), (0.21, 0.10), (0.25, 0.06), (0.29, 0.10), (0.13, 0.11), (0.23, 0.14))
        )
        canvas.shade(spots * who["freckles"] * 0.45, tone)
    return coverage


def draw_nose(canvas: Canvas, space: HeadSpace, who: Numbers) -> None:
    """Draw the nose as shadows and a highlight; it protrudes, so it moves further than the skin around it."""
    tone = shadow_tone(who)
    x = space.u - 0.10 * space.sin_turn
    y = space.v - who["nose_length"] - 0.05 * space.sin_nod
    width = who["nose_width"]
    side = x * who["light_side"]
    bridge = bump((side - 0.035) / 0.05) * bump((y + 0.11) / 0.15)
    canvas.shade(bridge * 0.40, tone)
    under = bump((y - 0.045) / 0.045) * bump(x / (width * 1.5))
    canvas.shade(under * 0.55, tone)
    wings = smooth_union(ellipse(x.abs() - width * 0.72, y - 0.008, width * 0.42, 0.030),
                         ellipse(x, y, width * 0.72, 0.046), 0.03)  # fmt: skip
    canvas.paint(canvas.inside(wings) * bump(y / 0.14) * 0.7, who["skin"])
    canvas.shade(
        smoothstep(-0.016, 0.0, wings) * canvas.inside(wings) * smoothstep(-0.005, 0.04, y) * 0.55, tone
    )
    nostril = ellipse(x.abs() - width * 0.48, y - 0.030 + 0.1 * x.abs(), width * 0.24, 0.011)
    canvas.shade(canvas.inside(nostril) * 0.75, tone * 0.62)
    shine = bump(torch.hypot(x + 0.014 * who["light_side"], y + 0.010) / 0.034)
    canvas.paint(shine * 0.45, 0.35 + 0.65 * who["skin"])


def draw_eyes(canvas: Canvas, space: HeadSpace, who: Numbers, motion: Numbers) -> None:
    """Draw both eyes with lids, lashes and brows."""
    for side in (-1.0, 1.0):
        x = (space.u - side * who["eye_spacing"]) * side / who["eye_size"]
        y = (space.v - EYE_LINE) / who["eye_size"] + who["eye_tilt"] * x
        _draw_eye(canvas, x, y, side, who, motion)
        _draw_brow(canvas, space, side, who, motion)


def _draw_eye(canvas: Canvas, x: Tensor, y: Tensor, side: float, who: Numbers, motion: Numbers) -> None:
    """Draw one eye; `x` grows towards the temple, `y` downwards, both in units of a typical eye."""
    half_width, upper, lower = 0.112, 0.086, 0.052
    squint = 0.30 * motion["smile"].clamp_min(0)
    t = (x / half_width).clamp(-1, 1).abs()
    arch = 1 - t**2.4
    low = lower * arch * (1 - squint)
    high = torch.lerp(-upper * arch * (1 - 0.3 * squint), low * 0.75 + 0.012, motion["blink"])
    slope = torch.sqrt(1 + (2.4 * t**1.4 * upper / half_width * (1 - motion["blink"])) ** 2)
    lens = torch.maximum(torch.maximum((high - y) / slope, (y - low) / slope), x.abs() - half_width)
    socket = bump(x / (half_width * 1.5)) * bump((y + 0.03) / 0.15)
    canvas.shade(socket * 0.28, shadow_tone(who))
    coverage = canvas.inside(lens)
    white = who["skin"].new_tensor([0.985, 0.975, 0.965]).view(1, 3, 1, 1)
    canvas.paint(coverage, white)
    canvas.shade(coverage * smoothstep(0.045, 0.0, y - high) * 0.55, white * 0.62)
    _draw_iris(canvas, x, y, coverage, side, who, motion)
    ink = who["skin"].new_tensor([0.10, 0.06, 0.06]).view(1, 3, 1, 1)
    flick = who["lash"] * 0.020 * (x / half_width).clamp(0, 1.25) ** 2
    thickness = (0.0105 + 0.007 * who["lash"] + 0.3 * flick) * smoothstep(1.3, 0.75, x.abs() / half_width)
    rim = torch.maximum(
        (y - high + flick).abs() / slope - thickness, x.abs() - half_width * (1.04 + 0.14 * who["lash"])
    )
    canvas.paint(canvas.inside(rim), ink)
    below = torch.maximum((y - low).abs() / slope - 0.004, x.abs() - half_width)
    canvas.paint(canvas.inside(below) * 0.35, ink)
    fold = torch.lerp(-upper * arch, high, 0.45 * motion["blink"]) - 0.034
    crease = torch.maximum((y - fold).abs() - 0.005, x.abs() - half_width * 0.95)
    canvas.shade(canvas.inside(crease) * 0.75, shadow_tone(who))


def _draw_iris(
    canvas: Canvas, x: Tensor, y: Tensor, coverage: Tensor, side: float, who: Numbers, motion: Numbers
) -> None:
    dx = x - side * motion["gaze_x"] * 0.042
    dy = y - motion["gaze_y"] * 0.030 + 0.008
    iris = circle(dx, dy, 0.063)
    colour = who["iris"] * (0.75 + 0.5 * smoothstep(-0.05, 0.05, dy)).unsqueeze(1)
    canvas.paint(coverage * canvas.inside(iris), colour)
    canvas.shade(
        coverage * canvas.inside(iris) * smoothstep(-0.022, 0.0, iris) * 0.8, who["iris"] * 0.3 + 0.12
    )
    canvas.paint(coverage * canvas.inside(circle(dx, dy, 0.030)), who["iris"] * 0.12)
    glint = 0.020 * side * who["light_side"]
    spark = torch.minimum(circle(dx + glint, dy + 0.026, 0.0175), circle(dx - glint, dy - 0.026, 0.008))
    canvas.paint(coverage * canvas.inside(spark), torch.ones_like(who["iris"]))


def _draw_brow(canvas: Canvas, space: HeadSpace, side: float, who: Numbers, motion: Numbers) -> None:
    x = (space.u - side * who["eye_spacing"]) * side
    t = x / 0.135
    raised = 0.045 * motion["brows"]
    line = EYE_LINE - 0.138 - raised - who["brow_arch"] * (1 - (t - 0.15) ** 2) + 0.022 * t * t.abs()
    thickness = who["brow_thickness"] * (
        1 - 0.55 * smoothstep(-0.1, 1.0, t) - 0.35 * smoothstep(-0.5, -1.1, t)
    )
    brow = torch.maximum((space.v - line).abs() - thickness, (t - 0.02).abs() * 0.135 - 0.132)
    canvas.paint(canvas.inside(brow) * 0.92, who["brow_colour"])


@dataclass(frozen=True)
class MouthShape:
    """Mouth of each frame: coordinates `x`, `y` bent along the lips, and half sizes of the gap."""

    x: Tensor
    y: Tensor
    half_width: Tensor
    above: Tensor
    below: Tensor

    @classmethod
    def on(cls, space: HeadSpace, who: Numbers, motion: Numbers) -> "MouthShape":
        """Mouth shape of a face for its mouth channels and smile."""
        half_width = who["mouth_width"] * (1 + 0.20 * motion["width"]) * (1 - 0.42 * motion["rounding"])
        half_width = half_width + 0.028 * motion["smile"]
        x = space.u - 0.035 * space.sin_turn
        across = (x / half_width).clamp(-1.3, 1.3)
        bend = (motion["smile"] + 0.40) * (0.020 - 0.070 * across * across)
        y = space.v - MOUTH_LINE - bend - 0.02 * space.sin_nod
        gap = motion["opening"] * MOUTH_HEIGHT
        return cls(x, y, half_width, 0.26 * gap + 0.004, 0.74 * gap + 0.004)

    def distance(self, grow_x: Tensor | float, grow_up: Tensor | float, grow_down: Tensor | float) -> Tensor:
        """Distance to the gap between the lips, enlarged sideways, up and down to cover the lips."""
        radius = torch.where(self.y < 0, self.above + grow_up, self.below + grow_down)
        return ellipse(self.x, self.y, self.half_width + grow_x, radius)


def draw_mouth(canvas: Canvas, space: HeadSpace, who: Numbers, motion: Numbers) -> None:
    """Draw the lips, then the dark inside of the mouth with tongue and teeth."""
    mouth = MouthShape.on(space, who, motion)
    full = who["lip_fullness"] * (1 + 0.25 * motion["rounding"] - 0.18 * motion["smile"])
    bow = 1 - 0.22 * bump(mouth.x / 0.045)
    lips = mouth.distance(0.020, 0.042 * full * bow, 0.054 * full)
    coverage = canvas.inside(lips)
    tone = shadow_tone(who)
    fold = bump((mouth.y - mouth.below - 0.054 * full - 0.035) / 0.035) * bump(mouth.x / 0.11)
    canvas.shade(fold * 0.40, tone)
    canvas.paint(coverage, who["lip_colour"])
    canvas.shade(coverage * smoothstep(0.006, -0.02, mouth.y) * 0.55, tone)
    shine = bump(mouth.x / 0.085) * bump((mouth.y - mouth.below - 0.026 * full) / (0.016 * full))
    canvas.paint(coverage * shine * 0.30, torch.ones_like(who["lip_colour"]))
    _draw_inner_mouth(canvas, mouth, who, motion)
    corners = bump(torch.hypot(mouth.x.abs() - mouth.half_width - 0.012, mouth.y) / 0.032)
    canvas.shade(corners * 0.55, tone * 0.8)


def _draw_inner_mouth(canvas: Canvas, mouth: MouthShape, who: Numbers, motion: Numbers) -> None:
    inner = canvas.inside(mouth.distance(0.0, 0.0, 0.0))
    fixed = {name: who["skin"].new_tensor(rgb).view(1, 3, 1, 1) for name, rgb in _MOUTH_COLOURS.items()}
    canvas.paint(inner, fixed["dark"])
    tongue = ellipse(
        mouth.x, mouth.y - mouth.below - 0.050 + 0.085 * motion["tongue"], mouth.half_width * 0.72, 0.080
    )
    canvas.paint(inner * canvas.inside(tongue) * smoothstep(0.08, 0.25, motion["opening"]), fixed["tongue"])
    curve = 0.012 * (mouth.x / mouth.half_width) ** 2
    upper = mouth.y + mouth.above - 0.058 * motion["teeth"] + curve
    room = smoothstep(0.02, 0.09, motion["opening"])
    canvas.paint(inner * canvas.inside(upper) * room * smoothstep(0.05, 0.3, motion["teeth"]), fixed["teeth"])
    lower = mouth.below - mouth.y - 0.030 * (motion["teeth"] - 0.35).clamp_min(0) + curve
    canvas.paint(
        inner * canvas.inside(lower) * room * smoothstep(0.4, 0.7, motion["teeth"]), fixed["teeth"] * 0.93
    )
    canvas.shade(inner * smoothstep(0.03, 0.0, mouth.y + mouth.above) * room * 0.5, fixed["dark"] + 0.35)


_MOUTH_COLOURS = {"dark": (0.27, 0.045, 0.075), "tongue": (0.83, 0.33, 0.36), "teeth": (0.98, 0.965, 0.94)}


def draw_beard(canvas: Canvas, space: HeadSpace, who: Numbers, motion: Numbers, head: Tensor) -> None:
    """Draw stubble, full beard, goatee or moustache; they follow the lips and end at the jaw."""
    mouth = MouthShape.on(space, who, motion)
    lips = mouth.distance(0.026, 0.044, 0.056)
    cheek = 0.13 + 0.50 * (0.40 - space.u.abs()).clamp_min(0) - 0.65 * (0.22 - space.u.abs()).clamp_min(0)
    jaw = (cheek - space.v) * 0.85
    above_lip = box(mouth.x, mouth.y + mouth.above + 0.072 - 0.30 * mouth.x.abs() ** 1.5, 0.145, 0.030, 0.028)
    goatee = superellipse(mouth.x, mouth.y - mouth.below - 0.09, 0.115, 0.14, 2.6)
    hair = who["brow_colour"] * 0.5 + who["hair_colour"] * 0.5
    soft = head * smoothstep(0.05, -0.03, torch.maximum(jaw, -lips - 0.02))
    canvas.paint(soft * who["beard.stubble"] * 0.38, hair)
    full = torch.maximum(torch.minimum(jaw, above_lip), 0.002 - lips)
    for name, distance in (
        ("full", full),
        ("goatee", torch.minimum(goatee, above_lip)),
        ("moustache", above_lip),
    ):
        if who[f"beard.{name}"].any():
            coverage = head * canvas.inside(distance) * who[f"beard.{name}"]
            canvas.paint(coverage, hair)
            canvas.shade(coverage * smoothstep(-0.05, 0.0, distance) * 0.3, 1.25)


def draw_temples(canvas: Canvas, space: HeadSpace, who: Numbers) -> None:
    """Draw the temples of the glasses, which run under the hair to the ears."""
    worn = who["glasses.round"] + who["glasses.square"]
    arm = torch.maximum((space.v - EYE_LINE + 0.040).abs() - 0.012, who["eye_spacing"] + 0.13 - space.u.abs())
    canvas.paint(
        canvas.inside(torch.maximum(arm, space.x.abs() - who["face_width"])) * worn, who["glasses_colour"]
    )


def draw_glasses(canvas: Canvas, space: HeadSpace, who: Numbers) -> None:
    """Draw the glasses; they stand off the face, so they slide over it as the head turns."""
    worn = who["glasses.round"] + who["glasses.square"]
    if not worn.any():
        return
    x, y = space.u - 0.03 * space.sin_turn, space.v - EYE_LINE - 0.012
    aside = x.abs() - who["eye_spacing"]
    square = box(aside, y, 0.150, 0.115, 0.045)
    lens = torch.where(who["glasses.round"] > 0, superellipse(aside, y, 0.142, 0.136, 2.2), square)
    bridge = torch.maximum((y + 0.02 + 0.5 * x * x).abs() - 0.010, x.abs() - 0.06)
    canvas.shade(canvas.inside((lens - 0.02).abs() - 0.012) * worn * 0.25, shadow_tone(who))
    canvas.paint(canvas.inside(lens) * worn * 0.07, torch.ones_like(who["skin"]))
    streak = bump((aside * 0.8 + y * 0.6 + 0.03) / 0.045)
    canvas.paint(canvas.inside(lens) * streak * worn * 0.16, torch.ones_like(who["skin"]))
    frame = torch.minimum(lens.abs() - 0.0125, torch.maximum(bridge, -lens))
    canvas.paint(canvas.inside(frame) * worn, who["glasses_colour"])
