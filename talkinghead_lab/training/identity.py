"""A presenter's looks as plain numbers, and sampling of new presenters."""

from bisect import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import accumulate
from typing import TypeVar

import torch
from torch import Generator, Tensor

Colour = tuple[float, float, float]

# Seeds below this number are training presenters; seeds above are for tests and evaluation.
FIRST_TEST_IDENTITY = 1_000_000

SKINS = ("f6d7c3", "f1c9ae", "eab991", "dca57c", "c98f66", "b57a52", "99643f", "7d4e31", "633c27", "4e2f20")
HAIR_COLOURS = (
    "1c1a1f", "2b2024", "3d2a22", "54362a", "704630", "925c35", "b8813f", "d9ae63", "a04a2a",
    "8f8f96", "d8d6d8", "7a3140",
)  # fmt: skip
IRISES = ("3b2618", "553519", "7a5426", "5d7039", "3f7a63", "3f78a8", "5b7f99", "6d7780")
CLOTHES = (
    "2f4a7c", "b8433a", "2e7d6b", "e0a03a", "6b4a8c", "3a3f4c", "d9d4cc", "c4677f", "4d8fb8",
    "7b8a3c", "20304a", "8c3f34",
)  # fmt: skip
BACKDROPS = (
    "9fc4d8", "e8cfa8", "b9d3b0", "d9b8c4", "a9a6cf", "e2d8cc", "7fa8b8", "c9cdd6", "e6b89a",
    "6f8296",
)  # fmt: skip
LIPS = ("c4605c", "b04a52", "d07a72")
FRAMES = ("23242a", "5a3522", "7a2432", "2f3f63", "b08a4a")

HAIR_STYLES = (
    "short", "crop", "side", "fringe", "long", "parted", "bob", "bun", "curly", "afro", "bald",
    "quiff",
)  # fmt: skip
GLASSES = ("none", "round", "square")
BEARDS = ("none", "stubble", "full", "goatee", "moustache")
CLOTHES_STYLES = ("tee", "stripes", "vneck", "hoodie", "suit", "turtleneck", "shirt")
BACKDROP_STYLES = ("plain", "circle", "window", "shelves", "lamp", "arch")


@dataclass(frozen=True)
class Hair:
    """Silhouette and hairline of a hair style, in head units (a head is about one unit tall).

    `volume_*` is the distance of the hair from the skull. `line` is the height of the hairline at the parting
    (negative is up), `swoop_*` how fast it drops to either side, `side` how far down it reaches in front of
    the ears. `length` is the lower end of the hair behind the head (0: none) and `spread` its half-width.
    """

    volume_top: float
    volume_side: float
    line: float
    part: float
    swoop_left: float
    swoop_right: float
    side: float
    corner: float
    scallop: float
    curl: float
    length: float
    spread: float
    wave: float
    bun: float
    tuft: float


@dataclass(frozen=True)
class Identity:
    """One presenter. Colours are sRGB in 0 … 1, sizes are in head units, styles are listed in this module."""

    skin: Colour
    blush: float
    face_width: float
    jaw: float
    taper: float
    chin: float
    ear: float
    eye_spacing: float
    eye_size: float
    eye_tilt: float
    iris: Colour
    lash: float
    brow_colour: Colour
    brow_thickness: float
    brow_arch: float
    nose_width: float
    nose_length: float
    mouth_width: float
    lip_fullness: float
    lip_colour: Colour
    freckles: float
    age: float
    hair_style: str
    hair: Hair
    hair_colour: Colour
    glasses: str
    glasses_colour: Colour
    beard: str
    clothes: str
    clothes_colour: Colour
    accent_colour: Colour
    shoulders: float
    neck: float
    earring: float
    backdrop: str
    backdrop_colour: Colour
    light_side: float
    light_warmth: float


def rgb(code: str) -> Colour:
    """Colour of a hexadecimal code."""
    red, green, blue = (int(code[index : index + 2], 16) / 255 for index in (0, 2, 4))
    return red, green, blue


def mix(first: Colour, second: Colour, amount: float) -> Colour:
    """Linear interpolation from the first colour to the second."""
    red, green, blue = (a + (b - a) * amount for a, b in zip(first, second, strict=True))
    return red, green, blue


Choice = TypeVar("Choice")


class _Choices:
    """Random choices from one batch of numbers, so that an identity depends on its seed alone."""

    def __init__(self, generator: Generator) -> None:
        self.numbers: Iterator[float] = iter(torch.rand(256, generator=generator).tolist())

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * next(self.numbers)

    def chance(self, probability: float) -> bool:
        return next(self.numbers) < probability

    def pick(self, options: Sequence[Choice], weights: Sequence[float] | None = None) -> Choice:
        weights = weights or [1.0] * len(options)
        mark = next(self.numbers) * sum(weights)
        return options[min(bisect(list(accumulate(weights)), mark), len(options) - 1)]

    def near(self, colour: Colour) -> Colour:
        red, green, blue = (min(c + self.between(-0.015, 0.015), 1.0) for c in colour)
        return red, green, blue

    def colour(self, codes: Sequence[str], spread: float = 0.03) -> Colour:
        red, green, blue = rgb(self.pick(codes))
        light = self.between(-spread, spread)
        red, green, blue = (
            min(max(c + light + self.between(-spread, spread) / 2, 0.0), 1.0) for c in (red, green, blue)
        )
        return red, green, blue


