"""The table of a benchmark: every system's measures with intervals, compared in pairs, failures included."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import polars

from talkinghead_lab.errors import InvalidRequest, nearest_name
from talkinghead_lab.evaluation.distances import inception_distances
from talkinghead_lab.evaluation.inception_features import FILE, VARIABLE
from talkinghead_lab.evaluation.scoring import COMPARED, Score
from talkinghead_lab.evaluation.statistics import (
    FEW_FRAMES,
    FEW_IDENTITIES,
    FrameSets,
    Interval,
    clip_mean,
    holm,
    paired_difference,
)
from talkinghead_lab.evaluation.systems import REAL, REENCODED, WRONG, stored_scores
from talkinghead_lab.foundation.files import atomic_path
from talkinghead_lab.measures.measure import KINDS

Rule = Literal["excluded", "worst"]
# Distances between sets of frames, of features that ship with the package; never to be called FID or KID.
DISTANCES = ("drawn_fid", "drawn_kid")
INCEPTION_DISTANCES = ("fid", "kid")
ARROWS = {"higher": "↑", "lower": "↓", "neither": ""}
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Row:
    """One measure of one system.

    Args:
        system, measure, better: what it is.
        rule: what a failed clip counts as: `excluded`, or the `worst` value of any system.
        clips, failed: numbers of clips that count, and that failed.
        interval: of the mean, or of the distance.
        difference: from the base on the clips that both have; None for distances and the base itself.
        p: of the difference, adjusted for the number of systems (Holm).
        frames: of the smaller set, for FID and KID.
    """

    system: str
    measure: str
    better: str
    rule: Rule
    clips: int
    failed: int
    interval: Interval
    difference: Interval | None = None
    p: float | None = None
    frames: int | None = None


def benchmark_table(folder: Path, base: str | None = None) -> list[Row]:
    """All rows of a benchmark's folder.

    Args:
        folder: of the benchmark.
        base: the system that others are compared with; None: the first one by name.

    Raises:
        OutputError: there are no scores, or a file is damaged.
        InvalidRequest: there is no such system.
    """
    scores = stored_scores(folder)
    systems = [name for name in scores if name not in (REAL, WRONG)]
    base = base or (systems[0] if systems else REAL)
    if base not in scores:
        raise InvalidRequest("no such system", received=base, remedy=nearest_name(base, scores))
    rows = [row for name in COMPARED for row in _measure_rows(scores, name, base)]
    return rows + _inception_rows(folder, scores) + _distance_rows(scores)


def _inception_rows(folder: Path, scores: Mapping[str, Sequence[Score]]) -> list[Row]:
    """FID and KID of the systems whose clips have all been scored with Inception's weights."""
    rows = []
    for name, made in scores.items():
        if name == WRONG:  # the same pictures
            continue
        folders = [folder / "systems" / one / "scores" for one in (REAL, name)]
        distances = inception_distances(scores[REAL], folders[0], made, folders[1])
        if distances is None:
            continue
        failed = sum(score.failure is not None for score in made)
        for measure, value in zip(INCEPTION_DISTANCES, (distances.fid, distances.kid), strict=True):
            if np.isnan(value.value):  # KID of too few people
                continue
            counts = (len(made) - failed, failed)
            rows.append(Row(name, measure, "lower", "excluded", *counts, value, frames=distances.frames))
    return rows


def _measure_rows(scores: Mapping[str, Sequence[Score]], measure: str, base: str) -> list[Row]:
    better = KINDS[measure][1]
    values = {name: _values(found, measure) for name, found in scores.items()}
    taken = [value for found in values.values() for value in found.values()]
    worst = (max if better == "lower" else min)(taken, default=None)
    rows = []
    for name, found in scores.items():
        people = {score.clip: score.identity for score in found}
        failed = [score.clip for score in found if score.failure]
        rules: list[tuple[Rule, dict[str, float]]] = [("excluded", values[name])]
        if failed and worst is not None and better != "neither":
            rules.append(("worst", values[name] | dict.fromkeys(failed, worst)))
        for rule, counted in rules:
            if not counted:
                continue
            interval = clip_mean(np.array(list(counted.values())), [people[clip] for clip in counted])
            row = Row(name, measure, better, rule, len(counted), len(failed), interval)
            rows.append(_compared(row, counted, values[base], people) if name != base else row)
    p_values = [row.p for row in rows if row.p is not None]
    adjusted = iter(holm(p_values))
    return [Row(**vars(row) | {"p": next(adjusted)}) if row.p is not None else row for row in rows]


