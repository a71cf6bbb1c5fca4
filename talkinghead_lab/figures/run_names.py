"""Names that tell runs apart."""

import re
from collections.abc import Sequence

from talkinghead_lab.figures.labels import path_labels, setting_label, short_name, value_label, value_labels
from talkinghead_lab.runs.comparison import differing_fields
from talkinghead_lab.runs.history import PastRun, moment

# Folders that nobody named: of a run without `--run`, of the panel, of a sweep, of the service.
AUTOMATIC = re.compile(
    r"(infinitetalk|tune)_(.*_)?\d{8}_\d{6}(_\d+)?(-\d+)?|[0-9a-f]{20}|\d{8}_\d{6}_[0-9a-f]{16}"
)
MAX_SETTINGS = 3  # in a name
MAX_TEXT = 24  # characters of a prompt in a name
# The settings that are changed most come first.
ORDER = (
    *("image_path", "audio_path", "checkpoint", "seed", "diffusion_steps", "audio_guide_scale"),
    *("text_guide_scale", "sample_shift", "frame_size", "resolution", "max_frames", "loras", "prompt"),
)


def run_names(runs: Sequence[PastRun]) -> list[str]:
    """A name for each of the runs, different for all.

    A folder that somebody named keeps its name. The others are called by the settings that tell them apart,
    and by their time where no setting does.
    """
    folders = path_labels([str(run.folder) for run in runs])
    automatic = [AUTOMATIC.fullmatch(run.folder.name) is not None for run in runs]
    described = iter(_told_apart([run for run, own in zip(runs, automatic, strict=True) if own]))
    names = [next(described) if own else name for name, own in zip(folders, automatic, strict=True)]
    return [folder if names.count(name) > 1 else name for name, folder in zip(names, folders, strict=True)]


def _told_apart(runs: Sequence[PastRun]) -> list[str]:
    """Names of runs that differ in their settings, by as few of these as possible."""
    if len(runs) == 1:
        return [f"{value_label(runs[0].params.image_path, 'image_path')}, {moment(runs[0].begun)}"]
    differing = differing_fields(runs) if runs else []
    order = list(dict.fromkeys(name for name in (*ORDER, *differing) if name in differing))
    candidates, chosen = list(order), list[str]()
    groups = 1
    while candidates and groups < len(runs) and len(chosen) < MAX_SETTINGS:
        found = {name: _groups(runs, [*chosen, name]) for name in candidates}
        best = max(candidates, key=lambda name: found[name])
        if found[best] == groups:
            break
        chosen.append(best)
        candidates.remove(best)
        groups = found[best]
    parts = [_labels(runs, name) for name in order if name in chosen]
    names = [", ".join(words) for words in zip(*parts, strict=True)] or [""] * len(runs)
    return [
        ", ".join(filter(None, (name, moment(run.begun)))) if names.count(name) > 1 else name
        for run, name in zip(runs, names, strict=True)
    ]


def _groups(runs: Sequence[PastRun], fields: Sequence[str]) -> int:
    """How many kinds of runs these fields tell apart."""
    return len({tuple(repr(getattr(run.params, name)) for name in fields) for run in runs})


def _labels(runs: Sequence[PastRun], name: str) -> list[str]:
    """A setting of each of the runs, as it appears in a name."""
    values = [getattr(run.params, name) for run in runs]
    words = shortened(value_labels(values, name), MAX_TEXT)
    alone = [setting_label(name, value) == value_label(value, name) for value in values]
    return [
        word if is_name else f"{short_name(name)} {word}" for word, is_name in zip(words, alone, strict=True)
    ]


def shortened(texts: Sequence[str], length: int) -> list[str]:
    """Texts of at most so many characters; of longer ones, the part that differs from the others."""
    return [_shortened(text, [other for other in texts if other != text], length) for text in texts]


def _shortened(text: str, others: Sequence[str], length: int) -> str:
    if len(text) <= length:
        return text
    same = max((_common(text, other) for other in others), default=0)
    start = text.rfind(" ", 0, same + 1) + 1 if same + 2 >= length else 0
    shown = text[start:]
    cut = shown if len(shown) < length else shown[: length - 2].rstrip() + "…"
    return f"…{cut}" if start else cut


def _common(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))
