"""Each check detects its fault in a real video, and passes a correct video."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Generator

from talkinghead_lab.measures.judge import judge_video
from talkinghead_lab.media import audio, video
from talkinghead_lab.training.avatar import Motion, render, sample_identity
from talkinghead_lab.training.identity import FIRST_TEST_IDENTITY
from talkinghead_lab.training.readers import random_motion
from tests.measures.videos import subject

SECONDS, FRAMES = 2.0, 50


@pytest.fixture(scope="module")
def speech(tmp_path_factory) -> tuple[Path, np.ndarray]:
    """A tone that swells twice in two seconds: its file, and its loudness at each video frame."""
    times = np.arange(round(SECONDS * 16_000)) / 16_000
    swell = np.sin(np.pi * times) ** 2
    path = tmp_path_factory.mktemp("speech") / "speech.wav"
    soundfile.write(path, 0.3 * swell * np.sin(2 * np.pi * 200 * times), 16_000)
    return path, swell.reshape(FRAMES, -1).mean(axis=1)


def presenter(opening: np.ndarray) -> np.ndarray:
    """Frames of a cartoon presenter with this mouth opening: uint8 [F, 160, 160, 3]."""
    still = random_motion(1, 1, Generator().manual_seed(3))
    motion = Motion(*(part.expand(1, FRAMES, -1).clone() for part in (still.mouth, still.pose, still.face)))
    motion.mouth[0, :, 0] = torch.from_numpy(opening).float()
    frames = render([sample_identity(Generator().manual_seed(FIRST_TEST_IDENTITY))], motion)[0]
    return ((frames + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


@pytest.fixture(scope="module")
def check(speech, tmp_path_factory):
    def checked(frames: np.ndarray, announced: int = FRAMES, drawn: bool = True, sound: bool = True) -> dict:
        path = tmp_path_factory.mktemp("video") / "video.mp4"
        heard = audio.read_soundtrack(speech[0]) if sound else None
        video.write_video(path, [frames], heard, len(frames), {})
        made_from = subject(
            speech=audio.read_recording(speech[0]).speech,
            frame_count=announced,
            seconds=SECONDS,
            cartoon=drawn,
        )
        return judge_video(path, made_from).checks

    return checked


def failed(verdict: dict) -> set[str]:
    names = {name for name, check in verdict.items() if name != "passed" and check["passed"] is False}
    assert verdict["passed"] is (not names)
    return names


@pytest.fixture(scope="module")
def speaking(speech) -> np.ndarray:
    return presenter(speech[1])


def test_a_speaking_presenter_passes(check, speaking):
    verdict = check(speaking)
    assert failed(verdict) == set()
    assert verdict["mouth_moves_with_speech"]["passed"] is True


def test_a_small_delay_of_the_lips_passes(check, speaking):
    assert failed(check(np.roll(speaking, 2, axis=0))) == set()


def test_a_mouth_that_does_not_follow_the_speech_fails(check, speech):
    assert failed(check(presenter(1 - speech[1]))) == {"mouth_moves_with_speech"}
    noise = np.random.default_rng(0).random(FRAMES)
    assert failed(check(presenter(noise))) == {"mouth_moves_with_speech"}


def test_the_mouth_of_a_photograph_is_not_measured_and_the_reason_is_given(check, speaking):
    verdict = check(speaking, drawn=False)
    assert verdict["passed"] is True
    assert verdict["mouth_moves_with_speech"]["passed"] is None
    assert "photographs" in verdict["mouth_moves_with_speech"]["reason"]


def test_a_frozen_picture_fails(check, speaking):
    assert failed(check(np.repeat(speaking[:1], FRAMES, axis=0), drawn=False)) == {"not_frozen"}


def test_black_frames_fail(check, speaking):
    frames = speaking.copy()
    frames[20:22] = 0
    verdict = check(frames, drawn=False)
    assert failed(verdict) == {"not_black"}
    assert verdict["not_black"]["measured"] == "2 black frames"


def test_a_video_that_is_too_short_fails(check, speaking):
    assert failed(check(speaking[:40], announced=40, drawn=False)) == {"length"}


def test_a_wrong_number_of_frames_fails(check, speaking):
    assert failed(check(speaking, announced=FRAMES - 1, drawn=False)) == {"frame_count"}


def test_a_silent_video_fails(check, speaking):
    assert failed(check(speaking, drawn=False, sound=False)) == {"streams", "length"}
