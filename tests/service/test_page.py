"""The page at / in a real Chromium, as a visitor uses it."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import soundfile
import yaml
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

from talkinghead_lab.figures.labels import title
from talkinghead_lab.foundation.paths import SAMPLES_FOLDER
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.pipeline.people import propose_boxes
from talkinghead_lab.service.page import FOLDER
from tests.accessibility import findings
from tests.browsers import chromium

FAKE_MICROPHONE = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
PLAYER = "() => { const v = document.getElementById('%s'); return [v.readyState, v.duration, v.videoWidth] }"
SAME_MOMENT = """() => {
    const [video, compared] = ['video', 'compared'].map((id) => document.getElementById(id));
    return video.paused && compared.paused && compared.currentTime > 0.4
        && Math.abs(video.currentTime - compared.currentTime) < 0.02;
}"""
ONE_TYPED = """async () => {
    const { Boxes } = await import('/page/boxes.js');
    const inputs = ['', '170, 2, 300, 140'].map(
        (value) => Object.assign(document.createElement('input'), { value }));
    const boxes = new Boxes(document.getElementById('picture'), [], inputs, () => {});
    boxes.show([320, 160], false);
    return boxes.text;
}"""
PIXELS = """(canvas) => {
    const { width, height } = canvas;
    const at = (x) => [...canvas.getContext('2d').getImageData(x * width, height / 2, 1, 1).data];
    return { left: at(0.25), right: at(0.75) };
}"""
WIDTHS = (360, 768, 1280, 1920)
PATIENCE = 120_000  # milliseconds: the first plan imports PyTorch, however busy the machine
CUT_PLACEHOLDERS = """() => [...document.querySelectorAll('[placeholder]')].filter((field) => {
    const [style, draw] = [getComputedStyle(field), document.createElement('canvas').getContext('2d')];
    draw.font = style.font;
    const room = field.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
    return draw.measureText(field.placeholder).width > room;
}).map((field) => field.id)"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=PATIENCE)
    with chromium("--autoplay-policy=no-user-gesture-required", *FAKE_MICROPHONE) as started:
        yield started