# Mean values of each style in the order of Hair's fields; sampling varies them slightly.
_HAIR_STYLES = {
    #         top   side  line   part  left  right side  corner scallop curl length spread wave bun tuft
    "short":  (0.09, 0.04, -0.33, 0.00, 0.05, 0.05, 0.02, 6.0, 0.000, 0.00, 0.00, 0.50, 0.00, 0.00, 0.0),
    "crop":   (0.05, 0.02, -0.36, 0.00, 0.10, 0.10, 0.00, 8.0, 0.000, 0.00, 0.00, 0.50, 0.00, 0.00, 0.0),
    "side":   (0.13, 0.05, -0.38, 0.55, 0.22, 0.25, 0.04, 6.0, 0.000, 0.00, 0.00, 0.50, 0.00, 0.00, 0.0),
    "quiff":  (0.16, 0.03, -0.40, 0.30, 0.07, 0.12, 0.00, 7.0, 0.000, 0.00, 0.00, 0.50, 0.00, 0.00, 1.0),
    "fringe": (0.11, 0.07, -0.24, 0.10, 0.02, 0.02, 0.34, 7.0, 0.018, 0.00, 0.72, 0.54, 0.02, 0.00, 0.0),
    "long":   (0.10, 0.06, -0.42, 0.25, 0.34, 0.40, 0.30, 5.0, 0.000, 0.00, 1.05, 0.60, 0.03, 0.00, 0.0),
    "parted": (0.09, 0.06, -0.44, 0.00, 0.38, 0.38, 0.34, 5.0, 0.000, 0.00, 0.95, 0.56, 0.05, 0.00, 0.0),
    "bob":    (0.12, 0.10, -0.40, -0.35, 0.30, 0.26, 0.36, 6.0, 0.000, 0.00, 0.46, 0.60, 0.00, 0.00, 0.0),
    "bun":    (0.06, 0.03, -0.40, 0.10, 0.20, 0.22, 0.02, 6.0, 0.000, 0.00, 0.00, 0.50, 0.00, 0.19, 0.0),
    "curly":  (0.18, 0.12, -0.31, 0.00, 0.06, 0.06, 0.10, 5.0, 0.012, 0.030, 0.00, 0.58, 0.00, 0.00, 0.0),
    "afro":   (0.30, 0.22, -0.34, 0.00, 0.08, 0.08, 0.06, 5.0, 0.010, 0.022, 0.00, 0.64, 0.00, 0.00, 0.0),
    "bald":   (0.00, 0.00, -0.90, 0.00, 0.00, 0.00, -0.04, 9.0, 0.000, 0.00, 0.00, 0.50, 0.00, 0.00, 0.0),
}  # fmt: skip
_FEMININE_ODDS = (0.3, 0.2, 0.6, 1.4, 1.8, 1.4, 1.5, 1.5, 1.0, 0.6, 0.1, 0.1)
_MASCULINE_ODDS = (1.5, 1.2, 1.4, 0.1, 0.25, 0.15, 0.1, 0.3, 0.8, 0.5, 0.7, 1.2)


def _sample_hair(style: str, rng: _Choices) -> Hair:
    centre = Hair(*_HAIR_STYLES[style])
    varied = {field.name: getattr(centre, field.name) * rng.between(0.88, 1.12) for field in fields(Hair)}
    varied["part"] = centre.part * rng.pick((-1.0, 1.0)) + rng.between(-0.05, 0.05)
    varied["line"] = centre.line + rng.between(-0.02, 0.02)
    if varied["part"] < 0:
        varied["swoop_left"], varied["swoop_right"] = varied["swoop_right"], varied["swoop_left"]
    return Hair(**varied)


