"""The panel in a real JupyterLab, operated with a real browser."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from playwright.sync_api import Browser, Page

from talkinghead_lab.figures.runs import video_player
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.widgets import player
from talkinghead_lab.widgets.box_editor import BoxEditor
from tests.accessibility import findings
from tests.browsers import chromium

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent.parent
MINUTES = 60_000  # milliseconds, the unit of Playwright
WIDTHS = {1024: 768, 1280: 900, 1920: 1080}
THEMES = ("JupyterLab Light", "JupyterLab Dark")
CHANGING_CLIPS = """async () => {
    const {default: {render}} = await import('/player.js');
    const bytes = async name => new Uint8Array(await (await fetch(name)).arrayBuffer());
    const video = {key: 'a', title: '', note: '', kind: 'video/mp4', content: await bytes('/clip.mp4')};
    const picture = {...video, kind: 'image/png', content: await bytes('/clip.png')};
    const state = {clips: [], hint: ''}, el = document.body;
    let changed;
    render({model: {get: name => state[name], on: (name, callback) => changed = callback}, el});
    const contents = [[video], [video, picture], [], [video, video]];
    for (let turn = 0; turn < 120; turn++) {
        state.clips = contents[turn % contents.length];
        changed();
        if (turn % 3 == 0 && state.clips.length) el.querySelector('[aria-label^=Play]').click();
        if (turn % 5) await new Promise(done => setTimeout(done, 10 * (turn % 5)));
    }
    await Promise.all([...el.querySelectorAll('video')].map(shown =>
        shown.readyState >= 3 || new Promise(done => shown.oncanplay = done)));
}"""
BOXES_OVER_A_PICTURE = """async () => {
    const {default: {render}} = await import('/boxes.js');
    const blob = await (await fetch('/clip.png')).blob();
    const state = window.state = {picture: URL.createObjectURL(blob), size: [320, 160], boxes: []};
    const followers = {};
    render({el: document.body, model: {
        get: name => state[name], set: (name, value) => state[name] = value,
        save_changes: () => state.saved = true,
        on: (event, callback) => followers[event] = callback,
    }});
    window.follow = boxes => { state.boxes = boxes; followers['change:boxes'](); };
    await document.querySelector('img').decode();
}"""
KERNEL_IS_IDLE = "window.jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.status == 'idle'"
TINY = {"max_frames": 53, "chunk_frames": 13, "motion_frame": 5, "diffusion_steps": 2, "frame_size": "64x64"}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


def errors_of(page: Page) -> list[str]:
    """A list to which all later errors of a page are added."""
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    return errors


def test_clips_that_change_while_loading_or_playing_are_released(browser):
    samples = player.FOLDER.parent / "embedded" / "samples"
    served = {
        "/": {"body": "<body></body>", "content_type": "text/html"},
        "/player.js": {"path": player.FOLDER / "player.js"},
        "/clip.mp4": {"path": samples / "driving.mp4"},
        "/clip.png": {"path": samples / "portrait.png"},
    }
    page = browser.new_page()
    errors = errors_of(page)
    page.route(
        "http://player.test/**", lambda route: route.fulfill(**served[urlsplit(route.request.url).path])
    )
    page.goto("http://player.test/")
    page.evaluate(CHANGING_CLIPS)
    assert errors == []
    page.close()


def test_boxes_are_dragged_over_the_picture_and_follow_the_form(browser):
    served = {
        "/": {"body": "<body></body>", "content_type": "text/html"},
        "/boxes.js": {"body": BoxEditor._esm, "content_type": "text/javascript"},
        "/clip.png": {"path": player.FOLDER.parent / "embedded" / "samples" / "two-people.png"},
    }
    page = browser.new_page()
    errors = errors_of(page)
    page.route(
        "http://boxes.test/**", lambda route: route.fulfill(**served[urlsplit(route.request.url).path])
    )
    page.goto("http://boxes.test/")
    page.add_style_tag(path=player.FOLDER / "panel.css")
    page.evaluate(BOXES_OVER_A_PICTURE)
    second, picture = page.locator(".thl-box").nth(1), page.locator("img").bounding_box()
    at = second.bounding_box()
    assert at["x"] - picture["x"] == pytest.approx(picture["width"] / 2, abs=1)
    second.press("Shift+ArrowLeft")
    assert page.evaluate("() => [state.boxes, state.saved]") == [[[0, 0, 160, 160], [160, 0, 317, 160]], True]
    page.mouse.move(at["x"] + 60, at["y"] + 60)
    page.mouse.down()
    page.mouse.move(at["x"] + 40, at["y"] + 60)
    page.mouse.up()
    moved = page.evaluate("() => state.boxes")[1]
    assert moved == pytest.approx([160 - 20 * 320 / picture["width"], 0, moved[0] + 157, 160], abs=1)
    page.evaluate("() => follow([[10, 20, 100, 120], [200, 20, 300, 120], [120, 0, 180, 160]])")
    assert page.locator(".thl-box").count() == 3
    third = page.locator(".thl-box").nth(2).bounding_box()
    assert third["width"] == pytest.approx(60 * picture["width"] / 320, abs=1)
    assert errors == []
    page.close()


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A project with the notebook, whose parameters give a video in seconds."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("notebooks", "params"):
        shutil.copytree(ROOT / name, folder / name)
    notebook = load_notebook_node(str(ROOT / "notebooks" / "05_tune.ipynb"))
    nbformat.write(parameterize_notebook(notebook, TINY), folder / "notebooks" / "05_tune.ipynb")
    return folder


@pytest.fixture(scope="module")
def lab(browser, project, tmp_path_factory) -> Iterator[str]:
    """The URL of a JupyterLab that serves the project, with settings of its own."""
    own = tmp_path_factory.mktemp("jupyter")
    settings = own / "settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text('{"fetchNews": "false", "checkForUpdates": false}')
    folders = {
        "JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
    }  # fmt: skip
    environment = os.environ | {name: str(own / folder) for name, folder in folders.items()}
    options = ["--no-browser", "--allow-root", "--ip=127.0.0.1", "--port=0", "--IdentityProvider.token="]
    with (own / "log").open("w") as log:
        server = subprocess.Popen(
            [
                *(sys.executable, "-m", "jupyterlab", *options),
                *("--LabApp.expose_app_in_browser=True", f"--ServerApp.root_dir={project}"),
            ],
            # Several threads on a busy machine wait for each other and are many times slower.
            env=environment | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=log,
        )
    try:
        yield _address(own / "runtime", server, own / "log")
    finally:
        server.terminate()
        server.wait(60)


def _address(runtime: Path, server: subprocess.Popen, log: Path) -> str:
    """The URL of the server, once it has written it."""
    until = time.monotonic() + 120
    while not (found := list(runtime.glob("jpserver-*.json"))):
        assert server.poll() is None, log.read_text()
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.2)
    return json.loads(found[0].read_text())["url"]


class Lab:
    """A page of JupyterLab with the notebook open."""

    def __init__(self, page, address: str):
        self.page, self.address, self.errors = page, address, errors_of(page)
        page.set_default_timeout(4 * MINUTES)

    def open(self) -> None:
        self.page.goto(f"{self.address}lab/tree/notebooks/05_tune.ipynb?reset")
        self.page.wait_for_selector(".jp-Notebook .jp-Cell")

    def command(self, name: str, **arguments: object) -> None:
        """Execute a JupyterLab command."""
        self.page.evaluate(
            "([name, given]) => window.jupyterapp.commands.execute(name, given)", [name, arguments]
        )

    def run_all(self) -> None:
        # The kernel starts some time after the notebook has opened.
        self.page.wait_for_function(KERNEL_IS_IDLE)
        self.command("notebook:run-all-cells")
        self.page.wait_for_selector(".thl-tiles")

    def use_theme(self, name: str) -> None:
        self.command("apputils:change-theme", theme=name)
        light = str(name.endswith("Light")).lower()
        self.page.wait_for_function(f"document.body.dataset.jpThemeLight == '{light}'")

    def wait_for_status(self, beginning: str) -> None:
        matches = "words => document.querySelector('.thl-status')?.innerText.startsWith(words)"
        self.page.wait_for_function(matches, arg=beginning)

    def type_into(self, place: str, text: str) -> None:
        """Replace the text of a box or of a slider's readout."""
        self.page.locator(place).first.click()
        self.page.keyboard.press("Control+a")
        self.page.keyboard.type(text)
        self.page.keyboard.press("Enter")

    def videos(self) -> list[dict[str, object]]:
        """State of the videos in the player."""
        return self.page.evaluate(
            """() => [...document.querySelectorAll('.thl-player video')].map(video => ({
                ready: video.readyState, time: video.currentTime, length: video.duration,
                paused: video.paused, muted: video.muted, error: video.error && video.error.message,
            }))"""
        )


