"""Cards of past runs, to compare them, reuse their settings or continue them."""

import html
from collections.abc import Callable
from pathlib import Path

import ipywidgets as widgets

from talkinghead_lab.errors import TalkingHeadError
from talkinghead_lab.figures.run_names import run_names
from talkinghead_lab.runs.history import PastRun, chunks, find_runs, in_a_line, moment, thumbnail
from talkinghead_lab.widgets.media_picker import jpeg_url

CARD_LIMIT = 12

OnRun = Callable[[PastRun], None]


class Card(widgets.VBox):  # type: ignore[misc]  # ipywidgets is untyped
    """A run: thumbnail, state, main settings and buttons."""

    def __init__(
        self, run: PastRun, on_compare: Callable[[], None], on_use: OnRun, on_continue: OnRun
    ) -> None:
        self.run, self.name = run, run.folder.name
        self.compare = widgets.ToggleButton(description="Compare", disabled=not run.finished)
        self.compare.tooltip = "show this video next to the others selected"
        self.use = widgets.Button(
            description="Use settings", tooltip="load the settings of this run into the panel"
        )
        self.resume = widgets.Button(description="Continue", tooltip="resume after the last finished chunk")
        self.compare.observe(lambda change: on_compare(), "value")
        self.use.on_click(lambda button: on_use(run))
        self.resume.on_click(lambda button: on_continue(run))
        buttons = widgets.HBox([self.compare if run.finished else self.resume, self.use])
        buttons.add_class("thl-row")
        self.summary, self._shown = widgets.HTML(), ("", False, -1)
        super().__init__([self.summary, buttons])
        self.add_class("thl-card")

    def update(self, name: str, running: bool, busy: bool) -> None:
        """Show name and state; `busy`: a run is being generated, so that none can be continued."""
        self.name = name
        self.resume.disabled = busy or bool(self.run.problem)
        shown = (name, running, len(self.run.parts))
        if shown != self._shown:
            self._shown, self.summary.value = shown, card_html(self.run, name, running)


class Gallery(widgets.VBox):  # type: ignore[misc]  # ipywidgets is untyped
    """The newest runs of a folder.

    Args:
        folder: folder that contains the run folders.
        on_compare: called after the selection of videos has changed.
        on_use: called with the run whose settings to load.
        on_continue: called with the unfinished run to continue.
    """

    def __init__(
        self, folder: Path, on_compare: Callable[[], None], on_use: OnRun, on_continue: OnRun
    ) -> None:
        self.folder, self._callbacks = folder, (on_compare, on_use, on_continue)
        self.runs: list[PastRun] = []
        self.cards: dict[tuple[Path, bool], Card] = {}
        self._heading = widgets.HTML()
        self._grid = widgets.Box()
        self._grid.add_class("thl-cards")
        super().__init__([self._heading, self._grid])
        self.add_class("thl-runs")

    @property
    def selected(self) -> dict[str, PastRun]:
        """The runs selected for comparison by their names, oldest first."""
        return {card.name: card.run for card in reversed(self.cards.values()) if card.compare.value}

    def select(self, folder: Path, on: bool = True) -> None:
        """Select or deselect the finished run of a folder."""
        card = self.cards.get((folder, True))
        if card is not None:
            card.compare.value = on

    def refresh(self, running: Path | None) -> None:
        """Read the folder again; `running`: folder of the run being generated."""
        self.runs, known = find_runs(self.folder), self.cards
        self.cards = {}
        for run in self.runs[:CARD_LIMIT]:
            card = known.get((run.folder, run.finished))
            if card is None or card.run.state != run.state:
                card = Card(run, *self._callbacks)
            self.cards[run.folder, run.finished] = card
        names = run_names([card.run for card in self.cards.values()])
        for card, name in zip(self.cards.values(), names, strict=True):
            card.update(name, card.run.folder == running, running is not None)
        self._grid.children = tuple(self.cards.values())
        count = f"the newest {CARD_LIMIT} of " if len(self.runs) > CARD_LIMIT else ""
        self._heading.value = (
            f"<h3>Runs <small>{count}{len(self.runs)} in {html.escape(self.folder.name)}/</small></h3>"
        )


def card_html(run: PastRun, name: str, running: bool) -> str:
    """Thumbnail, name, state, start time and main settings of a run."""
    state = "under way" if running else run.state
    try:
        picture = f'<img alt="" src="{jpeg_url(thumbnail(run))}">'
    except TalkingHeadError:
        picture = ""
    wanted = "size by the portrait" if run.params.frame_size == "auto" else run.params.frame_size
    size = run.result.resolution if run.finished else wanted
    length = f"{run.result.duration_seconds:.2f} s" if run.finished else chunks(len(run.parts))
    facts = f"{size} · {length} · {moment(run.begun)}"
    return (
        f'{picture}<div><div class="thl-heading"><b title="{html.escape(name)}">{html.escape(name)}</b>'
        f'<span class="thl-chip thl-{state.split()[0]}">{state}</span></div>'
        f"<p>{html.escape(in_a_line(run.params))}<br>{html.escape(facts)}</p>"
        f"{f'<p>{html.escape(run.problem)}</p>' if run.problem else ''}</div>"
    )