def sample_identity(generator: Generator) -> Identity:
    """A random presenter; the same generator state gives the same presenter."""
    rng = _Choices(generator)
    feminine = rng.chance(0.5)
    style = rng.pick(HAIR_STYLES, _FEMININE_ODDS if feminine else _MASCULINE_ODDS)
    tone = rng.pick(tuple(range(len(SKINS))))
    skin = rng.near(rgb(SKINS[tone]))
    age = rng.between(0, 1)
    hair_codes: Sequence[str] = HAIR_COLOURS[:4] if tone > 5 and rng.chance(0.8) else HAIR_COLOURS
    if age > 0.8 and rng.chance(0.6):
        hair_codes = HAIR_COLOURS[9:11]
    hair_colour = rng.colour(hair_codes, 0.02)
    dark = tone / (len(SKINS) - 1)
    lips = mix(mix(rng.colour(LIPS), mix(skin, rgb("9c3f3f"), 0.55), 0.35 if feminine else 0.75),
               rgb("6a2a2e"), 0.45 * dark)  # fmt: skip
    beard = "none" if feminine else rng.pick(BEARDS, (2.0, 1.2, 1.0, 0.6, 0.6))
    clothes = rng.colour(CLOTHES)
    accent = rng.colour(CLOTHES)
    if sum(abs(a - b) for a, b in zip(clothes, accent, strict=True)) < 0.4:
        accent = mix(accent, (1.0, 1.0, 1.0) if sum(clothes) < 1.6 else (0.1, 0.12, 0.2), 0.7)
    return Identity(
        skin=skin,
        blush=rng.between(0.4, 1.0) * (1.0 if feminine else 0.6),
        face_width=rng.between(0.425, 0.47) * (0.97 if feminine else 1.02),
        jaw=rng.between(1.9, 2.2) if feminine else rng.between(2.05, 2.6),
        taper=rng.between(0.10, 0.24) if feminine else rng.between(0.02, 0.16),
        chin=rng.between(0.52, 0.57) if feminine else rng.between(0.54, 0.60),
        ear=rng.between(0.9, 1.15),
        eye_spacing=rng.between(0.185, 0.205),
        eye_size=rng.between(0.95, 1.12) if feminine else rng.between(0.85, 1.0),
        eye_tilt=rng.between(-0.06, 0.14),
        iris=rng.colour(IRISES[:3] if tone > 5 else IRISES),
        lash=rng.between(0.6, 1.0) if feminine else rng.between(0.0, 0.25),
        brow_colour=mix(hair_colour, rgb("2b1d18"), 0.55),
        brow_thickness=rng.between(0.014, 0.020) if feminine else rng.between(0.021, 0.032),
        brow_arch=rng.between(0.02, 0.05),
        nose_width=rng.between(0.055, 0.085) + 0.012 * dark,
        nose_length=rng.between(0.11, 0.15),
        mouth_width=rng.between(0.165, 0.19),
        lip_fullness=(rng.between(0.9, 1.2) if feminine else rng.between(0.65, 0.95)) + 0.12 * dark,
        lip_colour=lips,
        freckles=float(tone < 3 and rng.chance(0.25)),
        age=age,
        hair_style=style,
        hair=_sample_hair(style, rng),
        hair_colour=hair_colour,
        glasses=rng.pick(GLASSES, (2.4, 1.0, 0.8)),
        glasses_colour=rng.colour(FRAMES),
        beard=beard,
        clothes=rng.pick(CLOTHES_STYLES),
        clothes_colour=clothes,
        accent_colour=accent,
        shoulders=rng.between(0.70, 0.76) if feminine else rng.between(0.80, 0.88),
        neck=rng.between(0.165, 0.19) if feminine else rng.between(0.205, 0.24),
        earring=float(feminine and rng.chance(0.45)),
        backdrop=rng.pick(BACKDROP_STYLES),
        backdrop_colour=rng.colour(BACKDROPS),
        light_side=rng.pick((-1.0, 1.0)) * rng.between(0.5, 1.0),
        light_warmth=rng.between(-0.5, 1.0),
    )


def stack(identities: list[Identity], device: torch.device) -> dict[str, Tensor]:
    """Attributes of N identities as tensors: [N, 1, 1] each, colours [N, 3, 1, 1].

    Fields of Hair are named `hair.field`. Each style becomes a flag 0 or 1, such as `glasses.round`.
    """
    rows: dict[str, list[float | Colour]] = {}
    for identity in identities:
        for name, value in _numbers(identity).items():
            rows.setdefault(name, []).append(value)
    table = {}
    for name, values in rows.items():
        tensor = torch.tensor(values, dtype=torch.float32)
        table[name] = tensor.view(*tensor.shape, 1, 1).to(device)
    return table


def _numbers(identity: Identity) -> dict[str, float | Colour]:
    numbers: dict[str, float | Colour] = {}
    styles = {"glasses": GLASSES, "beard": BEARDS, "clothes": CLOTHES_STYLES, "backdrop": BACKDROP_STYLES,
              "hair_style": HAIR_STYLES}  # fmt: skip
    for field in fields(Identity):
        value = getattr(identity, field.name)
        if field.name in styles:
            numbers |= {f"{field.name}.{style}": float(style == value) for style in styles[field.name]}
        elif field.name == "hair":
            numbers |= {f"hair.{part.name}": getattr(value, part.name) for part in fields(Hair)}
        else:
            numbers[field.name] = value
    return numbers
