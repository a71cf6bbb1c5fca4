"""Systems in one table: faults are found, failures stay, and equal calls give equal tables."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import polars
import pytest
import yaml

from talkinghead_lab.__main__ import main
from talkinghead_lab.errors import InvalidRequest, MediaError, OutputError
from talkinghead_lab.evaluation import scoring
from talkinghead_lab.evaluation.manifest import Manifest
from talkinghead_lab.evaluation.systems import REAL, WRONG, Benchmark, stored_scores
from talkinghead_lab.evaluation.table import (
    Row,
    benchmark_table,
    to_frame,
    to_latex,
    to_markdown,
    write_table,
)
from talkinghead_lab.media.reference import DrivingVideo
from tests.evaluation.faults import clips, found, scored

FRAMES = 13


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("benchmark")


@pytest.fixture(scope="module")
def manifest(folder) -> Manifest:
    return clips(folder / "clips", 10, FRAMES)


@pytest.fixture(scope="module")
def rows(folder, manifest) -> list[Row]:
    """A table of copies, and of copies with a fault."""
    return scored(folder, manifest, ("other_person", "blurred", "other_lips"))


def cell(rows: list[Row], system: str, measure: str, rule: str = "excluded") -> Row:
    return next(r for r in rows if (r.system, r.measure, r.rule) == (system, measure, rule))


def test_planted_faults_are_found_by_the_measures_that_should(rows):
    assert {"identity"} <= found(rows, "other_person")
    assert {"sharpness"} <= found(rows, "blurred")
    assert {"lip_correlation", "lip_error", "mouth_follows_sound"} <= found(rows, "other_lips")


def test_and_by_no_others(rows):
    assert not {"lip_correlation", "mouth_follows_sound"} & found(rows, "other_person")
    assert not {"lip_correlation", "color_drift"} & found(rows, "blurred")
    assert not {"sharpness", "color_drift"} & found(rows, "other_lips")
    mouth, person = (cell(rows, name, "identity").difference for name in ("other_lips", "other_person"))
    assert abs(mouth.value) < 0.02 * abs(person.value)


def test_copies_are_at_no_distance_and_other_pictures_are(rows):
    copy, blurred = (cell(rows, name, "drawn_fid").interval for name in ("a-copy", "blurred"))
    assert copy.value == pytest.approx(0, abs=1e-6)
    assert blurred.value > 1e-3
    assert cell(rows, "a-copy", "drawn_kid").interval.value == pytest.approx(0, abs=1e-6)


def test_bounds(rows):
    """Copies are as good as the real videos; wrong recordings are as bad as it gets."""
    real, wrong, copy = (cell(rows, name, "lip_correlation") for name in (REAL, WRONG, "a-copy"))
    assert copy.interval == real.interval
    assert real.interval.value > 0.9 > 0.4 > wrong.interval.value
    assert real.p is None
    assert wrong.p is None


@pytest.fixture(scope="module")
def failing(folder, manifest, rows) -> list[Row]:
    """The table with a system that fails two clips: a cut video and a missing one."""
    videos = folder / "failing"
    videos.mkdir()
    for clip in manifest.clips[2:]:
        shutil.copy(clip.video, videos)
    (videos / "clip0.mp4").write_bytes(manifest.clips[0].video.read_bytes()[:2000])
    scores = Benchmark(manifest, folder / "out", False).score("failing", videos)
    reasons = {score.clip: score.failure for score in scores if score.failure}
    assert reasons.keys() == {"clip0", "clip1"}
    assert "cannot be read" in reasons["clip0"]
    assert reasons["clip1"] == "no file clip1.mp4"
    return benchmark_table(folder / "out", "a-copy")


def test_failures_are_counted_and_shown_by_both_rules(failing, folder):
    excluded, worst = (cell(failing, "failing", "lip_correlation", rule) for rule in ("excluded", "worst"))
    assert (excluded.clips, worst.clips, excluded.failed) == (8, 10, 2)
    everything = [score for scores in stored_scores(folder / "out").values() for score in scores]
    lowest = min(s.measures["lip_correlation"].value for s in everything if not s.failure)
    assert worst.interval.value == pytest.approx((8 * excluded.interval.value + 2 * lowest) / 10)
    assert "failing, failures as worst" in to_markdown(failing)
    assert "8, 2 failed" in to_markdown(failing)


def test_scores_are_kept_and_equal_files_give_equal_tables(folder, manifest, failing, monkeypatch, tmp_path):
    write_table(failing, tmp_path)
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(scoring, "score_clip", None)  # nothing is scored again
    Benchmark(manifest, folder / "out", False).score("failing", folder / "failing")
    write_table(benchmark_table(folder / "out", "a-copy"), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first


def test_a_video_of_another_rate_is_shown_at_25_frames_per_second(manifest, tmp_path):
    """At 50 frames per second, each second frame counts; at 12.5, each counts twice."""
    clip = manifest.clips[0]
    original = [np.array(picture) for picture in DrivingVideo(clip.video).frames(0, FRAMES)]
    assert len(original) == FRAMES
    for rate, expected in ((50, [0, 1, 2, 3]), (12.5, [0, 0, 2, 2])):
        path = tmp_path / f"{rate}.mp4"
        command = f"ffmpeg -v error -i {clip.video} -vf fps={rate} -c:v libx264 -qp 0 -an {path}"
        subprocess.run(command.split(), check=True)
        shown = [np.array(picture) for picture in DrivingVideo(path).frames(0, FRAMES)]
        assert len(shown) == FRAMES
        for number, origin in enumerate(expected):
            gaps = [np.abs(shown[number].astype(int) - frame).mean() for frame in original]
            assert abs(int(np.argmin(gaps)) - origin) <= 1


def test_a_span_starts_where_the_manifest_says(manifest):
    path = manifest.clips[0].video
    everything = [np.array(picture) for picture in DrivingVideo(path).frames(0, FRAMES)]
    part = [np.array(picture) for picture in DrivingVideo(path).frames(0.4, FRAMES)]
    assert len(part) == FRAMES - 10
    assert np.array_equal(part[0], everything[10])


def test_another_manifest_does_not_get_the_folder(folder, manifest, rows):
    less = manifest.model_copy(update={"clips": manifest.clips[:9]})
    with pytest.raises(OutputError, match="scores of another manifest"):
        Benchmark(less, folder / "out", False)


def test_names_and_folders_that_do_not_fit(folder, manifest, rows, tmp_path):
    benchmark = Benchmark(manifest, folder / "out", False)
    for name in ("../x", REAL, "", ".."):
        with pytest.raises(InvalidRequest, match="not a name for a system"):
            benchmark.score(name, folder / "clips")
    for name in ("clip0.mp4", "clip0.mov"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(MediaError, match=r"two videos are of one clip: received clip0\.mov and clip0\.mp4"):
        benchmark.score("twice", tmp_path)
    for name in ("clip0.mp4", "clip0.mov"):
        (tmp_path / name).unlink()
    with pytest.raises(MediaError, match="no video in the folder has a clip's name"):
        benchmark.score("empty", tmp_path)
    with pytest.raises(InvalidRequest, match="no such system"):
        benchmark_table(folder / "out", "a-cop")
    with pytest.raises(OutputError, match="has no scores"):
        benchmark_table(tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (("a.yaml", "b/a.yaml"), "two systems have one name: received a"),
        (("a.yaml", "b c.yaml"), "received b c"),
    ],
)
def test_names_of_methods_are_checked_before_any_is_generated(
    folder, manifest, tmp_path, capsys, files, message
):
    methods = [part for file in files for part in ("--method", str(tmp_path / file))]
    out = tmp_path / "out"
    command = ["benchmark", "run", str(folder / "clips" / "clips.yaml"), *methods, "--out", str(out)]
    assert main(command) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_latex_and_data(failing, tmp_path):
    latex = to_latex(failing)
    columns = {line.count(" & ") for line in latex.splitlines() if line.endswith(r"\\")}
    assert columns == {1 + len({row.measure for row in failing if row.why_not is None})}
    assert "drawn\\_fid $\\downarrow$" in latex
    write_table(failing, tmp_path)
    assert polars.read_parquet(tmp_path / "table.parquet").equals(to_frame(failing))
    assert len(polars.read_csv(tmp_path / "table.csv")) == len(failing)


def test_in_a_shell(folder, manifest, tmp_path, capsys):
    """A request is generated for every clip, scored, and compared with videos made elsewhere."""
    for name in ("clip0", "clip1"):
        shutil.copy(folder / "clips" / f"{name}.mp4", tmp_path)
    out = ["--out", str(tmp_path / "out")]
    made = ["benchmark", "manifest", "folder", str(tmp_path), "--seconds", "0.2", "--identity", "(.+)"]
    assert main([*made, "--out", str(tmp_path / "two.yaml")]) == 0
    fields = {"image_path": "sample:portrait", "audio_path": "sample:recording", "checkpoint": "embedded"}
    one_step = {"diffusion_steps": 1, "text_guide_scale": 1, "audio_guide_scale": 1, "chunk_frames": 5}
    (tmp_path / "fast.yaml").write_text(yaml.safe_dump(fields | one_step | {"motion_frame": 1}))
    request = ["--method", str(tmp_path / "fast.yaml")]
    assert main(["benchmark", "run", str(tmp_path / "two.yaml"), *request, *out]) == 0
    theirs = ["--videos", str(tmp_path), "--name", "theirs"]
    assert main(["benchmark", "score", str(tmp_path / "two.yaml"), *theirs, *out]) == 0
    capsys.readouterr()
    assert main(["benchmark", "table", str(tmp_path / "out"), "--base", "theirs"]) == 0
    printed = capsys.readouterr().out
    assert [line.split("|")[1].strip() for line in printed.splitlines()[2:6]] == [
        REAL,
        WRONG,
        "fast",
        "theirs",
    ]
    assert (tmp_path / "out" / "table.md").read_text() == printed
    # Another request of the same name is not mistaken for the first one.
    assert main(["benchmark", "run", str(tmp_path / "two.yaml"), *request, "-p", "seed", "7", *out]) == 0
    runs = tmp_path / "out" / "systems" / "fast" / "runs"
    assert len([path for path in runs.iterdir() if path.is_dir()]) == 4


def test_a_run_that_fails_is_a_failed_clip(manifest, tmp_path):
    fields = {"checkpoint": "embedded", "loras": [{"path": str(tmp_path / "none.safetensors")}]}
    scores = Benchmark(manifest, tmp_path / "out", False).generate("broken", fields)
    assert len(scores) == len(manifest.clips)
    assert all("none.safetensors" in (score.failure or "") for score in scores)
    assert all(score.failure for score in stored_scores(tmp_path / "out")["broken"])


def test_codec_check_says_how_far_one_more_encoding_moves_each_measure(tmp_path, capsys):
    clips(tmp_path / "clips", 4, 8)
    manifest, videos, out = (str(tmp_path / name) for name in ("clips/clips.yaml", "videos", "out"))
    Path(videos).mkdir()
    for number in range(3):  # the fourth one is damaged
        shutil.copy(tmp_path / f"clips/clip{number}.mp4", videos)
    (tmp_path / "videos/clip3.mp4").write_bytes(b"damaged")
    command = ["benchmark", "score", manifest, "--videos", videos, "--name", "x", "--out", out]
    assert main([*command, "--codec-check"]) == 1
    lines = dict(line.split(" ", 1) for line in capsys.readouterr().out.splitlines() if " " in line)
    value, people = lines["sharpness"].split(", ")
    assert people == "3 people"
    sharpness = [s.measures["sharpness"].value for s in stored_scores(Path(out))["x-reencoded"][:3]]
    original = [s.measures["sharpness"].value for s in stored_scores(Path(out))["x"][:3]]
    assert sharpness != original
    expected = np.mean(sharpness) - np.mean(original)
    assert float(value.replace("−", "-")) == pytest.approx(expected, rel=0.02)
    assert stored_scores(Path(out))["x-reencoded"][3].failure == "no file clip3.mp4"
