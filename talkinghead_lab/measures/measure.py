"""A measure: name, unit and direction, and a value or the reason why there is none."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from talkinghead_lab.measures.given_weights import (
    ARCFACE,
    CLIP,
    LANDMARKER,
    S3FD_FACES,
    SYNCNET,
    GivenWeights,
)

Better = Literal["higher", "lower", "neither"]

OWN = "our own"


class Kind(NamedTuple):
    """What a measure is.

    Args:
        unit: `1` for plain ratios.
        better: which direction is better.
        source: where it is defined.
        weights: files that the user supplies, without which it is not taken, or only of cartoon presenters.
    """

    unit: str
    better: Better
    source: str = OWN
    weights: tuple[GivenWeights, ...] = ()


KINDS: dict[str, Kind] = {
    "lip_correlation": Kind("1", "higher"),
    "lip_error": Kind("opening", "lower"),
    "mouth_follows_sound": Kind("1", "higher", "after Chandrasekaran et al. 2009", (LANDMARKER,)),
    "silent_lip_motion": Kind("opening", "lower", "after THEval, arXiv 2511.04520", (LANDMARKER,)),
    "active_speaker_own": Kind("1", "higher", OWN, (LANDMARKER,)),
    "active_speaker_other": Kind("1", "lower", OWN, (LANDMARKER,)),
    "active_speaker_silent": Kind("1", "lower", OWN, (LANDMARKER,)),
    "lse_c": Kind("1", "higher", "Chung & Zisserman 2016, LSE-C", (SYNCNET, S3FD_FACES)),
    "lse_d": Kind("1", "lower", "Chung & Zisserman 2016, LSE-D", (SYNCNET, S3FD_FACES)),
    "identity": Kind("1", "higher", "CLIP-I of DreamBooth, arXiv 2208.12242"),
    "identity_drift": Kind("1", "lower"),
    "csim": Kind("1", "higher", "ArcFace, arXiv 1801.07698", (ARCFACE, LANDMARKER)),
    "seam_jump": Kind("1", "lower"),
    "flicker": Kind("levels", "lower"),
    "color_drift": Kind("ΔE", "lower", "CIE 1976 ΔE*ab; Mahy et al. 1994"),
    "motion": Kind("levels", "neither", "after ITU-T P.910, temporal information"),
    "head_motion": Kind("°", "neither", OWN, (LANDMARKER,)),
    "sharpness": Kind("levels²", "higher", "Pech-Pacheco et al. 2000"),
    "clip_quality": Kind("1", "higher", "after CLIP-IQA, arXiv 2207.12396", (CLIP,)),
    "loudness": Kind("LUFS", "neither", "ITU-R BS.1770-4"),
    "time_to_first_frame": Kind("s", "lower"),
    "seconds_per_frame": Kind("s", "lower"),
    "peak_host_gib": Kind("GiB", "lower", "operating system"),
    "peak_gpu_gib": Kind("GiB", "lower", "PyTorch"),
}
CORRELATIONS = (  # between −1 and 1, as their intervals must be
    *("lip_correlation", "mouth_follows_sound"),
    *("active_speaker_own", "active_speaker_other"),
)


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
        kind = KINDS[name]
        return cls(name, value, kind.unit, kind.better, why_not)