def _values(scores: Sequence[Score], measure: str) -> dict[str, float]:
    found = {score.clip: score.measures[measure].value for score in scores if measure in score.measures}
    return {clip: value for clip, value in found.items() if value is not None}


def _compared(
    row: Row, values: Mapping[str, float], base: Mapping[str, float], people: Mapping[str, str]
) -> Row:
    """The row with its difference from the base; bounds are not compared, as nobody competes with them."""
    shared = [clip for clip in values if clip in base]
    if row.system in (REAL, WRONG) or not shared:
        return row
    one, other = (np.array([found[clip] for clip in shared]) for found in (values, base))
    found = paired_difference(one, other, [people[clip] for clip in shared])
    return Row(**vars(row) | {"difference": found.interval, "p": found.p})


def _distance_rows(scores: Mapping[str, Sequence[Score]]) -> list[Row]:
    """Each system's distances from the real frames; of the real ones: half of the people from the rest."""
    real = _features(scores[REAL])
    if not real:
        return []
    rows = []
    for name, found in scores.items():
        if name == WRONG:  # the same pictures
            continue
        made = _features(found)
        people = sorted(real)
        none = np.zeros((0, next(iter(real.values())).shape[1]))
        if name == REAL:
            sets = FrameSets(
                [real[one] if i % 2 else none for i, one in enumerate(people)],
                [none if i % 2 else real[one] for i, one in enumerate(people)],
            )
        else:
            sets = FrameSets([real[one] for one in people], [made.get(one, none) for one in people])
        if min(sum(map(len, sets.first)), sum(map(len, sets.second))) < 2:
            continue
        failed = sum(score.failure is not None for score in found)
        clips = len(found) - failed
        for measure, value in zip(DISTANCES, (sets.frechet_distance(), sets.kernel_distance()), strict=True):
            if np.isnan(value.value):
                continue
            rows.append(Row(name, measure, "lower", "excluded", clips, failed, value))
    return rows


def _features(scores: Sequence[Score]) -> dict[str, np.ndarray]:
    """Features of sampled frames, by person."""
    found: dict[str, list[np.ndarray]] = {}
    for score in scores:
        if score.features.size:
            found.setdefault(score.identity, []).append(score.features)
    return {person: np.concatenate(parts) for person, parts in found.items()}


def to_frame(rows: Sequence[Row]) -> polars.DataFrame:
    """A row for each system, measure and rule."""
    return polars.DataFrame(
        [
            {
                "system": row.system,
                "measure": row.measure,
                "unit": KINDS[row.measure][0] if row.measure in KINDS else "1",
                "better": row.better,
                "rule": row.rule,
                "clips": row.clips,
                "failed": row.failed,
                "people": row.interval.identities,
                "frames": row.frames,
                "value": row.interval.value,
                "low": row.interval.low,
                "high": row.interval.high,
                "difference": row.difference and row.difference.value,
                "difference_low": row.difference and row.difference.low,
                "difference_high": row.difference and row.difference.high,
                "p_holm": row.p,
            }
            for row in rows
        ],
        infer_schema_length=None,
    )


def to_markdown(rows: Sequence[Row]) -> str:
    """The table as people read it, with notes below it."""
    header, body = _cells(rows)
    lines = [header, ["---"] * len(header), *body]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return table + "\n\n" + "\n".join(_notes(rows)) + "\n"


