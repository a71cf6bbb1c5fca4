"""A record is checked whenever it is read: a damaged or hostile one is one bad entry, and shows nothing."""

import json
import os
import shutil
from pathlib import Path

import pytest

from talkinghead_lab import generate
from talkinghead_lab.errors import OutputError
from talkinghead_lab.figures.run_list import RunList
from talkinghead_lab.figures.runs import table
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.runs.folder import read_record
from talkinghead_lab.runs.history import find_runs, parts_in
from talkinghead_lab.runs.result import GenerationResult
from talkinghead_lab.runs.verify import verify
from talkinghead_lab.widgets.gallery import Gallery, card_html

OLD = Path(__file__).parent / "files-0.1.0"
SECRET = "the contents of another file"
SCRIPT = "<script>alert(1)</script>"


@pytest.fixture
def run(tmp_path) -> Path:
    """The folder of a finished run, beside a file that is not part of it."""
    (tmp_path / "secret.mp4").write_text(SECRET)
    return shutil.copytree(OLD, tmp_path / "runs" / "run")


def change(run: Path, *place: str | int, value: object) -> None:
    record = json.loads((run / "run.json").read_text())
    part = record
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    (run / "run.json").write_text(json.dumps(record))


TEXTS = {
    "empty": b"",
    "cut": (OLD / "run.json").read_bytes()[:700],
    "a list": b"[]",
    "null": b"null",
    "a text": b'"finished"',
    "no keys": b"{}",
    "not UTF-8": b"\xff\xfe\x00{}",
    "nested": b"[" * 100_000,
    "a null byte": b"{}\0",
}
FIELDS = {
    "a path": (("result", "video_path"), "/etc/passwd"),
    "a path above": (("result", "video_path"), "../secret.mp4"),
    "a path below": (("result", "video_path"), "chunks/00000.mp4"),
    "the folder": (("result", "video_path"), "."),
    "above": (("result", "video_path"), ".."),
    "no name": (("result", "video_path"), ""),
    "a null byte in the name": (("result", "video_path"), "a\0b.mp4"),
    "a backslash": (("result", "video_path"), "..\\secret.mp4"),
    "a number as name": (("result", "video_path"), 7),
    "HTML as size": (("result", "resolution"), f"160x160{SCRIPT}"),
    "a list as size": (("result", "resolution"), [160, 160]),
    "text as length": (("result", "duration_seconds"), "1.2"),
    "an infinite length": (("result", "duration_seconds"), float("inf")),
    "a boolean as count": (("result", "frame_count"), True),
    "metadata of numbers": (("result", "metadata"), {"seed": 42}),
    "a result of text": (("result",), "finished"),
    "a request of text": (("request",), "seed: 42"),
    "stages as a list": (("stages",), []),
    "a stage of text": (("stages", "read"), {"seconds": "long"}),
    "measures of text": (("measures",), "good"),
    "a value of text": (("measures", 0, "value"), SCRIPT),
    "an unknown direction": (("measures", 0, "better"), ["higher"]),
    "chunks without digests": (("chunks",), [{}]),
    "a timeline of numbers": (("timeline",), [1, 2]),
    "no digest": (("video_sha256",), "unknown"),
    "a later type": (("weights",), ["a"]),
}


def assert_bad_entry(run: Path) -> None:
    """Every reader reports it by name, and the list of runs has one bad entry."""
    with pytest.raises(OutputError, match=r"run\.json") as caught:
        GenerationResult.from_run(run)
    assert SCRIPT not in str(caught.value)
    with pytest.raises(OutputError):
        verify(run)
    params = GenerationParams.from_yaml(run / "request.yaml")
    with pytest.raises(OutputError):
        generate(params, run)
    (entry,) = find_runs(run.parent)
    assert (entry.finished, entry.state) == (False, "damaged")
    assert RunList([entry]).to_json()["runs"][0]["state"] == "damaged"
    assert "run.json" in card_html(entry, "run", running=False)


@pytest.mark.parametrize("text", TEXTS)
def test_a_record_of_another_form_is_a_bad_entry(run, text):
    (run / "run.json").write_bytes(TEXTS[text])
    assert_bad_entry(run)


