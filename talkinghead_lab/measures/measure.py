"""A measure: name, unit and direction, and a value or the reason why there is none."""

from dataclasses import dataclass
from typing import Literal

Better = Literal["higher", "lower", "neither"]

# Unit and better direction of every measure; the functions that take them name their sources.
KINDS: dict[str, tuple[str, Better]] = {
    "lip_correlation": ("1", "higher"),
    "lip_error": ("opening", "lower"),
    "mouth_follows_sound": ("1", "higher"),
    "silent_lip_motion": ("opening", "lower"),
    "lse_c": ("1", "higher"),
    "lse_d": ("1", "lower"),
    "identity": ("1", "higher"),
    "identity_drift": ("1", "lower"),
    "seam_jump": ("1", "lower"),
    "flicker": ("levels", "lower"),
    "color_drift": ("ΔE", "lower"),
    "motion": ("levels", "neither"),
    "sharpness": ("levels²", "higher"),
    "loudness": ("LUFS", "neither"),
    "time_to_first_frame": ("s", "lower"),
    "seconds_per_frame": ("s", "lower"),
    "peak_host_gib": ("GiB", "lower"),
    "peak_gpu_gib": ("GiB", "lower"),
}
CORRELATIONS = ("lip_correlation", "mouth_follows_sound")  # between −1 and 1, as their intervals must be


@dataclass(frozen=True)
class Measure:
    """One figure about a video, or the reason why it could not be taken.

    Args:
        name: one of KINDS.
        value: in `unit`; None where it could not be taken.
        unit: `1` for plain ratios.
        better: which direction is better.
        why_not: why there is no value.
    """

    name: str
    value: float | None
    unit: str
    better: Better
    why_not: str | None = None

    @classmethod
    def of(cls, name: str, value: float | None, why_not: str | None = None) -> "Measure":
        """Make a measure with the unit and direction of its kind, and either a value or a reason."""
        if (value is None) == (why_not is None):
            raise ValueError(f"{name}: give either a value or the reason why there is none")
        return cls(name, value, *KINDS[name], why_not)
