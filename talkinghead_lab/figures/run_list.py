"""The runs of a folder as a table, with the settings in which they differ and their main measures."""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from talkinghead_lab.errors import InvalidRequest, NoFinishedRun, nearest_name
from talkinghead_lab.figures.comparison import NONE
from talkinghead_lab.figures.labels import capitalised, path_labels, readable_name, title, value_labels
from talkinghead_lab.figures.run_names import shortened
from talkinghead_lab.figures.runs import table
from talkinghead_lab.figures.text_table import text_table
from talkinghead_lab.foundation.paths import project_folder
from talkinghead_lab.measures.measure import KINDS
from talkinghead_lab.runs.comparison import differing_fields
from talkinghead_lab.runs.folder import RECORD, REQUEST
from talkinghead_lab.runs.history import PastRun, chunks, find_runs, moment

MAIN_MEASURES = (
    "lip_correlation",
    "mouth_follows_sound",
    "lse_c",
    "identity",
    "seam_jump",
    "seconds_per_frame",
)
MAX_TEXT = 40  # characters of a text in a column
# Columns of every list, by the keys to sort by.
COLUMNS = {
    "run": "Run", "begun": "Begun", "state": "State", "frames": "Video", "seconds": "Generation time",
}  # fmt: skip
NUMERIC = ("frames", "seconds", *KINDS)


class RunList:
    """Runs as a table, as text (`str`) and in a notebook.

    Args:
        runs: in the order of the rows.
        hidden: folders of runs whose request cannot be read.
    """

    def __init__(self, runs: Sequence[PastRun], hidden: Sequence[Path] = ()) -> None:
        self.runs, self.hidden = tuple(runs), tuple(hidden)
        self.names = path_labels([str(run.folder) for run in self.runs])
        self.settings = differing_fields(self.runs) if self.runs else []
        self.measures = [
            name for name in MAIN_MEASURES if any(_value(run, name) is not None for run in self.runs)
        ]

    def sorted(self, column: str, reverse: bool = False) -> "RunList":
        """The same runs in the order of a column; those without a value come last.

        The newest run and the best value of a measure come first; everything else is sorted from the lowest.

        Args:
            column: `run`, `begun`, `state`, `frames`, `seconds`, a field of the request, or a measure.
            reverse: in the opposite order.

        Raises:
            InvalidRequest: there is no such column.
        """
        known = [*COLUMNS, *KINDS, *(type(self.runs[0].params).model_fields if self.runs else ())]
        if self.runs and column not in known:
            remedy = nearest_name(column, known)
            raise InvalidRequest("no such column to sort by", received=column, remedy=remedy)
        keys = {run.folder: _sort_key(run, column) for run in self.runs}
        having = [run for run in self.runs if keys[run.folder] is not None]
        lacking = [run for run in self.runs if keys[run.folder] is None]
        down = column == "begun" or (column in KINDS and KINDS[column].better == "higher")
        having.sort(key=lambda run: keys[run.folder], reverse=down != reverse)
        return RunList([*having, *lacking], self.hidden)

    def to_json(self) -> dict[str, Any]:
        """Plain values: a row for each run, with all its measures."""
        return {
            "runs": [
                {
                    "run": name,
                    "folder": str(run.folder),
                    "begun": run.begun.isoformat(timespec="seconds"),
                    "state": run.state,
                    "problem": run.problem or None,
                    "video_seconds": run.result.duration_seconds if run.finished else None,
                    "frames": run.result.frame_count if run.finished else None,
                    "resolution": run.result.resolution if run.finished else None,
                    "seconds": run.seconds if run.finished else None,
                    "settings": run.params.model_dump(mode="json", include=set(self.settings)),
                    "measures": {name: measure["value"] for name, measure in run.measures.items()},
                    "not_measured": {
                        name: measure["why_not"]
                        for name, measure in run.measures.items()
                        if measure["value"] is None
                    },
                }
                for run, name in zip(self.runs, self.names, strict=True)
            ],
            "hidden": [str(folder) for folder in self.hidden],
        }

    def __str__(self) -> str:
        head, rows = self._cells(MAX_TEXT)
        numeric = [place for place, key in enumerate(self._keys) if key in NUMERIC]
        lines = text_table(head, rows, numeric) if rows else ""
        return "\n".join(filter(None, [lines, *self._notes()]))

    def _repr_html_(self) -> str:
        head, rows = self._cells(4 * MAX_TEXT)
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self._notes())
        return (table([dict(zip(head, row, strict=True)) for row in rows]).data if rows else "") + notes

    @property
    def _keys(self) -> list[str]:
        return [*COLUMNS, *self.settings, *self.measures]

    def _cells(self, longest: int) -> tuple[list[str], list[list[str]]]:
        """The head of the table, and its rows."""
        head = [
            *COLUMNS.values(),
            *map(title, self.settings),
            *(capitalised(readable_name(name)) for name in self.measures),
        ]
        columns = [
            shortened(value_labels([getattr(run.params, name) for run in self.runs], name), longest)
            for name in self.settings
        ]
        rows = []
        for place, (run, name) in enumerate(zip(self.runs, self.names, strict=True)):
            took = f"{run.seconds:.1f} s" if run.finished else NONE
            measured = [_measure(run, measure) for measure in self.measures]
            settings = [column[place] for column in columns]
            rows.append([name, moment(run.begun), run.state, _video(run), took, *settings, *measured])
        return head, rows

    def _notes(self) -> list[str]:
        """Why there are no rows, or no values in them."""
        notes = [] if self.runs else ["No runs."]
        notes += [
            f"{name}: {run.problem}" for run, name in zip(self.runs, self.names, strict=True) if run.problem
        ]
        missing: dict[str, list[str]] = {}
        for name in self.measures:
            for run, run_name in zip(self.runs, self.names, strict=True):
                if run.finished and _value(run, name) is None:
                    reason = run.measures.get(name, {}).get("why_not") or "this version did not measure it"
                    missing.setdefault(f"{capitalised(readable_name(name))} ({reason})", []).append(run_name)
        notes += [f"Not measured: {what}: {', '.join(names)}." for what, names in missing.items()]
        notes += [f"Left out: {folder.name}, whose request cannot be read." for folder in self.hidden]
        return notes


