"""The part of a picture in the frame, and the warning of one that the bundled model does not know."""

import json

import numpy as np
import pytest
from matplotlib import get_data_path
from PIL import Image

from talkinghead_lab.__main__ import main
from talkinghead_lab.errors import InvalidRequest
from talkinghead_lab.foundation.paths import local_file
from talkinghead_lab.measures.given_weights import LANDMARKER
from talkinghead_lab.measures.photographed_faces import Faces
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.pipeline import portrait
from talkinghead_lab.pipeline.portrait import frame_picture
from talkinghead_lab.pipeline.request import resolve
from talkinghead_lab.pipeline.request_media import read_inputs

PHOTOGRAPH = f"{get_data_path()}/sample_data/grace_hopper.jpg"


@pytest.fixture
def request_of(recording):
    def make(**changes) -> GenerationParams:
        fields = {"audio_path": recording(0.5), "image_path": PHOTOGRAPH, "frame_size": "160x160"}
        return GenerationParams(**(fields | changes))

    return make


@pytest.fixture(scope="module")
def tall(tmp_path_factory) -> tuple[str, int]:
    """A cartoon presenter high up in a tall plain picture: the file, and the top of the square it fills."""
    path, top = tmp_path_factory.mktemp("tall") / "tall.png", 37
    picture = Image.new("RGB", (320, 900), "#c9cdd6")
    picture.paste(Image.open(local_file("sample:portrait")), (0, top))
    picture.save(path)
    return str(path), top


def test_a_photograph_is_told_from_a_presenter(request_of):
    (warning,) = frame_picture(request_of()).warnings
    assert "only drawn cartoon presenters" in warning
    assert "released weights (checkpoint: released)" in warning
    assert frame_picture(request_of(image_path="sample:portrait")).warnings == ()
    assert frame_picture(request_of(checkpoint="released")).warnings == ()


def test_plan_and_shell_tell_the_warning(request_of, tmp_path, capsys, caplog):
    path = tmp_path / "photo.yaml"
    short = {"max_frames": 5, "chunk_frames": 5, "motion_frame": 1, "diffusion_steps": 1}
    path.write_text(request_of(frame_size="64x64", **short).to_yaml())
    main(["plan", str(path)])
    assert "\nwarning: The bundled model knows only drawn cartoon presenters" in capsys.readouterr().out
    main(["plan", str(path), "--json"])
    assert len(json.loads(capsys.readouterr().out)["warnings"]) == 1
    assert main(["generate", str(path), "--run", str(tmp_path / "run")]) == 0
    (told,) = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert "only drawn cartoon presenters" in told
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["resolved"]["warnings"] == [told]
    assert record["checks"]["no_warnings"]["reason"] == told


@pytest.mark.parametrize(
    ("crop", "kept"),
    [("center", [0, 290, 320, 610]), ("top", [0, 0, 320, 320]), ("face", [0, 37, 320, 357])],
)
def test_the_kept_part_is_recorded(request_of, tall, crop, kept):
    request = request_of(image_path=tall[0], crop=crop)
    resolved = resolve(request, read_inputs(request))
    assert resolved.to_json()["crop"] == pytest.approx(kept, abs=10)
    assert (resolved.warnings == ()) is (crop != "center"), "the centre shows only what is below the head"


def test_a_photographed_face_is_the_centre_of_the_crop(request_of, monkeypatch):
    """The picture is 512x600; the landmarker would find the face at this box."""
    monkeypatch.setattr(
        portrait, "find_face", lambda pixels: Faces(np.zeros(1), np.array([[170.0, 60, 330, 260]]))
    )
    framed = frame_picture(request_of(crop="face", frame_size="160x320"))
    assert framed.framing.face == pytest.approx((250 / 512, 160 / 600))
    left, top, right, bottom = framed.placement.kept
    assert (top, bottom) == (0, 600)
    assert (left + right) / 2 == pytest.approx(250, abs=2)


@pytest.mark.parametrize("picture", [PHOTOGRAPH, "grey.png"])
def test_without_a_face_the_crop_is_refused(request_of, tmp_path, monkeypatch, picture):
    monkeypatch.delenv(LANDMARKER.variable, raising=False)
    Image.new("RGB", (300, 200), "grey").save(tmp_path / "grey.png")
    with pytest.raises(
        InvalidRequest, match=r"found no face.*FACE_LANDMARKER.*`crop: center` or `top`"
    ) as no:
        read_inputs(request_of(crop="face", image_path=str(tmp_path / picture)))
    assert no.value.field == "crop"


def test_a_driving_video_is_framed_like_a_portrait(request_of):
    request = request_of(image_path="sample:driving", crop="none", pad="#ff0000", frame_size="320x160")
    framed = frame_picture(request)
    assert framed.placement.left < 0
    with pytest.raises(InvalidRequest, match="does not fill the frame"):
        read_inputs(request.replace(pad=None))


def test_a_box_that_reaches_beyond_the_picture_is_warned_of(request_of, recording):
    boxes = ((0, 0, 160, 160), (160, 0, 330, 160))
    request = request_of(
        image_path="sample:two-people", second_audio_path=recording(0.5), speaker_boxes=boxes,
        frame_size="64x32", checkpoint="released",
    )  # fmt: skip
    (warning,) = frame_picture(request).warnings
    assert "box of speaker 2, [160, 0, 330, 160], reaches beyond the picture of 320x160" in warning
    within = request.replace(speaker_boxes=(boxes[0], (160, 0, 320, 160)))
    assert frame_picture(within).warnings == ()