def to_latex(rows: Sequence[Row]) -> str:
    """The table for a paper; needs the package booktabs."""
    escapes = {"↑": "$\\uparrow$", "↓": "$\\downarrow$", "_": "\\_", "%": "\\%", "−": "$-$"}
    header, body = _cells(rows)
    lines = [
        " & ".join("".join(escapes.get(sign, sign) for sign in cell) for cell in line) + r" \\"
        for line in [header, *body]
    ]
    columns = "l" * len(header)
    notes = "\n".join(f"% {note}" for note in _notes(rows))
    inside = "\n".join([r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"])
    return f"{notes}\n\\begin{{tabular}}{{{columns}}}\n{inside}\n\\end{{tabular}}\n"


def _cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and lines: systems down, measures across."""
    measures = list(dict.fromkeys(row.measure for row in rows))
    better = {row.measure: row.better for row in rows}
    found = {(row.system, row.rule, row.measure): row for row in rows}
    header = ["system", "clips", *(f"{name} {ARROWS[better[name]]}".strip() for name in measures)]
    body = []
    for system, rule in dict.fromkeys((row.system, row.rule) for row in rows):
        across = [found.get((system, rule, name)) for name in measures]
        first = next(row for row in across if row is not None)
        name = system if rule == "excluded" else f"{system}, failures as worst"
        clips = f"{first.clips}" + (f", {first.failed} failed" if first.failed else "")
        body.append([name, clips, *(_cell(row) for row in across)])
    return header, body


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    ends = (
        ""
        if row.interval.low is None
        else f" [{_number(row.interval.low)}, {_number(row.interval.high or 0)}]"
    )
    return _number(row.interval.value) + ends + ("*" if row.p is not None and row.p < SIGNIFICANT else "")


def _number(value: float) -> str:
    """Three significant digits, but at most four decimals."""
    size = int(np.floor(np.log10(abs(value)))) if value else 0
    shown = f"{value:.{min(max(2 - size, 0), 4)}f}"
    return (shown if float(shown) else "0.00").replace("-", "−")


def _notes(rows: Sequence[Row]) -> list[str]:
    people = max(row.interval.identities for row in rows)
    notes = [
        f"Means over clips with 95 % intervals over {people} people. "
        f"* differs from the first system, Holm-adjusted p < {SIGNIFICANT}.",
        f"{REAL}: the real videos; their distance is that of one half of the people from the other half. "
        f"{WRONG}: the same, each with the recording of another clip.",
    ]
    if any(row.measure in DISTANCES for row in rows):
        notes.append(
            "drawn_fid, drawn_kid: the formulas of FID and KID on features of the bundled face reader; "
            "not comparable with figures of other features."
        )
        if people < FEW_IDENTITIES:
            notes.append(f"drawn_fid is biased upwards by fewer than {FEW_IDENTITIES} people; see drawn_kid.")
    systems = {row.system for row in rows} - {WRONG}
    if missing := sorted(systems - {row.system for row in rows if row.frames is not None}):
        notes.append(
            f"fid, kid: not taken of {', '.join(missing)}: "
            f"{VARIABLE} must name {FILE} when a system is scored."
        )
    frames = [row.frames for row in rows if row.frames is not None]
    if frames and min(frames) < FEW_FRAMES:
        notes.append(
            f"fid is biased upwards by fewer than {FEW_FRAMES} frames, here {min(frames)}, "
            "and has no interval; see kid, which is not biased."
        )
    return notes


def codec_effect(folder: Path, name: str) -> str:
    """How far one more encoding moved each measure of a system, a line for each, after `codec_check`."""
    moved = [
        (row.measure, row.difference)
        for row in benchmark_table(folder, name)
        if row.system == name + REENCODED and row.rule == "excluded" and row.difference
    ]
    lines = ["One more encoding moves, in the mean:"]
    for measure, found in moved:
        ends = "" if found.low is None else f" [{_number(found.low)}, {_number(found.high or 0)}]"
        lines.append(f"{measure} {_number(found.value)}{ends}, {found.identities} people")
    return "\n".join(lines)


def write_table(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write Markdown, LaTeX, CSV and Parquet; return their paths.

    Raises:
        OutputError: a file cannot be written.
    """
    frame, binary = to_frame(rows), io.BytesIO()
    frame.write_parquet(binary)
    contents = {
        "table.md": to_markdown(rows).encode(),
        "table.tex": to_latex(rows).encode(),
        "table.csv": frame.write_csv().encode(),
        "table.parquet": binary.getvalue(),
    }
    for name, content in contents.items():
        with atomic_path(folder / name, overwrite=True) as temporary:
            temporary.write_bytes(content)
    return [folder / name for name in contents]