@pytest.fixture(scope="module")
def opened(browser, lab) -> Lab:
    """The notebook after running all cells, with the panel."""
    found = Lab(browser.new_page(viewport={"width": 1280, "height": 900}), lab)
    found.open()
    found.command("application:toggle-left-area")
    found.run_all()
    return found


def runs(project: Path) -> list[Path]:
    return sorted((project / "outputs").glob("tune_*"))


def test_a_video_plays_in_a_notebook_that_nobody_trusts(browser, lab, project):
    """As papermill leaves it: JupyterLab then removes what it does not allow from the outputs."""
    shown = {"text/html": video_player(player.FOLDER.parent / "embedded" / "samples" / "driving.mp4").data}
    cell = new_code_cell("grid", execution_count=1, outputs=[new_output("display_data", shown)])
    kernel = {"name": "python3", "language": "python", "display_name": "Python"}
    executed = new_notebook(cells=[cell], metadata={"kernelspec": kernel})
    nbformat.write(executed, project / "notebooks" / "executed.ipynb")
    page = browser.new_page()
    page.goto(f"{lab}lab/tree/notebooks/executed.ipynb?reset")
    found = page.wait_for_selector(".jp-OutputArea video", timeout=2 * MINUTES, state="attached")
    assert page.evaluate("!window.jupyterapp.shell.currentWidget.model.cells.get(0).trusted")
    page.wait_for_function("document.querySelector('.jp-OutputArea video').readyState >= 2", timeout=MINUTES)
    assert found.evaluate("async video => { await video.play(); return video.controls && !video.error }")
    # A server that is stopped while a kernel starts does not end.
    page.wait_for_function(KERNEL_IS_IDLE, timeout=2 * MINUTES)
    page.close()


