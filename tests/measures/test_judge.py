"""One decoding pass gives every measure and check, or the reason why one cannot be taken."""

import io

import av
import numpy as np
import pytest

from talkinghead_lab.measures import judge
from talkinghead_lab.measures.given_weights import GIVEN_WEIGHTS, SYNCNET
from talkinghead_lab.measures.judge import judge_video
from talkinghead_lab.measures.measure import KINDS
from talkinghead_lab.measures.photographed_faces import Faces, FaceTracker
from talkinghead_lab.media import video
from talkinghead_lab.media.audio import read_soundtrack
from tests.measures.given import give
from tests.measures.videos import grey, subject, write


@pytest.fixture(autouse=True)
def no_landmarker(monkeypatch):
    for weights in GIVEN_WEIGHTS:
        monkeypatch.delenv(weights.variable, raising=False)


def test_a_measure_that_cannot_be_taken_reports_the_reason(tmp_path):
    path = write(tmp_path / "one.mp4", grey([90], 32), np.zeros((1, 1920), np.float32))
    measures = judge_video(path, subject()).measures
    by_name = {measure.name: measure for measure in measures}
    assert [m.name for m in measures if m.value is not None] == ["sharpness"]
    of_the_run = {"time_to_first_frame", "seconds_per_frame", "peak_host_gib", "peak_gpu_gib"}
    assert by_name.keys() | of_the_run == KINDS.keys()
    for name in ("lip_correlation", "mouth_follows_sound", "csim", "head_motion"):
        assert "FACE_LANDMARKER is not set" in by_name[name].why_not
    for name in ("lse_c", "lse_d"):
        assert "SYNCNET_MODEL is not set" in by_name[name].why_not
    assert by_name["flicker"].why_not == "the video has fewer than 3 frames"


class BlindTracker(FaceTracker):
    """Finds no face in any frame."""

    def __init__(self, most_frames: int):
        self._most_frames, self._rows, self._landmarker = most_frames, [], io.BytesIO()

    def add(self, pixels: video.Frames) -> None:
        self._rows.append(None)


def test_a_reader_that_sees_no_face_is_told_from_none(tmp_path, monkeypatch):
    path = write(tmp_path / "grey.mp4", grey([90, 91, 92]))
    reasons = {m.name: m.why_not for m in judge_video(path, subject()).measures}
    assert reasons["lip_correlation"].startswith("no reader of photographed faces: the variable")
    monkeypatch.setattr(judge, "FaceTracker", BlindTracker)
    reasons = {m.name: m.why_not for m in judge_video(path, subject()).measures}
    told = "the reader of photographed faces follows none: no face is visible in too many frames"
    assert reasons["lip_correlation"].startswith(told)
    assert "3 of 3" in reasons["head_motion"]


class SeeingTracker(BlindTracker):
    """Finds a face that turns by a degree from frame to frame."""

    def faces(self) -> Faces:
        count = len(self._rows)
        turn = np.arange(count)[:, None] * [1.0, 0, 0]
        return Faces(np.zeros(count), np.zeros((count, 4)), np.zeros((count, 5, 2)), turn)


def test_the_motion_of_a_photographed_head_is_that_of_the_tracker(tmp_path, monkeypatch):
    monkeypatch.setattr(judge, "FaceTracker", SeeingTracker)
    path = write(tmp_path / "grey.mp4", grey([90, 91, 92]))
    by_name = {measure.name: measure for measure in judge_video(path, subject()).measures}
    assert by_name["head_motion"].value == pytest.approx(np.std([0, 1, 2]))
    assert by_name["csim"].value is None  # the portrait's face needs the landmarker
    assert "FACE_LANDMARKER is not set" in by_name["csim"].why_not


def test_syncnet_without_its_face_detector_gives_the_reason(tmp_path, monkeypatch):
    path = write(tmp_path / "grey.mp4", grey([90, 91, 92]))
    give(monkeypatch, SYNCNET, path)  # any file: it is not reached
    by_name = {measure.name: measure for measure in judge_video(path, subject()).measures}
    assert by_name["lse_c"].why_not.startswith("the variable S3FD_MODEL is not set")


def test_the_video_is_opened_for_its_facts_and_decoded_once(tmp_path, monkeypatch):
    sound = np.random.default_rng(0).normal(0, 0.1, (1, 50 * 1920)).astype(np.float32)
    path = write(tmp_path / "two-seconds.mp4", grey(np.arange(60, 110)), sound)
    opened, plain = [], av.open

    def counted(file, *arguments, **options):
        opened.append(file)
        return plain(file, *arguments, **options)

    monkeypatch.setattr(av, "open", counted)
    judgement = judge_video(path, subject(cartoon=True), lambda picture: picture.flatten(2), snapshots=5)
    assert len(opened) == 2, "once for the index, once to decode"
    assert [seconds for seconds, _ in judgement.snapshots] == [0.0, 0.48, 0.96, 1.48, 1.96]


def test_one_pass_gives_what_separate_ones_give(tmp_path):
    sound = np.random.default_rng(0).normal(0, 0.1, (2, 50 * 1920)).astype(np.float32)
    path = write(tmp_path / "two-seconds.mp4", grey(np.arange(60, 110)), sound)
    frames = []
    assert np.array_equal(video.decode_once(path, frames.append), read_soundtrack(path))
    assert np.array_equal(np.stack(frames), np.stack(list(video.read_frames(path))))
    snapshots = judge_video(path, subject(), snapshots=3).snapshots
    for (seconds, picture), (expected_seconds, expected) in zip(
        snapshots, video.evenly_spaced(path, 3), strict=True
    ):
        assert seconds == expected_seconds
        assert np.array_equal(np.asarray(picture), np.asarray(expected))


def test_a_silent_video_is_judged_too(tmp_path):
    path = write(tmp_path / "silent.mp4", grey(np.arange(60, 110)))
    judgement = judge_video(path, subject(cartoon=True))
    by_name = {measure.name: measure for measure in judgement.measures}
    assert by_name["loudness"].why_not == by_name["mouth_follows_sound"].why_not == "the video has no sound"
    assert judgement.checks["streams"]["passed"] is False
