"""The tuning panel: request form, Generate and Stop, the video as it grows, and past runs."""

import asyncio
import html
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from talkinghead_lab.errors import TalkingHeadError
from talkinghead_lab.figures.comparison import Comparison
from talkinghead_lab.figures.labels import with_titles
from talkinghead_lab.foundation.paths import project_folder
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.runs.history import PastRun, parts_in
from talkinghead_lab.runs.result import GenerationResult
from talkinghead_lab.widgets.gallery import Gallery
from talkinghead_lab.widgets.jobs import GenerationThread, PanelJob, status_html
from talkinghead_lab.widgets.parameter_files import free_name, presets, save_request
from talkinghead_lab.widgets.player import Clip, Player, clip_of_growing_video, clip_of_run
from talkinghead_lab.widgets.request_form import RequestForm

REFRESH_SECONDS = 0.3
SIDE_BY_SIDE_LIMIT = 4
HINT = "Press Generate. Every chunk is shown here as soon as it is finished."


class TuningPanel(widgets.VBox):  # type: ignore[misc]  # ipywidgets is untyped
    """Edits a request, generates its video and compares it with past runs.

    A thread generates the video, so that the kernel stays free. Where an event loop runs, as in a notebook,
    the panel refreshes itself; elsewhere call `refresh`.

    Args:
        params: the request shown first.
        folder: folder of the runs, relative to the project.
        media_folder: folder of the files on offer and of uploads; default: `shared/` of the project.
    """

    def __init__(
        self, params: GenerationParams, folder: str | Path = "outputs", media_folder: Path | None = None
    ) -> None:
        super().__init__()
        self.folder = project_folder() / folder
        self.thread = GenerationThread.of_this_process()
        self._handled: PanelJob | None = None if self.thread.busy else self.thread.job
        self._running_clips: list[Clip] = []
        self._parts_shown = 0
        self._auto_selected: Path | None = None
        self._refreshing: asyncio.Task[None] | None = None
        self._make_widgets(params, media_folder)
        self._lay_out()
        self.gallery.refresh(self._running_folder)
        newest = next((run for run in self.gallery.runs if run.finished), None)
        if newest is not None:
            self._select_automatically(newest.folder)
        self._form_changed()
        self._start_refreshing()

    def _make_widgets(self, params: GenerationParams, media_folder: Path | None) -> None:
        self.status, self.bar = widgets.HTML(), widgets.FloatProgress(max=1.0)
        # What is wrong with the form, with the last action, and with a video that should be shown.
        self.complaint, self.failure, self.unshown = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self.notice = widgets.HTML()
        self.saved, self.table = widgets.HTML(), widgets.HTML()
        self.generate_button = widgets.Button(description="Generate", icon="play")
        self.stop_button = widgets.Button(description="Stop", icon="stop", disabled=True)
        self.generate_button.on_click(lambda button: self.generate())
        self.stop_button.on_click(lambda button: self.stop())
        self.preset = widgets.Dropdown(
            description="Preset", options=presets(self.folder), tooltip="load all settings from a file"
        )
        self.preset.observe(self._preset_chosen, "value")
        self.reset_button = widgets.Button(description="Reset", icon="undo", tooltip="discard all changes")
        self.reset_button.on_click(lambda button: self._reset())
        self.file_name = widgets.Text(
            description="Save as", value=free_name(self.folder, "tuned"), continuous_update=False
        )
        self.save_button = widgets.Button(description="Save as YAML", icon="save")
        self.save_button.on_click(lambda button: self.save())
        self.player = Player(hint=HINT)
        self.gallery = Gallery(self.folder, self._show, self._use, self._continue)
        self.form = RequestForm(params, self._form_changed, media_folder)

    def _lay_out(self) -> None:
        title = widgets.HTML("<h2>Tune</h2>")
        top = widgets.HBox([title, self.preset, self.reset_button, self.file_name, self.save_button])
        actions = widgets.HBox([self.generate_button, self.stop_button, self.status, self.saved])
        messages = [self.complaint, self.failure, self.unshown, self.notice]
        stage = widgets.VBox([actions, self.bar, *messages, self.player, self.gallery, self.table])
        body = widgets.Box([self.form, stage])
        parts = {
            "panel": self, "top": top, "actions": actions, "stage": stage, "body": body, "bar": self.bar,
            "status": self.status, "complaint": self.complaint, "failure": self.failure,
            "unshown": self.unshown, "notice": self.notice,
            "generate": self.generate_button, "stop": self.stop_button, "saved": self.saved,
        }  # fmt: skip
        for name, part in parts.items():
            part.add_class(f"thl-{name}")
        self.children = (top, body)

    @property
    def params(self) -> GenerationParams:
        """The request with the values of the form.

        Raises:
            InvalidRequest: a value is not valid, or values contradict each other.
        """
        return self.form.params

    @property
    def runs(self) -> list[PastRun]:
        """The runs in the folder, newest first."""
        return self.gallery.runs

    def generate(self) -> None:
        """Generate the video of the form's request; do nothing while another one is being generated."""
        with self._acting():
            if not self.thread.busy:
                self._begin(self.params, self.folder / f"tune_{datetime.now():%Y%m%d_%H%M%S_%f}")

    def stop(self) -> None:
        """Stop the run after the current step. Its finished chunks are kept and it can be continued."""
        if self.thread.job is not None:
            self.thread.job.stop.set()
        self.refresh()

    def wait(self, seconds: float | None = None) -> GenerationResult | None:
        """Block until the run ends or the timeout expires, refresh, and return the result of a finished run.

        Raises:
            TalkingHeadError: the run failed.
        """
        job = self.thread.job
        if job is None:
            return None
        job.wait(seconds)
        self.refresh()
        if job.state == "failed":
            raise TalkingHeadError(job.problem)
        return GenerationResult.from_run(job.folder) if job.state == "finished" else None

    def save(self) -> Path | None:
        """Write the request to `params/` in the folder of runs; None if it cannot be written."""
        with self._acting():
            path = save_request(self.params, self.folder, self.file_name.value)
            shown = path.relative_to(project_folder()) if path.is_relative_to(project_folder()) else path
            self.saved.value = f"Saved: <code>{html.escape(str(shown))}</code>"
            self._offer_presets(str(path))
            self.file_name.value = free_name(self.folder, path.stem)
            return path
        return None

    def refresh(self) -> None:
        """Show progress and finished chunks of the run, and its video once it is finished."""
        job = self.thread.job
        if job is not None:
            self._show_finished_chunks(job)
            if job.is_done and job is not self._handled:
                self._handle_end(job)
            self.status.value = status_html(job)
            self.bar.value = job.fraction
            self.bar.bar_style = {"finished": "success", "failed": "danger"}.get(job.state, "")
        busy = self.thread.busy
        warnings = job.warnings if job is not None and busy else self.form.preview.warnings
        self.notice.value = "".join(map(paragraph, warnings))
        self.generate_button.disabled = busy or bool(self.complaint.value)
        self.stop_button.disabled = not busy or (job is not None and job.stop.is_set())

    @property
    def _running_folder(self) -> Path | None:
        return self.thread.job.folder if self.thread.job and self.thread.busy else None

    def _begin(self, params: GenerationParams, folder: Path) -> None:
        self.thread.submit(params, folder)
        self._parts_shown = 0
        self.refresh()
        self._start_refreshing()

    def _continue(self, run: PastRun) -> None:
        with self._acting():
            self._begin(run.params, run.folder)

    def _use(self, run: PastRun) -> None:
        with self._acting():
            self.form.load(run.params)

    def _reset(self) -> None:
        with self._acting():
            self.form.load(self.form.loaded)

    def _offer_presets(self, saved: str) -> None:
        """List the presets anew and select the file that now holds the form's request."""
        self.preset.unobserve(self._preset_chosen, "value")  # the form has these values
        self.preset.options = presets(self.folder)
        self.preset.value = saved
        self.preset.observe(self._preset_chosen, "value")

    def _show_finished_chunks(self, job: PanelJob) -> None:
        """Show the run up to its newest finished chunk, or its first frames."""
        finished = len(parts_in(job.folder))
        if job.is_done or (self._running_clips and finished <= self._parts_shown):
            return
        with self._errors_shown(self.unshown):
            clip = clip_of_growing_video(job.folder, job.params, finished)
            if clip is None:
                return
            self._running_clips, self._parts_shown = [clip], finished
            self.gallery.refresh(self._running_folder)
            self._show()

    def _handle_end(self, job: PanelJob) -> None:
        """Show the result of a job that has ended."""
        self._handled, self._running_clips, self._parts_shown = job, [], 0
        self.gallery.refresh(None)
        if job.state == "finished":
            self._select_automatically(job.folder)
        self._show()

    def _select_automatically(self, folder: Path) -> None:
        """Select a run instead of the last automatic selection, in addition to the user's selection."""
        if self._auto_selected is not None:
            self.gallery.select(self._auto_selected, False)
        self._auto_selected = folder
        self.gallery.select(folder)

    def _show(self) -> None:
        """Play the running video and the selected runs side by side, above the comparison table."""
        shown = [*self.gallery.selected.items()][-(SIDE_BY_SIDE_LIMIT - len(self._running_clips)) :]
        clips, self.unshown.value = list(self._running_clips), ""
        for name, run in shown:
            with self._errors_shown(self.unshown):
                clips.append(clip_of_run(run, name))
        self.player.clips = clips
        with self._errors_shown(self.unshown):
            comparison = Comparison([run for _, run in shown], [name for name, _ in shown])
            self.table.value = comparison._repr_html_() if shown else ""

    def _form_changed(self) -> None:
        message = self.form.mark()
        self.complaint.value = paragraph(message) if message else ""
        self.failure.value = self.saved.value = ""
        self.refresh()

    def _preset_chosen(self, change: Any) -> None:
        with self._acting():
            if change["new"]:
                self.form.load(GenerationParams.from_yaml(change["new"]))

    @contextmanager
    def _acting(self) -> Iterator[None]:
        """Something that the user asked for: what it says replaces what the action before said."""
        self.failure.value = self.saved.value = ""
        with self._errors_shown(self.failure):
            yield

    @contextmanager
    def _errors_shown(self, message: widgets.HTML) -> Iterator[None]:
        """Show errors in the panel: an exception in a button's callback appears only in the server's log."""
        try:
            yield
        except (TalkingHeadError, OSError) as error:
            message.value = paragraph(str(error))

    def _start_refreshing(self) -> None:
        """Refresh while a video is being generated, if an event loop is running."""
        if self.thread.busy and (self._refreshing is None or self._refreshing.done()):
            try:
                self._refreshing = asyncio.get_running_loop().create_task(self._refresh_until_ended())
            except RuntimeError:
                self._refreshing = None

    async def _refresh_until_ended(self) -> None:
        while self.thread.busy:
            self.refresh()
            await asyncio.sleep(REFRESH_SECONDS)
        self.refresh()


def paragraph(message: str) -> str:
    """An error or a warning, which names fields as the form does."""
    return f"<p>{html.escape(with_titles(message))}</p>"
