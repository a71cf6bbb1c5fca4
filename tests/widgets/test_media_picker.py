"""A picker offers samples and files, shows a preview of the chosen one, and saves uploads."""

import shutil
from datetime import datetime

import pytest

from talkinghead_lab.errors import OutputError
from talkinghead_lab.foundation.paths import SAMPLES_FOLDER
from talkinghead_lab.widgets.media_picker import MediaPicker, save_upload


def test_samples_and_the_shared_folder_are_offered(project):
    (project / "shared").mkdir()
    for name in ("me.PNG", "voice.wav", "notes.txt", "clip.mp4"):
        (project / "shared" / name).touch()
    assert dict(MediaPicker("picture").known.options) == {
        "driving (sample)": "sample:driving",
        "portrait (sample)": "sample:portrait",
        "portrait-2 (sample)": "sample:portrait-2",
        "two-people (sample)": "sample:two-people",
        "shared/clip.mp4": str(project / "shared" / "clip.mp4"),
        "shared/me.PNG": str(project / "shared" / "me.PNG"),
    }
    offered = [path for _, path in MediaPicker("sound").known.options]
    assert offered[-2:] == [str(project / "shared" / "clip.mp4"), str(project / "shared" / "voice.wav")]


@pytest.mark.parametrize(
    ("kind", "value", "shown"),
    [
        ("picture", "sample:portrait", ["<img", "320 × 320"]),
        ("picture", "sample:driving", ["<video", "data:video/mp4"]),
        ("sound", "sample:recording-2", ["<audio", "4.5 s", "<svg"]),
        ("sound", "sample:portrait", ["thl-error"]),
        ("picture", "/nowhere.png", ["thl-error", "no such file"]),
    ],
)
def test_the_chosen_file_has_a_preview(kind, value, shown, project):
    picker = MediaPicker(kind)
    picker.value = value
    for text in shown:
        assert text in picker.preview.value
    assert picker.known.value == value


def test_choosing_and_typing_set_the_value(project):
    picker = MediaPicker("picture")
    picker.known.value = "sample:portrait-2"
    assert picker.value == "sample:portrait-2"
    shutil.copy(SAMPLES_FOLDER / "portrait.png", project / "mine.png")
    picker.path.value = "mine.png"
    assert picker.value == str(project / "mine.png")
    assert ("mine.png", str(project / "mine.png")) in picker.known.options


def test_an_upload_is_saved_and_chosen(project):
    picker = MediaPicker("picture")
    content = (SAMPLES_FOLDER / "portrait.png").read_bytes()
    picker.upload.value = ({
        "name": "face.png", "type": "image/png", "size": len(content), "content": memoryview(content),
        "last_modified": datetime.now(),
    },)  # fmt: skip
    assert picker.value == str(project / "shared" / "face.png")
    assert (project / "shared" / "face.png").read_bytes() == content


def test_an_upload_neither_replaces_a_file_nor_leaves_the_folder(tmp_path):
    first = save_upload(tmp_path, "../../face.png", b"one")
    assert first == tmp_path / "face.png"
    assert save_upload(tmp_path, "face.png", b"one") == first
    with pytest.raises(OutputError, match="not overwritten"):
        save_upload(tmp_path, "face.png", b"two")
    assert first.read_bytes() == b"one"
