"""How figures and videos of a sweep name axes, values and measures."""

from collections.abc import Mapping
from typing import Any

import polars

from talkinghead_lab.measures.measure import KINDS

WORDS = {
    "text_guide_scale": "text guidance",
    "audio_guide_scale": "audio guidance",
    "diffusion_steps": "sampling steps",
    "sample_shift": "timestep shift",
    "step_cache_threshold": "step cache",
    "lse_c": "LSE-C",
    "lse_d": "LSE-D",
    "seconds_per_frame": "seconds per frame of video",
}
SIGNS = {"higher": "higher is better", "lower": "lower is better"}


def axis_values(table: polars.DataFrame, axis: str) -> list[Any]:
    """Numbers in their order; names in the order of the sweep."""
    found = table[axis].unique(maintain_order=True)
    return (found.sort() if found.dtype.is_numeric() else found).to_list()


def described(row: Mapping[str, Any], axes_of_sweep: list[str]) -> str:
    """Where on the axes a run lies: names alone, numbers with their axis's name."""
    return ", ".join(
        row[axis] if isinstance(row[axis], str) else f"{short_name(axis)} {value_label(row[axis])}"
        for axis in axes_of_sweep
    )


def value_label(value: Any) -> str:
    """A value as figures show it."""
    if value is None or value == "[]":
        return "none"
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def words(name: str) -> str:
    """The name of an axis or measure in words."""
    return WORDS.get(name, name.replace("_", " "))


def short_name(name: str) -> str:
    """An axis's name as it fits above a video or beside a point."""
    return words(name).removesuffix(" guidance").removeprefix("sampling ").removeprefix("timestep ")


def unit_of(measure: str) -> str:
    """A measure's unit, empty for plain ratios."""
    unit = KINDS.get(measure, ("1", ""))[0]
    return "" if unit == "1" else unit


def measure_title(measure: str) -> str:
    """A measure's name, unit and better direction."""
    name = words(measure)
    sign = SIGNS.get(KINDS.get(measure, ("", "neither"))[1])
    notes = [note for note in (unit_of(measure), sign) if note]
    return name[0].upper() + name[1:] + (f" ({', '.join(notes)})" if notes else "")
