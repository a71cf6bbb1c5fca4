"""Recordings at the edge of what is accepted become videos."""

import numpy as np
import pytest
import soundfile

from talkinghead_lab import generate
from talkinghead_lab.media import video
from talkinghead_lab.media.audio import read_soundtrack
from talkinghead_lab.pipeline.pipeline import Pipeline


def changing_channels(path):
    """A chained Ogg file: stereo, then mono at another rate."""
    links = []
    for channels, rate in ((2, 48_000), (1, 22_050)):
        tone = 0.2 * np.sin(2 * np.pi * 220 * np.arange(0.55 * rate) / rate)
        soundfile.write(path, np.stack([tone] * channels, axis=1), rate)
        links.append(path.read_bytes())
    path.write_bytes(b"".join(links))


def one_frame(path):
    soundfile.write(path, np.full(640, 0.1), 16_000)


@pytest.fixture(scope="module")
def pipeline(request_for):
    return Pipeline.load(request_for())


@pytest.mark.parametrize(
    ("write", "name", "frames", "channels"),
    [(changing_channels, "a.ogg", 27, 2), (one_frame, "a.wav", 1, 1)],
)
def test_a_recording_becomes_a_video(request_for, pipeline, tmp_path, write, name, frames, channels):
    write(tmp_path / name)
    request = request_for(audio_path=str(tmp_path / name), chunk_frames=29)
    result = generate(request, tmp_path / "run", pipeline=pipeline, show_progress=False)
    facts = video.probe(result.video_path)
    assert facts.frame_count == frames
    assert facts.audio_seconds == facts.duration_seconds == frames / 25
    sound = read_soundtrack(result.video_path)
    assert len(sound) == channels
    assert np.abs(sound).max() > 0.05