def list_runs(folder: str | Path = "outputs") -> RunList:
    """The runs in a folder, newest first.

    Args:
        folder: holds the folders of runs, such as `outputs` or the `cells` of a sweep; relative to the
            project.

    Raises:
        NoFinishedRun: there is no such folder, or it is that of one run or of a sweep.
    """
    path = project_folder() / folder
    if not path.is_dir():
        raise NoFinishedRun("no such folder", received=str(folder), remedy="Name a folder that holds runs.")
    runs = find_runs(path)
    known = {run.folder for run in runs}
    folders = {file.parent for name in (REQUEST, RECORD) for file in path.glob(f"*/{name}")}
    hidden = sorted(folders - known)
    if not runs and not hidden:
        for part, kind in ((REQUEST, "one run"), ("sweep.yaml", "a sweep")):
            if (path / part).is_file():
                inside = path.parent if kind == "one run" else path / "cells"
                raise NoFinishedRun(
                    f"the folder is that of {kind}", received=str(folder), remedy=f"List {inside}."
                )
    return RunList(runs, hidden)


def _video(run: PastRun) -> str:
    if run.finished:
        return f"{run.result.duration_seconds:.2f} s, {run.result.frame_count} frames"
    return f"{chunks(len(run.parts))} finished" if not run.problem else NONE


def _value(run: PastRun, name: str) -> float | None:
    found: float | None = run.measures.get(name, {}).get("value")
    return found


def _measure(run: PastRun, name: str) -> str:
    value, unit = _value(run, name), KINDS[name].unit
    return NONE if value is None else f"{value:.3g}{'' if unit == '1' else f' {unit}'}"


def _sort_key(run: PastRun, column: str) -> Any:
    """What a run is sorted by; None: it has no such value."""
    if column in KINDS:
        return _value(run, column)
    of_run: dict[str, Any] = {"run": run.folder.name, "begun": run.begun, "state": run.state}
    if column in of_run:
        return of_run[column]
    if column in COLUMNS:
        return (run.result.frame_count if column == "frames" else run.seconds) if run.finished else None
    value = getattr(run.params, column)
    return value if value is None or isinstance(value, int | float | str) else str(value)
