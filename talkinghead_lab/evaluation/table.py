"""The table of a benchmark: every system's measures with intervals, compared in pairs, failures included."""

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import polars

from talkinghead_lab.errors import InvalidRequest, nearest_name
from talkinghead_lab.evaluation.distances import set_distances
from talkinghead_lab.evaluation.published import MARK, Published, published_notes
from talkinghead_lab.evaluation.scoring import COMPARED, Score
from talkinghead_lab.evaluation.set_features import DISTANCES, FEATURE_KINDS
from talkinghead_lab.evaluation.statistics import (
    FEW_IDENTITIES,
    Interval,
    clip_mean,
    holm,
    paired_difference,
)
from talkinghead_lab.evaluation.systems import REAL, REENCODED, WRONG, stored_scores
from talkinghead_lab.foundation.files import atomic_path
from talkinghead_lab.measures.measure import KINDS

Rule = Literal["excluded", "worst"]
ALL_KINDS = KINDS | DISTANCES
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
        samples: frames or windows in the smaller set, for distances.
        weights: SHA-256 of the files that users supplied for it, by variable, as the scores have them.
        why_not: why it was not taken of this system; its value is NaN then.
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
    samples: int | None = None
    weights: Mapping[str, str] = field(default_factory=dict)
    why_not: str | None = None


def benchmark_table(folder: Path, base: str | None = None) -> list[Row]:
    """All rows of a benchmark's folder; of measures that were not taken, rows with the reason come last.

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
    rows += _distance_rows(folder, scores)
    return rows + _missing_rows(scores, {(row.system, row.measure) for row in rows})


def _missing_rows(scores: Mapping[str, Sequence[Score]], taken: set[tuple[str, str]]) -> list[Row]:
    """What was not taken of a system, although its clips allow it."""
    rows = []
    for measure in (*COMPARED, *DISTANCES):
        for name, found in scores.items():
            pictures_alone = name == WRONG and measure in DISTANCES
            reason = None if (name, measure) in taken or pictures_alone else _why_not(found, measure)
            if reason:
                failed = sum(score.failure is not None for score in found)
                none = Interval(np.nan, None, None, 0)
                better = ALL_KINDS[measure].better
                rows.append(Row(name, measure, better, "excluded", 0, failed, none, why_not=reason))
    return rows


def _why_not(scores: Sequence[Score], measure: str) -> str | None:
    """The commonest reason; None for distances that the clips do not allow."""
    if measure not in DISTANCES:
        reasons = [score.measures[measure].why_not for score in scores if measure in score.measures]
        return Counter(reasons).most_common(1)[0][0] if reasons else None
    for weights in DISTANCES[measure].weights:
        if any(score.failure is None and weights.variable not in score.weights for score in scores):
            return f"{weights.variable} did not name {weights.file} when a clip was scored"
    return "too few clips or people" if DISTANCES[measure].weights else None


def _distance_rows(folder: Path, scores: Mapping[str, Sequence[Score]]) -> list[Row]:
    """Each system's distances from the real clips; of the real ones: half of the people from the rest."""
    rows = []
    for kind in FEATURE_KINDS:
        for name, made in scores.items():
            if name == WRONG:  # the same pictures
                continue
            folders = [folder / "systems" / one / "scores" for one in (REAL, name)]
            found = set_distances(kind, scores[REAL], folders[0], made, folders[1])
            if found is None:
                continue
            failed = sum(score.failure is not None for score in made)
            counts = (len(made) - failed, failed)
            for measure, value in ((kind.frechet, found.frechet), (kind.kernel, found.kernel)):
                if not np.isnan(value.value):  # the kernel distance of too few people
                    given = _weights(made, measure)
                    row = Row(name, measure, "lower", "excluded", *counts, value, samples=found.samples)
                    rows.append(replace(row, weights=given))
    return rows


def _weights(scores: Sequence[Score], measure: str) -> dict[str, str]:
    """The given files that a measure of these clips was taken with."""
    variables = [weights.variable for weights in ALL_KINDS[measure].weights]
    found = {name: digest for score in scores for name, digest in score.weights.items()}
    return {name: found[name] for name in variables if name in found}


def _measure_rows(scores: Mapping[str, Sequence[Score]], measure: str, base: str) -> list[Row]:
    better = KINDS[measure].better
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
            row = replace(row, weights=_weights(found, measure))
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


def to_frame(rows: Sequence[Row]) -> polars.DataFrame:
    """A row for each system, measure and rule."""
    return polars.DataFrame(
        [
            {
                "system": row.system,
                "measure": row.measure,
                "unit": ALL_KINDS[row.measure].unit,
                "better": row.better,
                "rule": row.rule,
                "clips": row.clips,
                "failed": row.failed,
                "people": row.interval.identities,
                "samples": row.samples,
                "value": None if row.why_not else row.interval.value,
                "low": row.interval.low,
                "high": row.interval.high,
                "difference": row.difference and row.difference.value,
                "difference_low": row.difference and row.difference.low,
                "difference_high": row.difference and row.difference.high,
                "p_holm": row.p,
                "why_not": row.why_not,
                "weights": " ".join(f"{name}={digest}" for name, digest in row.weights.items()),
            }
            for row in rows
        ],
        infer_schema_length=None,
    )


