"""Finished runs side by side: the settings in which they differ, and their measures."""

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from talkinghead_lab.errors import InvalidRequest, nearest_name
from talkinghead_lab.figures.labels import DIRECTIONS, capitalised, readable_name, title, value_labels
from talkinghead_lab.figures.run_names import run_names
from talkinghead_lab.figures.side_by_side import side_by_side
from talkinghead_lab.figures.text_table import text_table
from talkinghead_lab.foundation.paths import project_folder
from talkinghead_lab.runs.comparison import (
    TOTAL_SECONDS,
    changed_contents,
    differing_fields,
    machine,
    why_unlike,
)
from talkinghead_lab.runs.history import PastRun, finished_run

NONE = "—"
BEST = " (best)"
DIGEST_LENGTH = 12  # characters of a digest that are shown
CHOOSE = {"higher": max, "lower": min}


@dataclass(frozen=True)
class Row:
    """One line of a comparison.

    Args:
        name: of the field or measure.
        title: its name in words, with its unit.
        values: one of each run; None: there is none.
        cells: the values in words.
        better: `higher` or `lower`; otherwise it has no direction.
        why_not: reasons for values that are missing, one of each run.
        unlike: why the runs are not ranked by it.
    """

    name: str
    title: str
    values: tuple[Any, ...]
    cells: tuple[str, ...]
    better: str = "neither"
    why_not: tuple[str | None, ...] = ()
    unlike: str | None = None

    @property
    def best(self) -> int | None:
        """The place of the best value; None: the runs are unlike, or equal as shown, or none is better."""
        present = [place for place, value in enumerate(self.values) if value is not None]
        if self.better not in CHOOSE or self.unlike or len({self.cells[place] for place in present}) < 2:
            return None
        best = CHOOSE[self.better](self.values[place] for place in present)
        place = self.values.index(best)
        return place if self.cells.count(self.cells[place]) == 1 else None


class Comparison:
    """Two or more finished runs; a table as text (`str`) and in a notebook.

    Args:
        runs: finished runs, in the order of the columns.
        names: heads of the columns; None: names that tell the runs apart.
    """

    def __init__(self, runs: Sequence[PastRun], names: Sequence[str] | None = None) -> None:
        self.runs = tuple(runs)
        self.names = list(names) if names is not None else run_names(self.runs)

    @cached_property
    def settings(self) -> list[Row]:
        """The fields of the request in which the runs differ, and files that changed under the same name."""
        found = []
        for name in differing_fields(self.runs):
            values = [getattr(run.params, name) for run in self.runs]
            found.append(Row(name, title(name), tuple(values), tuple(value_labels(values, name))))
        for name, digests in changed_contents(self.runs).items():
            short = [_short(digest, digests) for digest in digests]
            words = f"{capitalised(readable_name(name))}, contents"
            found.append(Row(name, words, tuple(digests), tuple(short)))
        return found

    @cached_property
    def facts(self) -> list[Row]:
        """The videos' lengths and sizes, what made them where that differs, and the time it took."""
        results, records = [run.result for run in self.runs], [run.record for run in self.runs]
        lengths = [f"{found.duration_seconds:.2f} s, {found.frame_count} frames" for found in results]
        sizes = [found.resolution for found in results]
        rows = [_fact("length", "Length", lengths)]
        if sizes != [
            run.params.frame_size for run in self.runs
        ]:  # otherwise settings say it, or all are equal
            rows.append(_fact("resolution", "Size of the video (pixels)", sizes))
        versions = [str(record["environment"].get("talkinghead_lab")) for record in records]
        commits = [str(record["environment"].get("git"))[:DIGEST_LENGTH] for record in records]
        for name, words, values in (
            ("machine", "Machine", [machine(run) for run in self.runs]),
            ("version", "Version", versions),
            ("commit", "Commit", commits),
        ):
            if len(set(values)) > 1:
                rows.append(_fact(name, words, values))
        seconds = tuple(run.seconds for run in self.runs)
        cells = tuple(f"{value:.1f} s" for value in seconds)
        unlike = why_unlike(self.runs, TOTAL_SECONDS)
        return [*rows, Row(TOTAL_SECONDS, "Generation time", seconds, cells, "lower", unlike=unlike)]

    @cached_property
    def measures(self) -> list[Row]:
        """The measures that any of the runs has."""
        return [row for row in self._all_measures if any(value is not None for value in row.values)]

    @cached_property
    def _all_measures(self) -> list[Row]:
        names = list(dict.fromkeys(name for run in self.runs for name in run.measures))
        return [_measure_row(self.runs, name) for name in names]

    @cached_property
    def notes(self) -> list[str]:
        """Why the runs are not ranked by a measure, and why values are missing."""
        unlike: dict[str, list[str]] = {}
        for row in (*self.facts, *self.measures):
            if row.unlike and row.better in CHOOSE:
                unlike.setdefault(row.unlike, []).append(row.title)
        ranked = sum(row.better in CHOOSE for row in (*self.facts, *self.measures))
        notes = [
            f"Not ranked{'' if len(titles) == ranked else f' by {_listed(titles)}'}: {reason}."
            for reason, titles in unlike.items()
        ]
        missing: dict[str, dict[str, list[str]]] = {}
        for row in self._all_measures:
            for name, reason in zip(self.names, row.why_not, strict=True):
                if reason:
                    by_run = missing.setdefault(reason.rstrip("."), {})
                    by_run.setdefault(capitalised(readable_name(row.name)), []).append(name)
        for reason, by_run in missing.items():
            groups: dict[str, list[str]] = {}
            for measure, names in by_run.items():
                groups.setdefault("" if len(names) == len(self.runs) else _listed(names), []).append(measure)
            notes += [
                f"Not measured{f' for {names}' if names else ''}: {_listed(measures)} ({reason})."
                for names, measures in groups.items()
            ]
        return notes

    def video(self, path: str | Path, sound: str | None = None) -> Path:
        """Write the runs' videos side by side, in step, each under its name; see `side_by_side`.

        Args:
            path: the mp4 file to write; its folder exists.
            sound: name of the run whose sound is heard; None: the first of those with the longest video.

        Raises:
            InvalidRequest: no run has that name, or the video is not called `.mp4`.
            OutputError: the file exists, or cannot be written.
        """
        if sound is not None and sound not in self.names:
            remedy = nearest_name(sound, self.names)
            raise InvalidRequest("no run of this name", received=sound, remedy=remedy)
        lengths = [run.result.duration_seconds for run in self.runs]
        heard = lengths.index(max(lengths)) if sound is None else self.names.index(sound)
        videos = [run.result.video_path for run in self.runs]
        return side_by_side(project_folder() / path, videos, self.names, heard)

    def to_json(self) -> dict[str, Any]:
        """Plain values: the runs, and a list of rows for each part of the table."""
        runs = [
            {"name": name, "folder": str(run.folder), "video_path": str(run.result.video_path)}
            for name, run in zip(self.names, self.runs, strict=True)
        ]
        parts = {"settings": self.settings, "video": self.facts, "measures": self._all_measures}
        tables = {part: [self._row_json(row) for row in rows] for part, rows in parts.items()}
        return {"runs": runs, **tables, "notes": self.notes}

    def _row_json(self, row: Row) -> dict[str, Any]:
        values = [
            value if _is_plain(value) else cell for value, cell in zip(row.values, row.cells, strict=True)
        ]
        found: dict[str, Any] = {"name": row.name, "title": row.title, "values": values}
        if row.better in CHOOSE:
            best = None if row.best is None else self.names[row.best]
            found |= {"better": row.better, "best": best, "not_ranked": row.unlike}
        return found | ({"why_not": list(row.why_not)} if any(row.why_not) else {})

    def __str__(self) -> str:
        head = ["", *self.names, ""]
        rows = [[row.title, *_marked(row), _direction(row)] for row in self._rows()]
        numeric = range(1, len(self.runs) + 1)
        return "\n".join([text_table(head, rows, numeric), *(["", *self.notes] if self.notes else [])])

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(name)}</th>" for name in self.names)
        body = "".join(
            f"<tr><th>{html.escape(row.title)}</th>{_cells_html(row)}<td>{_direction(row)}</td></tr>"
            for row in self._rows()
        )
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self.notes)
        return (
            f'<table class="thl-table"><thead><tr><td></td>{head}<td></td></tr></thead>'
            f"<tbody>{body}</tbody></table>{notes}"
        )

    def _rows(self) -> Iterator[Row]:
        yield from (*self.settings, *self.facts, *self.measures)


