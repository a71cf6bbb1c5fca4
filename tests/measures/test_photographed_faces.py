"""Faces are found where the user has the landmarker; otherwise the error gives the reason."""

import os

import numpy as np
import pytest
import torch
from torch import Generator

from talkinghead_lab.errors import CheckpointError, MediaError
from talkinghead_lab.measures import photographed_faces
from talkinghead_lab.measures.given_weights import LANDMARKER
from talkinghead_lab.training.avatar import Motion, render, sample_identity
from tests.measures.videos import grey, shown_to, write

needs_model = pytest.mark.skipif(
    LANDMARKER.variable not in os.environ,
    reason=f"{LANDMARKER.variable} names no face landmarker",
)


def test_without_a_model_file_the_variable_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv(LANDMARKER.variable, raising=False)
    with pytest.raises(CheckpointError, match=r"FACE_LANDMARKER is not set.*face_landmarker.task"):
        photographed_faces.FaceTracker(10)
    monkeypatch.setenv(LANDMARKER.variable, str(tmp_path / "gone.task"))
    with pytest.raises(CheckpointError, match=r"names no file.*gone.task"):
        photographed_faces.FaceTracker(10)


def test_a_wrong_model_file_is_refused(tmp_path, monkeypatch):
    pytest.importorskip("mediapipe")
    wrong = tmp_path / "wrong.task"
    wrong.write_bytes(b"no landmarker")
    monkeypatch.setenv(LANDMARKER.variable, str(wrong))
    with pytest.raises(CheckpointError, match="not a face landmarker"):
        photographed_faces.FaceTracker(10)


@needs_model
def test_the_opening_follows_the_mouth_and_the_box_the_head(tmp_path):
    motion = Motion.still(50)
    wanted = 0.5 - 0.5 * torch.cos(torch.arange(50) / 4)
    motion.mouth[:, 0] = wanted
    pixels = ((render(sample_identity(Generator().manual_seed(5)), motion) + 1) * 127.5).byte()
    path = write(tmp_path / "talks.mp4", pixels.permute(0, 2, 3, 1).numpy())
    seen = shown_to(photographed_faces.FaceTracker(50), path).faces()
    assert np.corrcoef(seen.opening, wanted)[0, 1] > 0.9
    left, top, right, bottom = seen.boxes.mean(0)
    assert 0 < left < 80 < right < 160
    assert 0 < top < 80 < bottom < 160


@needs_model
def test_a_video_without_a_face_is_told(tmp_path):
    with pytest.raises(MediaError, match="3 of 3"):
        shown_to(photographed_faces.FaceTracker(10), write(tmp_path / "grey.mp4", grey([90] * 3))).faces()