def to_markdown(rows: Sequence[Row], others: Sequence[Published] = ()) -> str:
    """The table as people read it, with notes below it.

    Args:
        rows: of `benchmark_table`.
        others: published figures of the same dataset, as marked rows at the end.
    """
    header, body = table_cells(rows, others)
    lines = [header, ["---"] * len(header), *body]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return table + "\n\n" + "\n".join(table_notes(rows, others)) + "\n"


def to_latex(rows: Sequence[Row], others: Sequence[Published] = ()) -> str:
    """The table for a paper; needs the package booktabs. Arguments are those of `to_markdown`."""
    escapes = {"↑": "$\\uparrow$", "↓": "$\\downarrow$", "_": "\\_", "%": "\\%", "−": "$-$"}
    escapes[MARK] = "$\\dagger$"
    header, body = table_cells(rows, others)
    lines = [
        " & ".join("".join(escapes.get(sign, sign) for sign in cell) for cell in line) + r" \\"
        for line in [header, *body]
    ]
    columns = "l" * len(header)
    notes = "\n".join(f"% {note}" for note in table_notes(rows, others))
    inside = "\n".join([r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"])
    return f"{notes}\n\\begin{{tabular}}{{{columns}}}\n{inside}\n\\end{{tabular}}\n"


def table_cells(rows: Sequence[Row], others: Sequence[Published] = ()) -> tuple[list[str], list[list[str]]]:
    """Header and lines: systems down, measures across; published figures last, of measures that rows have."""
    rows = [row for row in rows if row.why_not is None]
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
    for other in others:
        shown = [_number(other.figures[name]) if name in other.figures else "" for name in measures]
        body.append([other.name, "", *shown])
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


def table_notes(rows: Sequence[Row], others: Sequence[Published] = ()) -> list[str]:
    """What the table's rows, marks and intervals are."""
    return _notes(rows) + published_notes(others)


def _notes(rows: Sequence[Row]) -> list[str]:
    people = max(row.interval.identities for row in rows)
    notes = [
        f"Means over clips with 95 % intervals over {people} people. "
        f"* differs from the first system, Holm-adjusted p < {SIGNIFICANT}.",
        f"{REAL}: the real videos; their distance is that of one half of the people from the other half. "
        f"{WRONG}: the same, each with the recording of another clip.",
    ]
    return notes + _distance_notes(rows, people) + _weights_notes(rows)


def _distance_notes(rows: Sequence[Row], people: int) -> list[str]:
    notes = []
    for kind in FEATURE_KINDS:
        samples = [row.samples for row in rows if row.measure == kind.frechet and row.samples is not None]
        if not samples:
            continue
        few = min(samples) < kind.few or (kind.weights is None and people < FEW_IDENTITIES)
        wanted = f"{kind.few} {kind.sample}" if kind.weights else f"{FEW_IDENTITIES} people"
        if kind.weights is None:
            notes.append(f"{kind.frechet}, {kind.kernel}: not comparable with figures of other features.")
        if few:
            notes.append(
                f"{kind.frechet} of {min(samples)} {kind.sample} of {people} people is biased upwards: "
                f"it needs {wanted}; {kind.kernel} is not biased."
            )
    return notes


def _weights_notes(rows: Sequence[Row]) -> list[str]:
    """Which weights were given, and what was not taken for want of some."""
    given: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for found in row.weights.items():
            given.setdefault(found, []).append(row.measure)
    notes = [
        f"{', '.join(dict.fromkeys(measures))}: {variable} {digest}"
        for (variable, digest), measures in given.items()
    ]
    systems = {row.system for row in rows}
    missing: dict[str, dict[str, set[str]]] = {}
    for row in rows:
        if row.why_not:
            missing.setdefault(row.why_not, {}).setdefault(row.measure, set()).add(row.system)
    for reason, measures in missing.items():
        of_any = all(systems <= names | {WRONG} for names in measures.values())
        names = "any video" if of_any else ", ".join(sorted(set().union(*measures.values())))
        notes.append(f"{', '.join(measures)}: not taken of {names}: {reason.rstrip('.')}.")
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


def write_table(rows: Sequence[Row], folder: Path, others: Sequence[Published] = ()) -> list[Path]:
    """Write Markdown, LaTeX, CSV and Parquet; return their paths.

    Args:
        rows: of `benchmark_table`.
        folder: for the files.
        others: published figures, which Markdown and LaTeX show.

    Raises:
        OutputError: a file cannot be written.
    """
    frame, binary = to_frame(rows), io.BytesIO()
    frame.write_parquet(binary)
    contents = {
        "table.md": to_markdown(rows, others).encode(),
        "table.tex": to_latex(rows, others).encode(),
        "table.csv": frame.write_csv().encode(),
        "table.parquet": binary.getvalue(),
    }
    for name, content in contents.items():
        with atomic_path(folder / name, overwrite=True) as temporary:
            temporary.write_bytes(content)
    return [folder / name for name in contents]
