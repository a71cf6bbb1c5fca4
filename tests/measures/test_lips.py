"""Measures give known figures for known videos; the readers see in the pixels what the renderer drew, for
presenters that they were not trained on."""

import numpy as np
import pytest
import torch
from torch import Generator
from torch.nn import functional

from talkinghead_lab.foundation import digests
from talkinghead_lab.foundation.paths import local_file
from talkinghead_lab.measures import all, cost, drawn_faces, identity, lips, loudness
from talkinghead_lab.measures.measure import KINDS
from talkinghead_lab.media import video
from talkinghead_lab.media.reference import open_reference
from talkinghead_lab.models.judges import face_reader
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.training.avatar import Motion, render, sample_identity
from talkinghead_lab.training.identity import FIRST_TEST_IDENTITY
from talkinghead_lab.training.readers import random_motion, truth


@pytest.fixture(scope="module")
def drawn() -> tuple[torch.Tensor, torch.Tensor]:
    """160 frames of 40 unseen presenters in any pose, and their truth."""
    motion = random_motion(40, 4, Generator().manual_seed(11))
    people = [sample_identity(Generator().manual_seed(FIRST_TEST_IDENTITY + seed)) for seed in range(40)]
    return render(people, motion).flatten(0, 1), truth(motion).flatten(0, 1)


def blurred(frames: torch.Tensor) -> torch.Tensor:
    """Frames as a weak decoder gives them: half their detail gone, a little noise."""
    coarse = functional.interpolate(functional.avg_pool2d(frames, 2), scale_factor=2, mode="bilinear")
    return coarse + 0.02 * torch.randn(frames.shape, generator=Generator().manual_seed(0))


@pytest.mark.parametrize("change", [lambda frames: frames, blurred], ids=["clean", "blurred"])
def test_readings_agree_with_the_truth(drawn, change):
    frames, wanted = drawn
    frames = change(frames)
    assert (face_reader.mouth_opening(frames) - wanted[:, 0]).abs().mean() < 0.05
    pose = face_reader.head_pose(frames)
    for index, name in enumerate(("turn", "nod", "tilt"), 1):
        assert (getattr(pose, name) - wanted[:, index]).abs().mean() < 1.0, name
    assert (pose.shift_x - wanted[:, 4]).abs().mean() < 0.01
    assert (pose.shift_y - wanted[:, 5]).abs().mean() < 0.01
    assert (pose.scale - wanted[:, 6]).abs().mean() < 0.02


def test_a_shut_mouth_reads_as_shut(drawn):
    frames, wanted = drawn
    shut = wanted[:, 0] == 0
    assert shut.sum() >= 8
    assert face_reader.mouth_opening(frames[shut]).mean() < 0.03


def test_the_size_of_the_frames_does_not_matter(drawn):
    frames, wanted = drawn
    larger = functional.interpolate(frames[:16], scale_factor=2, mode="bilinear")
    assert (face_reader.mouth_opening(larger) - wanted[:16, 0]).abs().mean() < 0.06


def write(path, frames, sound=None):
    """A video of RGB frames [F, H, W, 3]."""
    video.write_video(path, [np.ascontiguousarray(frames, dtype=np.uint8)], sound, len(frames), {})
    return path


def grey(levels, size=64):
    return np.broadcast_to(np.asarray(levels)[:, None, None, None], (len(levels), size, size, 3))


def test_loudness_is_that_of_the_standard_s_tone(tmp_path):
    # EBU Tech 3341, case 1: a stereo sine of 1 kHz at −23 dBFS reads −23 LUFS.
    tone = 10 ** (-23 / 20) * np.sin(2 * np.pi * 1000 * np.arange(96_000) / 48_000)
    sound = np.stack([tone, tone]).astype(np.float32)
    measured = loudness.loudness(write(tmp_path / "tone.mp4", grey([90] * 50, 32), sound))
    assert measured.value == pytest.approx(-23, abs=0.2)
    silent = loudness.loudness(write(tmp_path / "silent.mp4", grey([90] * 50, 32), 0 * sound))
    assert silent.value is None and "gate" in silent.why_not


