"""A list of clips: what it holds, and what is refused."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from talkinghead_lab.__main__ import main
from talkinghead_lab.errors import InvalidRequest, MediaError, OutputError
from talkinghead_lab.evaluation.drawn import clips_digest, draw_clips, open_manifest
from talkinghead_lab.evaluation.manifest import (
    DATASETS,
    Maker,
    Manifest,
    from_folder,
    mouth_truth,
    reference_picture,
)
from talkinghead_lab.evaluation.statistics import FEWEST_IDENTITIES
from talkinghead_lab.media.video import read_frames, write_video

NAMES = ("WDA_Ann_000", "WDA_Ann_001", "RD_Bob7_000", "RD_Bob7_001", "Cleo")


@pytest.fixture
def folder(tmp_path) -> Path:
    """Videos of half a second, named as HDTF names them."""
    clips = tmp_path / "clips"
    clips.mkdir()
    rng = np.random.default_rng(0)
    for name in NAMES:
        frames = np.broadcast_to(rng.integers(0, 255, (1, 1, 1, 3), np.uint8), (13, 32, 32, 3))
        sound = rng.uniform(-0.1, 0.1, (1, 24_960)).astype(np.float32)
        write_video(clips / f"{name}.mp4", [np.ascontiguousarray(frames)], sound, 13, {})
    return clips


def test_clips_of_one_speaker_are_one_person(folder):
    clips = from_folder(folder, "ours", 0.5).clips
    assert [clip.identity for clip in clips] == ["Cleo", "RD_Bob7", "RD_Bob7", "WDA_Ann", "WDA_Ann"]


def test_a_wrong_recording_is_another_persons(folder):
    clips = {clip.id: clip for clip in from_folder(folder, "ours", 0.5).clips}
    assert all(clips[clip.other].identity != clip.identity for clip in clips.values())


def test_identities_by_a_regular_expression_of_ones_own(folder):
    clips = from_folder(folder, "ours", 0.5, identity="(?:WDA_|RD_)?([A-Za-z]+).*").clips
    assert {clip.identity for clip in clips} == {"Ann", "Bob", "Cleo"}


@pytest.mark.parametrize(
    ("dataset", "names", "people"),
    [
        ("hdtf", ("WDA_Ann_000", "WDA_Ann_001", "RD_Radio1_000"), {"WDA_Ann", "RD_Radio1"}),
        ("celebv-hq", ("M2Ohb0FAaJU_1", "M2Ohb0FAaJU_12", "-a_1b_2c_34_0"), {"M2Ohb0FAaJU", "-a_1b_2c_34"}),
        ("emtd", ("R7jm0-R9N_o-Scene-001", "a-Scene-1_x-Scene-002"), {"R7jm0-R9N_o", "a-Scene-1_x"}),
    ],
)
def test_datasets_are_listed_as_they_name_their_clips(folder, tmp_path, dataset, names, people):
    (tmp_path / "set").mkdir()
    for name in names:
        shutil.copy(folder / "Cleo.mp4", tmp_path / "set" / f"{name}.mp4")
    manifest, written = tmp_path / "set", tmp_path / "set.yaml"
    main(["benchmark", "manifest", dataset, str(manifest), "--seconds", "0.5", "--out", str(written)])
    assert {clip.identity for clip in Manifest.from_yaml(written).clips} == people
    assert {clip.id for clip in Manifest.from_yaml(written).clips} == set(names)
    with pytest.raises(InvalidRequest, match="does not tell who is seen"):
        from_folder(folder, "ours", 0.5, identity=DATASETS[dataset])  # Cleo


def test_a_dataset_tells_the_person_itself(folder, tmp_path, capsys):
    command = ["benchmark", "manifest", "hdtf", str(folder), "--out", str(tmp_path / "x.yaml")]
    assert main([*command, "--identity", "(.+)"]) == 2
    assert "--identity is for the kind `folder`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("identity", "message"),
    [("(", "not a regular expression"), ("(.)", "does not tell who is seen"), (".+", "does not tell"),
     ("(?:.*)(.)?|(.+)", "does not tell"), ("(?:.+?_)?.*?(?=.{0})()", "does not tell")],
)  # fmt: skip
def test_identities_that_cannot_be_told(folder, identity, message):
    with pytest.raises(InvalidRequest, match=message):
        from_folder(folder, "ours", 0.5, identity=identity)


def test_one_person_alone_is_refused(folder):
    for path in folder.glob("[!W]*.mp4"):
        path.unlink()
    with pytest.raises(InvalidRequest, match="all clips show one person"):
        from_folder(folder, "ours", 0.5)


def test_clips_that_are_too_short_are_named(folder):
    with pytest.raises(MediaError, match=r"too short.*Cleo\.mp4.*0\.52 s of pictures"):
        from_folder(folder, "ours", 2)


def test_a_written_manifest_is_read_as_it_was_also_when_it_moves(folder, tmp_path):
    manifest = from_folder(folder, "ours", 0.48)
    manifest.write(tmp_path / "ours.yaml")
    assert Manifest.from_yaml(tmp_path / "ours.yaml") == manifest
    shutil.move(tmp_path, tmp_path.with_name("moved"))
    moved = Manifest.from_yaml(tmp_path.with_name("moved") / "ours.yaml")
    moved.check()
    assert [clip.sha256 for clip in moved.clips] == [clip.sha256 for clip in manifest.clips]
    with pytest.raises(OutputError, match="exists"):
        moved.write(tmp_path.with_name("moved") / "ours.yaml")


def test_a_manifest_may_lie_elsewhere_and_its_clips_on_another_machine(folder, tmp_path):
    written = tmp_path / "elsewhere" / "ours.yaml"
    written.parent.mkdir()
    manifest = from_folder(folder, "ours", 0.5)
    manifest.write(written)
    stored = yaml.safe_load(written.read_text())
    assert stored["folder"] == str(folder)
    assert stored["clips"][0]["video"] == "Cleo.mp4"
    assert Manifest.from_yaml(written) == manifest
    theirs = shutil.move(folder, tmp_path / "theirs")
    with pytest.raises(MediaError, match="no file"):
        Manifest.from_yaml(written).check()
    there = Manifest.from_yaml(written, Path(theirs))
    there.check()
    there.write(tmp_path / "again.yaml")  # above the clips: relative, and no folder
    assert yaml.safe_load((tmp_path / "again.yaml").read_text())["clips"][0]["video"] == "theirs/Cleo.mp4"
    assert Manifest.from_yaml(tmp_path / "again.yaml") == there


def test_a_manifest_of_the_first_version_is_read(folder, tmp_path):
    from_folder(folder, "ours", 0.5).write(tmp_path / "ours.yaml")
    text = (tmp_path / "ours.yaml").read_text()
    assert text.startswith("version: 2")
    (tmp_path / "first.yaml").write_text(text.replace("version: 2", "version: 1"))
    assert (
        Manifest.from_yaml(tmp_path / "first.yaml").clips == Manifest.from_yaml(tmp_path / "ours.yaml").clips
    )


DRAWN = {"kind": "drawn", "identities": 2, "seconds": 0.2}


def test_clips_are_drawn_on_first_use_and_equal_seeds_draw_equal_clips(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("TALKINGHEAD_CACHE", str(tmp_path / "cache"))
    made = tmp_path / "drawn.yaml"
    made.write_text(yaml.safe_dump({"name": "tiny", "maker": DRAWN}))
    manifest = open_manifest(made, show_progress=False)
    manifest.check()
    assert (manifest.name, manifest.cartoon, len(manifest.clips)) == ("tiny", True, 2)
    assert all(clip.video.is_relative_to(tmp_path / "cache") for clip in manifest.clips)
    assert len(mouth_truth(manifest.clips[0])) == 5
    times = [clip.video.stat().st_mtime_ns for clip in manifest.clips]
    manifest.clips[1].video.unlink()  # as after an interrupt
    made.write_text(yaml.safe_dump({"name": "tiny", "maker": DRAWN | {"digest": clips_digest(manifest)}}))
    again = open_manifest(made, show_progress=False)
    assert again == manifest
    assert again.clips[0].video.stat().st_mtime_ns == times[0]
    assert caplog.text == ""
    made.write_text(yaml.safe_dump({"name": "tiny", "maker": DRAWN | {"digest": "0" * 64}}))
    assert open_manifest(made, show_progress=False) == manifest
    assert "not equal to the byte" in caplog.text


def test_a_quick_check_takes_a_clip_of_each_of_a_few_people(folder, tmp_path):
    small = from_folder(folder, "ours", 0.5).reduced()
    assert [(clip.identity, clip.other) for clip in small.clips] == [
        ("Cleo", "RD_Bob7_000"), ("RD_Bob7", "WDA_Ann_000"), ("WDA_Ann", "Cleo"),
    ]  # fmt: skip
    assert (small.name, small.clips[0].seconds) == ("ours-small", 0.5)
    made = tmp_path / "drawn.yaml"
    made.write_text(yaml.safe_dump({"name": "many", "maker": DRAWN | {"identities": 9, "clips_each": 3}}))
    assert len(open_manifest(made, tmp_path / "few", show_progress=False, small=True).clips) == 4


def test_a_folder_keeps_the_clips_of_one_maker(folder, tmp_path):
    draw_clips(tmp_path / "drawn", Maker(**DRAWN), show_progress=False)
    for where, seed in (("drawn", 2), ("clips", 1)):
        with pytest.raises(OutputError, match="drawn otherwise, or videos of others"):
            draw_clips(tmp_path / where, Maker(**DRAWN, seed=seed), show_progress=False)


@pytest.mark.parametrize("content", [{}, {"maker": DRAWN, "clips": "theirs"}, {"maker": {"kind": "other"}}])
def test_clips_are_listed_or_made(folder, tmp_path, content):
    from_folder(folder, "ours", 0.5).write(tmp_path / "ours.yaml")
    if content.get("clips"):
        content = content | {"clips": yaml.safe_load((tmp_path / "ours.yaml").read_text())["clips"]}
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump({"name": "x"} | content))
    with pytest.raises(InvalidRequest, match=r"two clips or more, or a `maker`|`maker.kind` is not valid"):
        Manifest.from_yaml(tmp_path / "wrong.yaml")


def test_the_drawn_benchmark_ships():
    path = Path(__file__).parents[2] / "params" / "benchmarks" / "drawn.yaml"
    maker = Manifest.from_yaml(path).maker
    assert maker.identities >= FEWEST_IDENTITIES
    assert maker.digest is not None


def test_missing_and_different_clips_are_all_named(folder):
    manifest = from_folder(folder, "ours", 0.5)
    (folder / "Cleo.mp4").unlink()
    shutil.copy(folder / "WDA_Ann_000.mp4", folder / "WDA_Ann_001.mp4")
    with pytest.raises(MediaError, match=r"Cleo: no file.*WDA_Ann_001: .*has the digest"):
        manifest.check()


def test_names_that_give_one_id_are_told(folder):
    shutil.copy(folder / "Cleo.mp4", folder / "Cleo.mov")
    with pytest.raises(InvalidRequest, match=r"two clips have the id Cleo; one is .*clips/Cleo\.m"):
        from_folder(folder, "ours", 0.5)


@pytest.mark.parametrize("change", [{"start": 0.4}, {"seconds": 9.0}, {"start": 5.0}])
def test_a_span_beyond_its_file_is_no_failure_of_a_system(folder, change):
    manifest = from_folder(folder, "ours", 0.5)
    first, *others = manifest.clips
    manifest = manifest.model_copy(update={"clips": (first.model_copy(update=change), *others)})
    with pytest.raises(MediaError, match=r"end before their spans: received Cleo: .*0\.52 s of pictures"):
        manifest.check()


def test_a_clip_without_sound_is_no_failure_of_a_system(folder):
    write_video(folder / "Silent.mp4", [np.zeros((13, 32, 32, 3), np.uint8)], None, 13, {})
    with pytest.raises(MediaError, match=r"Silent\.mp4: 0\.52 s of pictures, 0\.00 s of sound"):
        from_folder(folder, "ours", 0.5)


@pytest.mark.parametrize("text", ["id,video\na,b\n", '{"id": "a"}\n{"id": "b"}\n', "- a\n", ""])
def test_a_manifest_of_another_form_is_called_one(tmp_path, text):
    (tmp_path / "clips.csv").write_text(text)
    with pytest.raises(InvalidRequest, match=r"(?s)the manifest is not .*clips\.csv"):
        Manifest.from_yaml(tmp_path / "clips.csv")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"other": "nobody"}, "`other` of the clip Cleo must be another clip, received 'nobody'"),
        ({"other": "Cleo"}, "must be another clip"),
        ({"id": "RD_Bob7_000"}, r"two clips have the id RD_Bob7_000; one is clips/RD_Bob7_000\.mp4"),
        ({"id": "../x"}, "clips.0.id"),
        ({"seconds": 0}, "clips.0.seconds"),
        ({"sha256": "abc"}, "clips.0.sha256"),
        ({"surname": "X"}, "clips.0.surname"),
    ],
)
def test_a_manifest_that_is_not_valid(folder, tmp_path, change, message):
    from_folder(folder, "ours", 0.5).write(tmp_path / "ours.yaml")
    content = yaml.safe_load((tmp_path / "ours.yaml").read_text())
    content["clips"][0] |= change
    (tmp_path / "changed.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(InvalidRequest, match=message):
        Manifest.from_yaml(tmp_path / "changed.yaml")


def test_the_portrait_is_the_frame_at_the_start(folder):
    clip = from_folder(folder, "ours", 0.5).clips[0]
    first = next(read_frames(clip.video))
    assert np.array_equal(np.asarray(reference_picture(clip)), first)
    assert mouth_truth(clip) is None