def test_a_moved_slider_sets_the_request_and_the_video_plays_with_sound(opened, project):
    page = opened.page
    page.locator(".thl-audio-guide-scale .noUi-handle").focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    page.wait_for_function("document.querySelector('.thl-audio-guide-scale.thl-changed')")
    # While the kernel is busy, the slider's moves arrive late; a click would overtake them.
    page.wait_for_timeout(1500)
    moved = float(page.locator(".thl-audio-guide-scale .widget-readout").inner_text())
    assert moved > 1
    for _ in range(3):
        page.locator(".thl-generate").click(force=True, no_wait_after=True)
    opened.wait_for_status("Finished in")
    (run,) = runs(project)
    assert GenerationParams.from_yaml(run / "request.yaml").audio_guide_scale == pytest.approx(moved)

    page.get_by_label("Play or pause (space)").click()
    page.wait_for_function("document.querySelector('.thl-player video').currentTime > 0.5")
    (video,) = opened.videos()
    assert video["ready"] >= 3
    assert not video["paused"]
    assert not video["muted"]
    assert video["error"] is None
    assert video["length"] == pytest.approx(53 / 25, abs=0.05)
    page.get_by_label("Play or pause (space)").click()


def test_an_invalid_value_is_reported_in_the_panel(opened):
    opened.type_into(".thl-seed input", "abc")
    opened.page.wait_for_selector(".thl-complaint p")
    assert "valid integer" in opened.page.locator(".thl-complaint").inner_text()
    assert opened.page.locator(".thl-generate").is_disabled()
    opened.type_into(".thl-seed input", "7")
    opened.page.wait_for_selector(".thl-complaint p", state="detached")


def test_chunks_are_shown_while_the_kernel_is_free_and_a_stopped_run_is_kept(opened, project):
    page = opened.page
    opened.type_into(".thl-diffusion-steps .widget-readout", "10")
    page.wait_for_function("document.querySelector('.thl-diffusion-steps .widget-readout').innerText == '10'")
    page.locator(".thl-generate").click()
    # The last cell runs during generation and prints the new value.
    opened.wait_for_status("Chunk")
    page.evaluate("window.jupyterapp.shell.currentWidget.content.activeCellIndex = 1000")
    opened.command("notebook:run-cell")
    page.wait_for_function("document.body.innerText.includes('diffusion_steps: 10')")
    assert page.locator(".thl-stop").is_enabled()
    growing = "document.querySelector('.thl-tiles b')?.textContent.startsWith('under way')"
    page.wait_for_function(growing)
    page.wait_for_function("document.querySelector('.thl-player video').readyState >= 3")
    assert len(opened.videos()) == 2, "next to the previous video"
    page.locator(".thl-stop").click()
    opened.wait_for_status("Stopped")
    last = runs(project)[-1]
    assert list((last / "chunks").glob("0*.mp4"))
    assert not (last / "run.json").exists()


def test_the_saved_file_has_the_edited_values(opened, project):
    opened.page.locator(".thl-top button", has_text="Save as YAML").click()
    opened.page.wait_for_selector(".thl-saved code")
    saved = GenerationParams.from_yaml(project / "outputs" / "params" / "tuned.yaml")
    assert (saved.diffusion_steps, saved.seed, saved.chunk_frames) == (10, 7, 13)