def test_lips_that_follow_the_truth_score_well_and_late_ones_worse(tmp_path):
    params = GenerationParams(image_path="sample:portrait-2", audio_path="sample:recording-2")
    digest = digests.known_sha256(local_file(params.audio_path))
    opening = torch.tensor(drawn_faces.mouth_truth()[digest])[:60]
    scores = []
    for late in (0, 4):
        motion = Motion.still(60)
        motion.mouth[:, 0] = opening.roll(late)
        pixels = ((render(sample_identity(Generator().manual_seed(5)), motion) + 1) * 127.5).byte()
        path = write(tmp_path / f"{late}.mp4", pixels.permute(0, 2, 3, 1).numpy())
        read = drawn_faces.read_openings(path, 60)
        scores.append([measure(read, params).value for measure in (lips.lip_correlation, lips.lip_error)])
    assert scores[0][0] > 0.95 and scores[0][1] < 0.05
    assert scores[1][0] < 0.7 and scores[1][1] > 2 * scores[0][1]


def test_a_mouth_is_held_against_the_loudness_at_the_best_small_lag():
    opening = np.random.default_rng(0).random(50)
    wave = np.repeat(opening, 640).astype(np.float32)
    for lag in (-3, 0, 3):
        assert lips.correlation_with_loudness(np.roll(opening, lag), wave, 16_000) > 0.9
    assert lips.correlation_with_loudness(np.roll(opening, 12), wave, 16_000) < 0.6
    assert lips.correlation_with_loudness(opening, 0 * wave, 16_000) is None


def test_what_a_run_took():
    stages = {
        "load": {"seconds": 1.0, "peak_host_gib": 0.5},
        "decode": {"seconds": 2.0, "peak_host_gib": 1.5},
    }
    found = {measure.name: measure for measure in cost.cost(stages, 5.0, 25)}
    assert found["seconds_per_frame"].value == 0.2
    assert found["peak_host_gib"].value == 1.5
    assert found["peak_gpu_gib"].value is None and "no GPU" in found["peak_gpu_gib"].why_not


def test_what_cannot_be_measured_says_why(tmp_path, monkeypatch):
    monkeypatch.delenv("FACE_LANDMARKER", raising=False)
    path = write(tmp_path / "one.mp4", grey([90], 32), np.zeros((1, 1920), np.float32))
    params = GenerationParams(
        image_path="sample:portrait", audio_path="sample:recording", checkpoint="released"
    )
    measures = all.measure_video(path, params, [])
    by_name = {measure.name: measure for measure in measures}
    assert [m.name for m in measures if m.value is not None] == ["sharpness"]
    of_the_run = {"seconds_per_frame", "peak_host_gib", "peak_gpu_gib"}
    assert by_name.keys() | of_the_run == KINDS.keys()
    for name in ("lip_correlation", "mouth_follows_sound", "lse_c", "lse_d"):
        assert "FACE_LANDMARKER is not set" in by_name[name].why_not
    assert by_name["flicker"].why_not == "the video has fewer than 3 frames"


def test_identity_is_one_for_the_portrait_itself(tmp_path):
    params = GenerationParams(image_path="sample:portrait", audio_path="sample:recording")
    portrait = np.asarray(open_reference(local_file(params.image_path)).frame_at(0.0))

    def features(picture: torch.Tensor) -> torch.Tensor:
        return functional.adaptive_avg_pool2d(picture, 8).flatten(1)[:, None]

    same = identity.identity(write(tmp_path / "same.mp4", np.stack([portrait] * 3)), params, features)
    other = identity.identity(write(tmp_path / "other.mp4", 255 - np.stack([portrait] * 3)), params, features)
    assert same.value > 0.99 > other.value
