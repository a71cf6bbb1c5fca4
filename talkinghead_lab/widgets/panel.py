"""The tuning panel: settings, Generate and Stop, what is made as it is made, and the runs before."""

import asyncio
import html
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from talkinghead_lab.errors import TalkingHeadError
from talkinghead_lab.foundation.paths import project_folder
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.runs.generate import GenerationResult
from talkinghead_lab.runs.history import PastRun, parts_in
from talkinghead_lab.widgets.gallery import Gallery, comparison_html
from talkinghead_lab.widgets.jobs import GenerationThread, Job, status_html
from talkinghead_lab.widgets.parameter_files import free_name, presets, save_request
from talkinghead_lab.widgets.player import Clip, Player, clip_of_growing, clip_of_run
from talkinghead_lab.widgets.settings import Settings

SECONDS_BETWEEN_LOOKS = 0.3
MOST_SIDE_BY_SIDE = 4
HINT = "Press Generate. Every chunk is shown here as soon as it is finished."


class TuningPanel(widgets.VBox):
    """Sets a request by hand, makes its video, and compares it with those before.

    The video is made in a thread, so that the kernel stays free; while it is free the panel looks after the
    thread by itself, elsewhere `refresh` does.

    Args:
        params: what is shown at first.
        folder: where runs go and are found again, relative to the project's folder.
        media_folder: whose files are offered, and where uploads go; unset: `shared/` of the project.
    """

    def __init__(
        self, params: GenerationParams, folder: str | Path = "outputs", media_folder: Path | None = None
    ) -> None:
        super().__init__()
        self.folder = project_folder() / folder
        self.thread = GenerationThread.of_this_process()
        self._settled: Job | None = None if self.thread.busy else self.thread.job
        self._growing: list[Clip] = []
        self._parts_shown = 0
        self._shown_by_itself: Path | None = None
        self._watch: asyncio.Task[None] | None = None
        self._make_widgets(params, media_folder)
        self._lay_out()
        self.gallery.refresh(self._under_way)
        newest = next((run for run in self.gallery.runs if run.finished), None)
        if newest is not None:
            self._show_by_itself(newest.folder)
        self.refresh()
        self._keep_watch()

    def _make_widgets(self, params: GenerationParams, media_folder: Path | None) -> None:
        self.status, self.bar = widgets.HTML(), widgets.FloatProgress(max=1.0)
        self.complaint, self.saved, self.table = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self.generate_button = widgets.Button(description="Generate", icon="play")
        self.stop_button = widgets.Button(description="Stop", icon="stop", disabled=True)
        self.generate_button.on_click(lambda button: self.generate())
        self.stop_button.on_click(lambda button: self.stop())
        self.preset = widgets.Dropdown(options=presets(self.folder), tooltip="sets everything as a file says")
        self.preset.observe(self._preset_chosen, "value")
        self.reset_button = widgets.Button(description="Reset", icon="undo", tooltip="takes changes back")
        self.reset_button.on_click(lambda button: self._reset())
        self.file_name = widgets.Text(value=free_name(self.folder, "tuned"), continuous_update=False)
        self.save_button = widgets.Button(description="Save as YAML", icon="save")
        self.save_button.on_click(lambda button: self.save())
        self.player = Player(hint=HINT)
        self.gallery = Gallery(self.folder, self._show, self._use, self._begin_again)
        self.settings = Settings(params, self._settings_changed, media_folder)

    def _lay_out(self) -> None:
        title = widgets.HTML("<h2>Tune</h2>")
        top = widgets.HBox(
            [title, widgets.Label("Preset"), self.preset, self.reset_button, self.file_name, self.save_button]
        )
        actions = widgets.HBox([self.generate_button, self.stop_button, self.status, self.saved])
        stage = widgets.VBox([actions, self.bar, self.complaint, self.player, self.gallery, self.table])
        body = widgets.Box([self.settings, stage])
        parts = {
            "panel": self, "top": top, "actions": actions, "stage": stage, "body": body, "bar": self.bar,
            "status": self.status, "complaint": self.complaint, "generate": self.generate_button,
            "stop": self.stop_button, "saved": self.saved,
        }  # fmt: skip
        for name, part in parts.items():
            part.add_class(f"thl-{name}")
        self.children = (top, body)

    @property
    def params(self) -> GenerationParams:
        """The request as it is set.

        Raises:
            InvalidRequest: a value that cannot be, or values that contradict each other.
        """
        return self.settings.params

    @property
    def runs(self) -> list[PastRun]:
        """The runs of the folder, newest first."""
        return self.gallery.runs

    def generate(self) -> None:
        """Make a video of the request as it is set; while one is being made, nothing."""
        with self._telling():
            if not self.thread.busy:
                self._begin(self.params, self.folder / f"tune_{datetime.now():%Y%m%d_%H%M%S_%f}")

    def stop(self) -> None:
        """End the run after its present step; its finished chunks stay and it can be continued."""
        if self.thread.job is not None:
            self.thread.job.stop.set()
        self.refresh()

    def wait(self, seconds: float | None = None) -> GenerationResult | None:
        """Block until the video is made, or so many seconds have passed, then show and give what there is.

        Raises:
            TalkingHeadError: the run failed.
        """
        job = self.thread.job
        if job is None:
            return None
        job.ended.wait(seconds)
        self.refresh()
        if job.state == "failed":
            raise TalkingHeadError(job.problem)
        return GenerationResult.from_run(job.folder) if job.state == "finished" else None

    def save(self) -> Path | None:
        """Write the request to `params/` in the folder of runs; None where it cannot be written."""
        with self._telling():
            path = save_request(self.params, self.folder, self.file_name.value)
            shown = path.relative_to(project_folder()) if path.is_relative_to(project_folder()) else path
            self.saved.value = f"Saved: <code>{html.escape(str(shown))}</code>"
            self.preset.options = presets(self.folder)
            self.file_name.value = free_name(self.folder, path.stem)
            return path
        return None

    def refresh(self) -> None:
        """Show how far the video is, what of it is finished, and once it is made the video itself."""
        job = self.thread.job
        if job is not None:
            self._show_growth(job)
            if job.ended.is_set() and job is not self._settled:
                self._settle(job)
            self.status.value = status_html(job)
            self.bar.value = 1.0 if job.state == "finished" else job.fraction
            self.bar.bar_style = {"finished": "success", "failed": "danger"}.get(job.state, "")
        busy = self.thread.busy
        self.generate_button.disabled = busy or bool(self.complaint.value)
        self.stop_button.disabled = not busy or (job is not None and job.stop.is_set())

    @property
    def _under_way(self) -> Path | None:
        return self.thread.job.folder if self.thread.job and self.thread.busy else None

    def _begin(self, params: GenerationParams, folder: Path) -> None:
        self.thread.submit(params, folder)
        self._parts_shown = 0
        self.refresh()
        self._keep_watch()

    def _begin_again(self, run: PastRun) -> None:
        with self._telling():
            self._begin(run.params, run.folder)

    def _use(self, run: PastRun) -> None:
        self.settings.load(run.params)

    def _reset(self) -> None:
        self.settings.load(self.settings.loaded)

    def _show_growth(self, job: Job) -> None:
        """Show the chunks that were finished since the last look."""
        parts = parts_in(job.folder)
        if job.ended.is_set() or len(parts) <= self._parts_shown:
            return
        with self._telling():
            self._growing = [clip_of_growing(job.folder, job.params, parts)]
            self._parts_shown = len(parts)
            self.gallery.refresh(self._under_way)
            self._show()

    def _settle(self, job: Job) -> None:
        """Show what became of a job that has ended."""
        self._settled, self._growing, self._parts_shown = job, [], 0
        self.gallery.refresh(None)
        if job.state == "finished":
            self._show_by_itself(job.folder)
        self._show()

    def _show_by_itself(self, folder: Path) -> None:
        """Choose a run in place of the last one that was chosen so, and beside those that the user chose."""
        if self._shown_by_itself is not None:
            self.gallery.choose(self._shown_by_itself, False)
        self._shown_by_itself = folder
        self.gallery.choose(folder)

    def _show(self) -> None:
        """Play the growing video and the chosen runs side by side, over what is known of them."""
        runs = self.gallery.chosen[-(MOST_SIDE_BY_SIDE - len(self._growing)) :]
        with self._telling():
            self.player.clips = self._growing + [clip_of_run(run) for run in runs]
            self.table.value = comparison_html(runs)

    def _settings_changed(self) -> None:
        complaint = self.settings.mark()
        self.complaint.value = f"<p>{html.escape(complaint)}</p>" if complaint else ""
        self.saved.value = ""
        self.refresh()

    def _preset_chosen(self, change: Any) -> None:
        with self._telling():
            if change["new"]:
                self.settings.load(GenerationParams.from_yaml(change["new"]))

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Tell errors in the panel: what a button raises would end in the server's log."""
        try:
            yield
        except (TalkingHeadError, OSError) as error:
            self.complaint.value = f"<p>{html.escape(str(error))}</p>"

    def _keep_watch(self) -> None:
        """Refresh while a video is being made; only where an event loop runs, as in a notebook."""
        if self.thread.busy and (self._watch is None or self._watch.done()):
            try:
                self._watch = asyncio.get_running_loop().create_task(self._look_often())
            except RuntimeError:
                self._watch = None

    async def _look_often(self) -> None:
        while self.thread.busy:
            self.refresh()
            await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
        self.refresh()