def test_after_a_kernel_restart_a_past_run_is_continued(opened, project):
    page = opened.page
    page.evaluate("window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()")
    page.wait_for_timeout(1000)
    opened.command("notebook:clear-all-cell-outputs")
    opened.run_all()
    assert page.locator(".thl-card").count() == 2
    page.locator(".thl-card button", has_text="Continue").click()
    opened.wait_for_status("Chunk")
    chunks = len(list((runs(project)[-1] / "chunks").glob("0*.mp4")))
    assert chunks >= 1

    # The page is loaded again while the kernel keeps running.
    opened.command("docmanager:save")
    page.wait_for_timeout(1000)
    opened.open()
    page.wait_for_selector(".thl-tiles")
    opened.wait_for_status("Finished in")
    record = json.loads((runs(project)[-1] / "run.json").read_text())
    assert record["chunks_of_earlier_calls"] >= 1


def test_two_videos_play_in_sync_with_the_sound_of_one(opened):
    page = opened.page
    for button in page.locator(".thl-card button", has_text="Compare").all():
        if "mod-active" not in button.get_attribute("class"):
            button.click()
    page.wait_for_function("document.querySelectorAll('.thl-player video').length == 2")
    page.wait_for_function(
        "[...document.querySelectorAll('.thl-player video')].every(v => v.readyState >= 3)"
    )
    page.get_by_label("Play or pause (space)").click()
    page.wait_for_function("document.querySelector('.thl-player video').currentTime > 0.6")
    one, other = opened.videos()
    assert abs(one["time"] - other["time"]) < 0.2
    page.get_by_label("Hear this one").nth(1).click()
    assert [video["muted"] for video in opened.videos()] == [True, False]
    page.get_by_label("Play or pause (space)").click()
    page.wait_for_function("[...document.querySelectorAll('.thl-player video')].every(v => v.paused)")
    assert "Sampling steps" in page.locator(".thl-table").inner_text()


@pytest.mark.parametrize("theme", THEMES)
def test_the_panel_is_accessible_with_all_groups_open(opened, theme):
    opened.use_theme(theme)
    closed = opened.page.locator(".thl-settings .jupyter-widget-Collapse:not(.jupyter-widget-Collapse-open)")
    while closed.count():
        closed.first.locator(".jupyter-widget-Collapse-header").click()
    assert findings(opened.page, ".thl-panel") == []


@pytest.mark.parametrize("theme", THEMES)
def test_the_panel_fits_beside_the_file_browser_and_follows_the_theme(opened, theme, tmp_path):
    """Screenshots go to the test's folder, or to the folder in the variable SCREENSHOTS."""
    page, folder = opened.page, Path(os.environ.get("SCREENSHOTS", tmp_path))
    opened.use_theme(theme)
    opened.command("filebrowser:activate")
    page.locator(".jp-DirListing").wait_for()
    dark = theme.endswith("Dark")
    for width, height in WIDTHS.items():
        page.set_viewport_size({"width": width, "height": height})
        page.wait_for_timeout(1000)
        page.evaluate("document.querySelector('.thl-panel').scrollIntoView()")
        page.wait_for_timeout(500)
        page.screenshot(path=folder / f"tune-{theme.split()[1].lower()}-{width}.png")
        assert page.evaluate(
            "(() => { const panel = document.querySelector('.thl-panel'); "
            "return panel.scrollWidth <= panel.clientWidth + 1; })()"
        )
        cut = page.evaluate(
            """() => [...document.querySelectorAll('.thl-panel :is(button, input, select)')].filter(part => {
                const box = part.getBoundingClientRect(), around = part.closest('.thl-group, .thl-panel');
                return box.width && box.right > around.getBoundingClientRect().right + 1;
            }).map(part => part.className)"""
        )
        assert cut == []
        widths = page.evaluate(
            """() => {
                const tiles = document.querySelector('.thl-tiles');
                const copies = [1, 2].map(() => tiles.firstElementChild.cloneNode(true));
                tiles.append(...copies);
                const widths = [...tiles.children].map(tile => tile.getBoundingClientRect().width);
                copies.forEach(copy => copy.remove());
                return widths;
            }"""
        )
        assert max(widths) - min(widths) < 1
    card, text = page.evaluate(
        """() => ['backgroundColor', 'color'].map(kind =>
            getComputedStyle(document.querySelector('.thl-card'))[kind].match(/[0-9]+/g)
                .slice(0, 3).reduce((sum, part) => sum + Number(part) / 3, 0))"""
    )
    assert (card < 64 and text > 192) if dark else (card > 192 and text < 64)


def test_the_browser_reported_no_errors(opened):
    assert opened.errors == []