@pytest.mark.parametrize("field", FIELDS)
def test_a_record_with_another_field_is_a_bad_entry(run, field):
    place, value = FIELDS[field]
    change(run, *place, value=value)
    assert_bad_entry(run)


def test_a_request_that_was_exchanged_is_told(run):
    request = run / "request.yaml"
    request.write_text(request.read_text() + "seed: 43\n")
    (entry,) = find_runs(run.parent)
    assert (entry.params.seed, entry.state) == (43, "damaged")
    assert "it is of another request than request.yaml" in entry.problem
    with pytest.raises(OutputError, match="it is of another request than"):
        generate(entry.params, run)


@pytest.mark.parametrize(
    "damage", [lambda video: os.truncate(video, 500), lambda video: video.write_bytes(b"x")]
)
def test_a_finished_video_that_was_changed_is_not_given_as_the_result(run, damage):
    damage(next(run.glob("*.mp4")))
    with pytest.raises(OutputError, match=r"the video has changed since.*run\.json"):
        generate(GenerationParams.from_yaml(run / "request.yaml"), run)


@pytest.mark.parametrize("case", ["gone", "empty", "a link", "a folder", "a pipe"])
def test_a_video_that_is_not_a_file_of_the_run_is_not_shown(run, case):
    result = GenerationResult.from_run(run)
    video = result.video_path
    video.unlink()
    if case == "empty":
        video.touch()
    elif case == "a link":
        video.symlink_to(run.parents[1] / "secret.mp4")
    elif case == "a folder":
        video.mkdir()
    elif case == "a pipe":
        os.mkfifo(video)
    assert_bad_entry_without_video(run)
    shown = result._repr_html_()
    assert video.name in shown
    assert "base64" not in shown


def assert_bad_entry_without_video(run: Path) -> None:
    for read in (GenerationResult.from_run, verify):
        with pytest.raises(OutputError, match=r"file cannot be used .*\.mp4"):
            read(run)
    (entry,) = find_runs(run.parent)
    assert entry.state == "damaged"


def test_a_contact_sheet_that_is_a_link_is_not_shown(run, monkeypatch):
    monkeypatch.setattr("talkinghead_lab.runs.result.LARGEST_INLINE_VIDEO", 10)
    (run / "contact_sheet.png").symlink_to(run.parents[1] / "secret.mp4")
    assert "base64" not in GenerationResult.from_run(run)._repr_html_()


def test_text_of_a_result_is_escaped(run):
    video = run / f"a{SCRIPT.replace('/', '|')}.mp4"
    shutil.copy(GenerationResult.from_run(run).video_path, video)
    shown = GenerationResult(video, 1.0, SCRIPT, 30, {})._repr_html_()
    assert "<video" in shown
    assert "<script" not in shown
    assert "<script" not in table([{"<script>": SCRIPT}]).data


def test_a_bad_run_leaves_the_others_in_the_gallery(run):
    shutil.copytree(run, run.parent / "another")
    change(run, "result", "resolution", value=SCRIPT)
    gallery = Gallery(run.parent, lambda: None, lambda run: None, lambda run: None)
    gallery.refresh(None)
    shown = {run.name: card.summary.value for (run, _), card in gallery.cards.items()}
    assert "damaged" in shown["run"]
    assert gallery.cards[run, False].resume.disabled
    assert "finished" in shown["another"]
    assert not [card for card in shown.values() if "<script" in card]


def test_chunks_that_are_links_are_not_shown(run):
    (run / "run.json").unlink()
    chunks = run / "chunks"
    chunks.mkdir()
    for name in ("00000.mp4", "00000.safetensors", "00001.safetensors", "00002.mp4"):
        (chunks / name).write_text("")
    (chunks / "00001.mp4").symlink_to(run.parents[1] / "secret.mp4")
    assert parts_in(run) == [chunks / "00000.mp4"]
    chunks.rename(run / "elsewhere")
    chunks.symlink_to(run / "elsewhere")
    assert parts_in(run) == []


def test_what_a_later_version_adds_is_kept(run):
    change(run, "resolved", "new", value=[1])
    change(run, "result", "new", value=1)
    change(run, "new", value={"a": 1})
    record = read_record(run)
    assert (record["resolved"]["new"], record["new"]) == ([1], {"a": 1})
    assert GenerationResult.from_run(run).frame_count == 30