def compare(*folders: str | Path) -> Comparison:
    """Compare finished runs.

    Args:
        folders: of two or more runs, relative to the project.

    Raises:
        InvalidRequest: fewer than two runs are given, or one twice.
        OutputError: a folder holds no finished run, or its record is damaged.
    """
    paths = [project_folder() / folder for folder in folders]
    if len(paths) < 2 or len({path.resolve() for path in paths}) < len(paths):
        raise InvalidRequest(
            "a comparison needs different runs",
            received=", ".join(map(str, folders)) or "none",
            allowed="the folders of two or more",
        )
    return Comparison([finished_run(path) for path in paths])


def _measure_row(runs: Sequence[PastRun], name: str) -> Row:
    found = [run.measures.get(name) for run in runs]
    known = next(measure for measure in found if measure)
    values = tuple(measure and measure["value"] for measure in found)
    unit = "" if known["unit"] == "1" else f" {known['unit']}"
    return Row(
        name,
        capitalised(readable_name(name)),
        values,
        tuple(NONE if value is None else f"{value:.3g}{unit}" for value in values),
        known["better"],
        tuple(_why_not(run, name) for run in runs),
        why_unlike(runs, name),
    )


def _why_not(run: PastRun, name: str) -> str | None:
    measure = run.measures.get(name)
    if measure is None:
        version = run.record["environment"].get("talkinghead_lab")
        return f"version {version} did not measure it" if version else "its version did not measure it"
    if measure["value"] is not None:
        return None
    return str(measure["why_not"] or "no reason was recorded")


def _fact(name: str, words: str, values: Sequence[str]) -> Row:
    return Row(name, words, tuple(values), tuple(values))


def _short(digest: str, digests: Sequence[str]) -> str:
    """The beginning of a digest; a letter for each of several digests in one text."""
    if len(digest) == 64 or digest == "unknown":
        return digest[:DIGEST_LENGTH]
    return f"set {'ABCDEFGHIJKLMNOPQRSTUVWXYZ'[list(dict.fromkeys(digests)).index(digest) % 26]}"


def _marked(row: Row) -> list[str]:
    return [cell + BEST if place == row.best else cell for place, cell in enumerate(row.cells)]


def _cells_html(row: Row) -> str:
    return "".join(
        f"<td{' class=thl-best' if place == row.best else ''}>{html.escape(cell)}</td>"
        for place, cell in enumerate(_marked(row))
    )


def _direction(row: Row) -> str:
    return DIRECTIONS.get(row.better, "")


def _listed(words: Sequence[str]) -> str:
    """Words with commas, and an `and` before the last one."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, str | int | float | bool)
