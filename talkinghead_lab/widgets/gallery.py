"""The history of runs as cards: what each one was, taking it up again, choosing what is compared."""

import html
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from talkinghead_lab.errors import TalkingHeadError
from talkinghead_lab.runs.history import (
    PastRun,
    chunks,
    differing_fields,
    find_runs,
    in_a_line,
    measures,
    moment,
    thumbnail,
)
from talkinghead_lab.widgets.media import jpeg_url

MOST_CARDS = 12
WORDS = {"higher": max, "lower": min}

OnRun = Callable[[PastRun], None]


class Card(widgets.VBox):
    """One run."""

    def __init__(self, run: PastRun, compare: Callable[[], None], use: OnRun, go_on: OnRun) -> None:
        self.run = run
        self.compare = widgets.ToggleButton(description="Compare", disabled=not run.finished)
        self.compare.tooltip = "shows this video beside the others that are chosen"
        self.use = widgets.Button(description="Use settings", tooltip="sets the panel as this run was set")
        self.go_on = widgets.Button(description="Continue", tooltip="goes on at the last finished chunk")
        self.compare.observe(lambda change: compare(), "value")
        self.use.on_click(lambda button: use(run))
        self.go_on.on_click(lambda button: go_on(run))
        buttons = widgets.HBox([self.compare if run.finished else self.go_on, self.use])
        buttons.add_class("thl-row")
        self.look, self._shown = widgets.HTML(), (False, -1)
        super().__init__([self.look, buttons])
        self.add_class("thl-card")

    def show(self, under_way: bool, busy: bool) -> None:
        """Tell the state, and offer to continue what nobody works on."""
        self.go_on.disabled = busy
        shown = (under_way, len(self.run.parts))
        if shown != self._shown:
            self._shown, self.look.value = shown, card_html(self.run, under_way)


class Gallery(widgets.VBox):
    """The newest runs of a folder.

    Args:
        folder: whose sub-folders are runs.
        compare: called when the choice of videos changed.
        use: called with a run whose settings are wanted.
        go_on: called with an unfinished run that is to be continued.
    """

    def __init__(self, folder: Path, compare: Callable[[], None], use: OnRun, go_on: OnRun) -> None:
        self.folder, self._calls = folder, (compare, use, go_on)
        self.runs: list[PastRun] = []
        self.cards: dict[tuple[Path, bool], Card] = {}
        self._heading = widgets.HTML()
        self._grid = widgets.Box()
        self._grid.add_class("thl-cards")
        super().__init__([self._heading, self._grid])
        self.add_class("thl-runs")

    @property
    def chosen(self) -> list[PastRun]:
        """The runs whose videos are to be seen, oldest first."""
        return [card.run for card in reversed(self.cards.values()) if card.compare.value]

    def choose(self, folder: Path, on: bool = True) -> None:
        """Choose the finished run of a folder, or no longer."""
        card = self.cards.get((folder, True))
        if card is not None:
            card.compare.value = on

    def refresh(self, under_way: Path | None) -> None:
        """Look at the folder again; `under_way`: the run that is being made."""
        self.runs, known = find_runs(self.folder), self.cards
        self.cards = {
            (run.folder, run.finished): known.get((run.folder, run.finished)) or Card(run, *self._calls)
            for run in self.runs[:MOST_CARDS]
        }
        for card in self.cards.values():
            card.show(card.run.folder == under_way, under_way is not None)
        self._grid.children = tuple(self.cards.values())
        count = f"the newest {MOST_CARDS} of " if len(self.runs) > MOST_CARDS else ""
        self._heading.value = (
            f"<h3>Runs <small>{count}{len(self.runs)} in {html.escape(self.folder.name)}/</small></h3>"
        )


def card_html(run: PastRun, under_way: bool) -> str:
    """Thumbnail, state, time and the settings that are changed most."""
    state = "finished" if run.finished else "under way" if under_way else "unfinished"
    try:
        picture = f'<img alt="" src="{jpeg_url(thumbnail(run))}">'
    except TalkingHeadError:
        picture = ""
    size = run.result.resolution if run.finished else run.params.frame_size
    made = f"{run.result.duration_seconds:.1f} s" if run.finished else chunks(len(run.parts))
    return (
        f"{picture}<div><header><b>{moment(run.begun)}</b>"
        f'<span class="thl-chip thl-{state.split()[0]}">{state}</span></header>'
        f"<p>{html.escape(in_a_line(run.params))}<br>{size} · {made}</p></div>"
    )


def comparison_html(runs: Sequence[PastRun]) -> str:
    """A column for each run: in which fields they differ, what each took, what was measured of it."""
    if not runs:
        return ""
    rows = [_row(name, [_told(getattr(run.params, name)) for run in runs]) for name in differing_fields(runs)]
    rows.append(_row("made in", [f"{run.seconds:.1f} s" for run in runs]))
    known = [measures(run) for run in runs]
    for name, measure in {name: of_run[name] for of_run in known for name in of_run}.items():
        values = [of_run.get(name, {}).get("value") for of_run in known]
        unit = "" if measure["unit"] == "1" else f" {measure['unit']}"
        figures = ["—" if value is None else f"{value:.3g}{unit}" for value in values]
        rows.append(_row(name.replace("_", " "), figures, _best(values, measure["better"])))
    head = "".join(f"<th>{moment(run.begun)}</th>" for run in runs)
    return (
        f'<table class="thl-table"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _row(name: str, values: Sequence[str], best: int | None = None) -> str:
    cells = "".join(
        f"<td{' class=thl-best' if place == best else ''}>{html.escape(value)}</td>"
        for place, value in enumerate(values)
    )
    return f"<tr><th>{html.escape(name)}</th>{cells}</tr>"


def _told(value: object) -> str:
    return "unset" if value is None else str(value)


def _best(values: Sequence[Any], better: str) -> int | None:
    """Where the best of several different values stands."""
    numbers = [value for value in values if value is not None]
    if better not in WORDS or len(set(numbers)) < 2:
        return None
    return values.index(WORDS[better](numbers))