@pytest.fixture
def visit(browser) -> Iterator[Any]:
    """Open the page of a service; at the end, no script failed and nothing was loaded from elsewhere."""
    contexts, errors, elsewhere = [], [], []

    def open_page(server, **options: Any) -> Page:
        contexts.append(browser.new_context(permissions=["clipboard-read", "clipboard-write"], **options))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on(
            "request",
            lambda request: (
                None if request.url.startswith((server.url, "blob:")) else elsewhere.append(request.url)
            ),
        )
        page.goto(server.url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert errors == []
    assert elsewhere == []


@pytest.fixture(scope="module")
def page_server(launch):
    return launch(gated=True)


def fill_settings(page: Page, **settings: str) -> None:
    """Settings for the fastest video, and others."""
    page.get_by_text("Settings").click()
    for name, value in {"diffusion_steps": "1", "audio_guide_scale": "1", **settings}.items():
        page.fill(f"#{name}", value)


def choose(page: Page, shared: Path, **settings: str) -> None:
    """Choose a portrait, a recording and settings, and wait for the plan."""
    page.set_input_files("#image", shared / "portrait.png")
    page.set_input_files("#audio", shared / "recording.wav")
    fill_settings(page, text_guide_scale="1", **settings)
    page.locator("#prompt").press("Tab")
    expect(page.locator("#plan")).to_contain_text("32 × 32 pixels, 0.5 s, 12 frames")


def generate(page: Page) -> None:
    page.get_by_role("button", name="Generate").click()
    expect(page.get_by_role("link", name="Download")).to_be_visible()


def copied(page: Page, kind: str, what: str) -> str:
    page.get_by_role("button", name=f"Copy as {kind}").click()
    expect(page.locator("#copied")).to_have_text(f"The {what} is copied.")
    return page.evaluate("() => navigator.clipboard.readText()")


def test_from_two_files_to_a_video_its_request_and_a_comparison(visit, page_server, shared, tmp_path):
    page = visit(page_server)
    expect(page.locator("#health")).to_contain_text("Ready, on the processor")
    expect(page.get_by_role("button", name="Generate")).to_be_disabled()
    choose(page, shared)
    expect(page.locator("#picture")).to_have_attribute(
        "aria-label", re.compile("320 × 320 .* columns 0 to 320")
    )
    expect(page.locator("#waveform")).to_have_attribute("aria-label", "Waveform of 0.5 seconds")
    generate(page)
    expect(page.locator("#video-caption")).to_have_text("32x32, 0.5 s")
    page.wait_for_timeout(500)
    ready, seconds, width = page.evaluate(PLAYER % "video")
    assert ready >= 2
    assert (round(seconds, 1), width) == (0.5, 32)
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    assert download.value.path().read_bytes()[4:8] == b"ftyp"

    request = yaml.safe_load(copied(page, "YAML", "request"))
    assert (request["diffusion_steps"], request["prompt"]) == (1, "a calm presenter speaks to the camera")
    command = copied(page, "curl", "command")
    assert f"curl {page_server.url}/api/jobs" in command
    assert "--form 'image_path=@portrait.png'" in command
    assert "--form 'diffusion_steps=1'" in command

    page.fill("#seed", "7")
    page.fill("#diffusion_steps", "2")
    page.fill("#audio_guide_scale", "1, 1")
    page.locator("#seed").press("Tab")
    generate(page)
    expect(page.locator("#runs li")).to_have_count(2)
    request = yaml.safe_load(copied(page, "YAML", "request"))
    assert (request["seed"], request["audio_guide_scale"]) == (7, [1, 1])
    page.select_option("#compare", index=2)
    expect(page.locator("#compared-caption")).to_contain_text("seed 42")
    page.wait_for_timeout(500)
    assert page.evaluate(PLAYER % "compared")[2] == 32
    page.wait_for_function(SAME_MOMENT)


def test_settings_that_are_typed_while_the_page_loads_stay(visit, page_server):
    page, held = visit(page_server), []
    expect(page.locator("#preset option").first).to_have_text("Defaults of the service")
    page.route("**/api/presets", lambda route: held.append(route))
    with page.expect_request("**/api/presets"):
        page.reload()
    page.get_by_text("Settings").click()
    page.fill("#diffusion_steps", "6")
    held[0].continue_()
    expect(page.locator("#preset option").first).to_have_text("Defaults of the service")
    expect(page.locator("#diffusion_steps")).to_have_value("6")


def test_samples_are_shown_and_heard(visit, page_server):
    page = visit(page_server)
    for button in page.get_by_role("button", name="Use the sample").all():
        button.click()
    expect(page.locator("#picture")).to_have_attribute(
        "aria-label", re.compile("320 × 320 .* columns 0 to 320")
    )
    seconds = soundfile.info(SAMPLES_FOLDER / "recording.wav").duration
    expect(page.locator("#waveform")).to_have_attribute("aria-label", f"Waveform of {seconds:.1f} seconds")
    expect(page.locator("#audio-note")).to_have_text(
        f"The sample that comes with the service, {seconds:.1f} s"
    )
    shown = page.locator("#picture, #waveform").evaluate_all(
        "all => all.map(e => new Set(e.getContext('2d').getImageData(0, 0, e.width, e.height).data).size)"
    )
    assert min(shown) > 2, "something is drawn"
    page.wait_for_function(f"() => Math.abs(document.getElementById('sound').duration - {seconds}) < 0.01")
    assert httpx.get(f"{page_server.url}/api/samples/..%2F..%2Fparams").status_code == 404
    assert httpx.get(f"{page_server.url}/api/samples/nothing").json()["detail"] == "No such sample."


def test_errors_call_fields_as_the_form_does(visit, page_server, shared):
    page = visit(page_server)
    choose(page, shared)
    page.fill("#diffusion_steps", "1001")
    page.locator("#diffusion_steps").press("Tab")
    expect(page.get_by_role("alert").first).to_contain_text("“Sampling steps” is not valid")
    page.fill("#diffusion_steps", "1")
    page.fill("#text_guide_scale", "high")
    page.locator("#text_guide_scale").press("Tab")
    expect(page.get_by_role("alert").first).to_contain_text("“Text guidance”")
    expect(page.get_by_role("alert").first).not_to_contain_text("`")


def test_errors_are_said_and_the_form_stays(visit, page_server, shared, tmp_path):
    page = visit(page_server)
    page.get_by_role("button", name="Use the sample").nth(1).click()
    (tmp_path / "broken.png").write_bytes(b"no picture")
    page.set_input_files("#image", tmp_path / "broken.png")
    expect(page.get_by_role("alert").first).to_contain_text(
        re.compile("picture|image|decoded", re.IGNORECASE)
    )
    page.set_input_files("#image", shared / "portrait.png")
    expect(page.locator("#plan")).to_contain_text("frames")
    expect(page.locator("#error")).to_be_empty()


def test_a_job_can_be_stopped_and_is_found_again_after_a_reload(visit, page_server, shared):
    page = visit(page_server)
    choose(page, shared, diffusion_steps="6", prompt="hold at 8")
    page.get_by_role("button", name="Generate").click()
    under_way, left = "Chunk 2 of 2 · step 2 of 6", re.compile(r"^About \d+ (s|min) left$")
    expect(page.locator("#state")).to_have_text(under_way)
    expect(page.locator("#left")).to_have_text(left)
    page.reload()
    expect(page.locator("#state")).to_have_text(under_way)
    expect(page.locator("#left")).to_have_text(left)
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(page.locator("#error")).to_have_text("Stopped.")
    expect(page.locator("#job")).to_be_hidden()


def box_of(page: Page, speaker: int) -> list[int]:
    return [int(number) for number in page.locator(f"#box-{speaker}").input_value().split(",")]


def choose_two_people(page: Page) -> None:
    page.set_input_files("#image", SAMPLES_FOLDER / "two-people.png")
    page.locator("#sample-audio").click()
    page.get_by_text("Two speakers").click()


def test_boxes_are_found_dragged_moved_and_typed(visit, page_server):
    page = visit(page_server)
    choose_two_people(page)
    page.get_by_role("button", name="Find people").click()
    expect(page.locator("#found")).to_have_text("2 people found, counted from the left")
    found = [list(box) for box in propose_boxes("sample:two-people")]
    assert [box_of(page, 1), box_of(page, 2)] == found

    first = page.locator(".box").first
    first.scroll_into_view_if_needed()
    canvas = page.locator("#picture").bounding_box()
    scale = canvas["width"] / Image.open(SAMPLES_FOLDER / "two-people.png").width
    shown = first.bounding_box()
    assert shown["x"] - canvas["x"] == pytest.approx(found[0][0] * scale, abs=1)
    assert shown["width"] == pytest.approx((found[0][2] - found[0][0]) * scale, abs=1)
    page.mouse.move(shown["x"] + shown["width"] / 2, shown["y"] + shown["height"] / 2)
    page.mouse.down()
    page.mouse.move(shown["x"] + shown["width"] / 2 + 10 * scale, shown["y"] + shown["height"] / 2)
    page.mouse.up()
    dragged = box_of(page, 1)
    assert dragged == pytest.approx([found[0][0] + 10, found[0][1], found[0][2] + 10, found[0][3]], abs=1)
    first.press("ArrowLeft")
    moved = box_of(page, 1)
    assert moved[0] < dragged[0]
    assert moved[2] - moved[0] == dragged[2] - dragged[0]
    first.press("Shift+ArrowUp")
    assert box_of(page, 1)[:3] == moved[:3]
    assert box_of(page, 1)[3] < moved[3]
    page.fill("#box-1", "0, 0, 160, 160")
    page.locator("#box-1").press("Tab")
    assert first.bounding_box()["width"] == pytest.approx(160 * scale, abs=1)
    assert page.evaluate(ONE_TYPED) == "[[0,0,160,160],[170, 2, 300, 140]]", "both are sent as they are shown"
    page.locator("#sample-image").click()
    expect(page.locator("#box-2")).to_have_value("")
    page.get_by_text("Two speakers").click()
    expect(first).to_be_hidden()


BOXES = [[80, 0, 160, 160], [160, 0, 240, 160]]  # what the square frame shows of two people


def type_boxes(page: Page) -> None:
    for speaker, box in enumerate(BOXES, start=1):
        page.fill(f"#box-{speaker}", str(box)[1:-1])


def test_a_dialogue_of_two_recordings(visit, page_server):
    page = visit(page_server)
    choose_two_people(page)
    type_boxes(page)
    page.get_by_role("button", name="Use the second sample").click()
    expect(page.locator("#second-note")).to_have_text("The sample that comes with the service")
    page.select_option("#audio_mix", "add")
    fill_settings(page, max_frames="5")
    page.locator("#max_frames").press("Tab")
    expect(page.locator("#plan")).to_contain_text("32 × 32 pixels, 12.4 s, 5 frames")
    generate(page)
    request = yaml.safe_load(copied(page, "YAML", "request"))
    assert request["speaker_boxes"] == BOXES
    assert (request["audio_mix"], request["second_audio_path"]) == ("add", "sample:recording-2")
    command = copied(page, "curl", "command")
    assert "--form 'second_audio_path=sample:recording-2'" in command

    page.get_by_role("button", name="Remove").click()
    expect(page.locator("#second-sound")).to_be_hidden()


def start_dialogue(page: Page, shared: Path) -> Locator:
    """Two parts, of the first and of the second speaker, which is returned."""
    page.set_input_files("#image", SAMPLES_FOLDER / "two-people.png")
    page.get_by_text("Two speakers").click()
    type_boxes(page)
    page.select_option("#audio_mix", "timeline")
    first, second = (page.get_by_role("group", name=f"Part {number}") for number in (1, 2))
    first.get_by_role("button", name="Use the sample").click()
    seconds = soundfile.info(SAMPLES_FOLDER / "recording.wav").duration
    expect(first.locator(".note")).to_contain_text(f", {seconds:.1f} s")
    first.get_by_label("to").fill("1.5")
    page.get_by_role("button", name="Add a part").click()
    second.get_by_label("Speaker").select_option("2")
    expect(page.get_by_role("button", name="Generate")).to_be_disabled()
    second.locator("input[type=file]").set_input_files(shared / "recording.wav")
    return second


def test_a_part_of_a_dialogue_starts_where_the_last_one_ends(visit, page_server, shared):
    page = visit(page_server)
    second = start_dialogue(page, shared)
    expect(page.locator("#recording")).to_be_hidden()
    expect(second.get_by_label("from")).to_have_value("1.5")
    seconds = soundfile.info(shared / "recording.wav").duration
    expect(second.locator(".note")).to_contain_text(f", {seconds:.1f} s")
    page.get_by_role("button", name="Add a part").click()
    third = page.get_by_role("group", name="Part 3")
    expect(third.get_by_label("from")).to_have_value(f"{1.5 + seconds:g}")
    third.get_by_role("button", name="Remove").click()
    expect(third).to_have_count(0)


def test_a_dialogue_of_parts(visit, page_server, shared):
    page = visit(page_server)
    second = start_dialogue(page, shared)
    fill_settings(page)
    second.get_by_label("to").fill("1")
    page.locator("#diffusion_steps").press("Tab")
    expect(page.locator("#error")).to_contain_text("“Dialogue”, number 2")
    second.get_by_label("to").fill("1.9")
    page.fill("#max_frames", "5")
    page.locator("#max_frames").press("Tab")
    expect(page.locator("#plan")).to_contain_text("1.9 s, 5 frames")
    page.get_by_text("Two speakers").click()
    expect(page.locator("#in-use")).to_have_text("dialogue, boxes")
    generate(page)
    command = copied(page, "curl", "command")
    assert "--form 'segments.0=sample:recording'" in command
    assert "--form 'segments.1=@recording.wav'" in command
    request = yaml.safe_load(copied(page, "YAML", "request"))
    parts = [(part["speaker"], part["start"], part["end"]) for part in request["segments"]]
    assert parts == [(1, 0, 1.5), (2, 1.5, 1.9)]
    assert request["audio_mix"] == "timeline"
    assert "audio_path" not in request


def test_masks_take_the_place_of_boxes(visit, page_server, tmp_path):
    page = visit(page_server)
    choose_two_people(page)
    people = Image.open(SAMPLES_FOLDER / "two-people.png")
    plain = page.locator("#picture").evaluate(PIXELS)
    for name, left in {"one": 0, "two": people.width // 2}.items():
        mask = Image.new("L", people.size)
        mask.paste(255, (left, 0, left + people.width // 2, people.height))
        mask.save(tmp_path / f"{name}.png")
    page.fill("#box-1", "0, 0, 160, 160")
    page.set_input_files("#masks-file", [tmp_path / "one.png", tmp_path / "two.png"])
    expect(page.locator(".box").first).to_be_hidden()
    expect(page.locator("#box-1")).to_be_disabled()
    expect(page.locator("#in-use")).to_have_text("masks")
    tinted = page.locator("#picture").evaluate(PIXELS)
    red, green = range(2)
    assert tinted["left"][red] > plain["left"][red]
    assert tinted["left"][green] == plain["left"][green]
    assert tinted["right"][green] > plain["right"][green]
    page.get_by_role("button", name="Swap").click()
    expect(page.locator("#masks-note")).to_have_text(re.compile("two.png, .*; one.png, "))
    fill_settings(page, max_frames="5")
    page.locator("#max_frames").press("Tab")
    expect(page.locator("#plan")).to_contain_text("5 frames")
    generate(page)
    command = copied(page, "curl", "command")
    assert re.findall("speaker_masks=@(.*)'", command) == ["two.png", "one.png"]
    assert "speaker_boxes" not in command
    page.get_by_role("button", name="Remove").click()
    expect(page.locator("#box-1")).to_be_enabled()
    expect(page.locator("#in-use")).to_have_text("boxes")


def test_the_microphone(visit, page_server):
    page = visit(page_server)
    page.get_by_role("button", name="Record", exact=True).click()
    expect(page.get_by_role("button", name="Stop recording")).to_have_attribute("aria-pressed", "true")
    page.wait_for_timeout(1200)
    page.get_by_role("button", name="Stop recording").click()
    expect(page.locator("#audio-note")).to_contain_text(re.compile(r"recording\.webm, .* s"))


def test_files_can_be_dropped(visit, page_server):
    page = visit(page_server)
    data = page.evaluate_handle(
        "(bytes) => { const data = new DataTransfer();"
        " data.items.add(new File([new Uint8Array(bytes)], 'mine.png', {type: 'image/png'})); return data }",
        list((SAMPLES_FOLDER / "portrait.png").read_bytes()),
    )
    page.dispatch_event("#portrait", "dragover", {"dataTransfer": data})
    expect(page.locator("#portrait")).to_have_class(re.compile("over"))
    page.dispatch_event("#portrait", "drop", {"dataTransfer": data})
    expect(page.locator("#image-note")).to_contain_text("mine.png")
    expect(page.locator("#picture")).to_be_visible()


def test_the_token_is_asked_for_and_kept_in_a_cookie(visit, narrow_server):
    page = visit(narrow_server)
    dialog = page.get_by_role("dialog")
    page.get_by_label("This service needs its token").fill("wrong")
    page.get_by_role("button", name="Continue").click()
    expect(dialog).to_contain_text("not the token")
    page.get_by_label("This service needs its token").fill("a secret")
    page.get_by_role("button", name="Continue").click()
    expect(dialog).to_be_hidden()
    expect(page.locator("#preset option").first).to_have_text("Defaults of the service")
    (cookie,) = page.context.cookies()
    assert (cookie["name"], cookie["httpOnly"], cookie["sameSite"]) == ("session", True, "Strict")
    assert "a secret" not in cookie["value"]
    assert httpx.get(f"{narrow_server.url}/api/jobs", cookies={"session": cookie["value"]}).status_code == 200
    assert httpx.get(f"{narrow_server.url}/api/jobs", cookies={"session": "wrong"}).status_code == 401


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_control_is_in_reach_and_named(visit, page_server, width, scheme):
    page = visit(page_server, viewport={"width": width, "height": 800}, color_scheme=scheme)
    expect(page.locator("#preset option")).not_to_have_count(0)
    page.get_by_text("Settings").click()
    page.get_by_text("Two speakers").click()
    page.locator("#sample-image").click()
    expect(page.locator(".box").first).to_be_visible()
    for timing in ("para", "timeline"):
        page.select_option("#audio_mix", timing)
        assert page.evaluate("() => document.documentElement.scrollWidth") <= width
        for control in page.locator("button:visible, select:visible, input:visible, textarea:visible").all():
            box = control.bounding_box()
            assert box["x"] >= 0, control
            assert box["x"] + box["width"] <= width + 1, control
            assert control.evaluate(
                "e => e.ariaLabel || e.textContent.trim() || e.labels?.[0]?.textContent.trim()"
            ), control
        assert page.evaluate(CUT_PLACEHOLDERS) == []
        assert findings(page) == []
    for name in GenerationParams.model_fields.keys() & set(
        page.evaluate("() => [...document.querySelectorAll('form [id]')].map(e => e.id)")
    ):
        assert page.locator(f"label[for={name}]").text_content() == title(name)
    faint, ground = page.locator(".hint").first.evaluate(
        "e => [getComputedStyle(e).color, getComputedStyle(e.closest('form')).backgroundColor]"
    )
    assert contrast(faint, ground) >= 4.5


def contrast(first: str, second: str) -> float:
    """Contrast of two CSS colours (WCAG 2.2)."""

    def luminance(color: str) -> float:
        parts = [int(number) / 255 for number in re.findall(r"\d+", color)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    darker, lighter = sorted((luminance(first), luminance(second)))
    return (lighter + 0.05) / (darker + 0.05)


def test_the_keyboard_reaches_all_in_order(visit, page_server):
    page = visit(page_server)
    expect(page.locator("#preset option")).not_to_have_count(0)
    order = []
    for _ in range(8):
        page.keyboard.press("Tab")
        order.append(page.evaluate("() => document.activeElement.id || document.activeElement.tagName"))
    assert order == [
        "image",
        "sample-image",
        "audio",
        "record",
        "sample-audio",
        "prompt",
        "preset",
        "SUMMARY",
    ]


def test_the_page_needs_no_token_and_loads_nothing_from_elsewhere(narrow_server):
    page = httpx.get(f"{narrow_server.url}/")
    assert page.status_code == 200
    assert "default-src 'self'" in page.headers["content-security-policy"]
    for file in FOLDER.iterdir():
        answer = httpx.get(f"{narrow_server.url}/page/{file.name}")
        assert answer.status_code == 200
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert not re.search(r"(?:src|href|url\(|import|fetch\()\W*https?://", file.read_text())
    assert httpx.get(f"{narrow_server.url}/page/..%2Fsettings.py").status_code == 404
