"""A benchmark's pictures show its clips, and its report is one accessible file that needs nothing else."""

import re
import shutil
from html import unescape
from pathlib import Path

import numpy as np
import pytest

from talkinghead_lab.__main__ import main
from talkinghead_lab.errors import InvalidRequest
from talkinghead_lab.evaluation.published import MARK, published
from talkinghead_lab.evaluation.scoring import write_json
from talkinghead_lab.evaluation.systems import REAL, WRONG, Benchmark, shown_video, stored_scores
from talkinghead_lab.evaluation.table import Row, benchmark_table, to_latex, to_markdown
from talkinghead_lab.figures import benchmarks
from talkinghead_lab.measures.measure import KINDS
from talkinghead_lab.media.video import probe
from tests.accessibility import findings
from tests.browsers import chromium
from tests.evaluation.faults import clips, scored

PEOPLE = 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Copies, blurred copies, and copies of which one is missing."""
    folder = tmp_path_factory.mktemp("benchmark")
    manifest = clips(folder / "clips", PEOPLE, 8)
    scored(folder, manifest, ("blurred",))
    shutil.copytree(folder / "clips", folder / "gaps")
    (folder / "gaps" / "clip3.mp4").unlink()
    Benchmark(manifest, folder / "out", False).score("gaps", folder / "gaps")
    return folder / "out"


@pytest.fixture(scope="module")
def rows(folder) -> list[Row]:
    return benchmark_table(folder, "a-copy")


@pytest.fixture(scope="module")
def page(folder) -> str:
    assert main(["benchmark", "report", str(folder), "--base", "blurred", "--measure", "sharpness"]) == 0
    return (folder / "report.html").read_text()


def dots(axes) -> list[np.ndarray]:
    return [np.asarray(found.get_offsets()) for found in axes.collections if len(found.get_offsets()) > 1]


def test_a_strip_has_a_dot_for_every_clip_and_the_interval_of_the_table(folder, rows):
    figure = benchmarks.strips(stored_scores(folder), rows, "sharpness")
    (axes,) = figure.axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == [REAL, WRONG, "a-copy", "blurred", "gaps (1 failed)"]
    found = dots(axes)
    assert [len(each) for each in found] == [PEOPLE] * 4 + [PEOPLE - 1]
    blurred = next(row for row in rows if (row.system, row.measure) == ("blurred", "sharpness"))
    assert found[3][:, 0].mean() == pytest.approx(blurred.interval.value)
    segments = [line.get_segments()[0][:, 0] for line in axes.collections if hasattr(line, "get_segments")]
    assert segments[3] == pytest.approx([blurred.interval.low, blurred.interval.high])
    with pytest.raises(InvalidRequest, match="no clip has the measure"):
        benchmarks.strips(stored_scores(folder), rows, "lse_c")


def test_a_scatter_pairs_the_measures_of_each_clip(folder):
    scores = stored_scores(folder)
    (axes,) = benchmarks.scatter(scores, "sharpness", "identity").axes
    values = {score.clip: score.measures for score in scores["blurred"]}
    expected = [[of["sharpness"].value, of["identity"].value] for of in values.values()]
    assert dots(axes)[3] == pytest.approx(np.array(expected))


def test_clips_are_ranked_from_the_worst(folder):
    scores = stored_scores(folder)["gaps"]
    values = benchmarks.clip_values(scores, "sharpness")
    assert len(values) == PEOPLE - 1
    rising = benchmarks.ranked_clips(scores, "sharpness", "higher")
    assert [values[clip] for clip in rising] == sorted(values.values())
    assert benchmarks.ranked_clips(scores, "sharpness", "lower") == rising[::-1]
    with pytest.raises(InvalidRequest, match="cannot be ranked"):
        benchmarks.ranked_clips(scores, "motion", "neither")


def test_a_contact_sheet_shows_the_frames_that_were_scored(folder):
    sheet = benchmarks.contact_sheet(folder, stored_scores(folder), "sharpness", ["clip3"])
    step, size = benchmarks.TILE + benchmarks.GAP, benchmarks.TILE
    top = 2 * benchmarks.GAP + 2 * benchmarks.TEXT
    tiles = [
        np.asarray(sheet.crop((benchmarks.GAP + n * step, top, benchmarks.GAP + n * step + size, top + size)))
        for n in range(4)
    ]
    real, copy, blurred, missing = tiles
    assert np.array_equal(real, copy)
    assert (
        np.abs(np.diff(blurred.astype(int), axis=1)).mean() < np.abs(np.diff(real.astype(int), axis=1)).mean()
    )
    assert (missing == missing[0, 0]).all()


def test_a_clip_s_videos_lie_side_by_side_with_the_real_one_first(folder, tmp_path):
    path = benchmarks.clip_video(folder, ["blurred", "gaps"], "clip3", tmp_path / "clip.mp4")
    facts = probe(path)
    assert facts.frame_count == 8
    assert facts.audio_seconds > 0.3, "the real recording"
    assert shown_video(folder, "gaps", "clip3") is None
    assert benchmarks.clip_video(folder, ["gaps"], "clip3", tmp_path / "none.mp4") is None


def test_the_report_holds_table_pictures_and_failures(page, folder):
    text = unescape(page)
    measures = {row.measure for row in benchmark_table(folder) if row.measure in KINDS and not row.why_not}
    assert page.count("<img ") == len(measures) + 2
    assert page.count('src="data:image/png') == page.count("<img ")
    assert page.count('src="data:video/mp4') == 2
    assert all((folder / "figures" / f"{name}.png").is_file() for name in (*measures, "scatter", "clips"))
    assert f'<a href="{published()[0].source}">' in page
    assert ">no file clip3.mp4<" in text
    assert "sharpness of blurred, the worst first" in text
    scores = stored_scores(folder)["blurred"]
    assert f"The worst clip: {benchmarks.ranked_clips(scores, 'sharpness', 'higher')[0]}" in text
    assert all(row.name in text and row.unknown in text for row in published())


def test_the_report_opens_from_disk_and_axe_finds_nothing(page, folder):
    with chromium() as browser:
        shown = browser.new_page(viewport={"width": 390, "height": 800})
        shown.set_default_timeout(120_000)  # on a busy machine
        requested, errors = [], []
        shown.on("request", lambda request: requested.append(request.url))
        shown.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        shown.goto((folder / "report.html").as_uri())
        shown.wait_for_function("[...document.querySelectorAll('video')].every(video => video.videoWidth)")
        assert findings(shown) == []
        assert shown.evaluate("document.documentElement.scrollWidth") == 390, "tables scroll by themselves"
        assert errors == []
    assert [url for url in requested if not url.startswith("data:")] == [(folder / "report.html").as_uri()]


def test_published_figures_of_the_dataset_are_marked_and_never_ours(folder, rows, tmp_path):
    assert published("drawn") == []
    others = published("hdtf")
    assert {row.system for row in others} == {
        "InfiniteTalk", "MultiTalk", "OmniAvatar", "FantasyTalking", "Hallo3",
    }  # fmt: skip
    assert len({row.name for row in others}) == len(others), "papers that measured one system are told apart"
    lines = to_markdown(rows, others).splitlines()
    marked = [line for line in lines if line.startswith(f"| InfiniteTalk {MARK}")]
    assert len(marked) == 1
    assert {line.count("|") for line in lines if line.startswith("|")} == {marked[0].count("|")}
    assert any("unknown: which videos" in line for line in lines)
    assert r"InfiniteTalk $\dagger$" in to_latex(rows, others)
    assert MARK not in to_markdown(rows)


def test_the_table_of_a_dataset_shows_what_is_published_of_it(folder, tmp_path, capsys):
    shutil.copytree(folder, tmp_path / "hdtf")
    content = {"name": "hdtf", "clips": "0"}
    write_json(tmp_path / "hdtf" / "manifest.json", content)
    assert main(["benchmark", "table", str(tmp_path / "hdtf")]) == 0
    assert f"OmniAvatar {MARK}" in capsys.readouterr().out
    assert main(["benchmark", "report", str(tmp_path / "hdtf")]) == 0
    rows = re.findall(
        r'<tr class="published"><th scope="row">(.+?)</th>', (tmp_path / "hdtf/report.html").read_text()
    )
    assert rows.count(f"OmniAvatar {MARK}") == 2, "below the own rows, and in the list of all"
