"""Figures that papers print, as data: for orientation beside a table, never for a comparison."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).with_name("published.json")
MARK = "†"
NOTE = (
    f"{MARK} published elsewhere, on other clips, by other scripts and without intervals: not to be compared "
    "with the rows above."
)


@dataclass(frozen=True)
class Published:
    """One row of somebody's table.

    Args:
        system: which was measured.
        set: dataset of the clips, as `benchmark manifest` calls it.
        figures: by measure.
        paper: who printed them, in short.
        source: address of the paper.
        by: who measured, and how the figures were come by.
        unknown: what nobody says about them.
    """

    system: str
    set: str
    figures: Mapping[str, float]
    paper: str
    source: str
    by: str
    unknown: str

    @property
    def name(self) -> str:
        """System, mark, and the paper if it is of another system; several papers may have measured one."""
        return f"{self.system} {MARK}" + ("" if self.paper == self.system else f" in {self.paper}")


def published(dataset: str | None = None) -> Sequence[Published]:
    """All rows, or those of one dataset."""
    rows = [Published(**fields) for fields in json.loads(FILE.read_text("utf-8"))]
    return [row for row in rows if dataset in (None, row.set)]


def published_notes(rows: Sequence[Published]) -> list[str]:
    """What the rows are, and for each its source and what is unknown about it."""
    sources = [f"{row.name}: {row.source}, {row.by}; unknown: {row.unknown}." for row in rows]
    return [NOTE, *sources] if rows else []
