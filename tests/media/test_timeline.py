"""Dialogues: who is heard when, how loud, and what does not fit."""

import numpy as np
import pyloudnorm
import pytest

from talkinghead_lab.errors import InvalidRequest, MediaTooLarge
from talkinghead_lab.foundation.field_types import Segment
from talkinghead_lab.media.audio import Recording, mix_speakers
from talkinghead_lab.media.timeline import lay_out


def recording(seconds: float, level: float = 0.1, channels: int = 1, seed: int = 0) -> Recording:
    draw = np.random.default_rng(seed)
    speech = draw.uniform(-level, level, round(seconds * 16_000)).astype(np.float32)
    track = draw.uniform(-level, level, (channels, round(seconds * 48_000))).astype(np.float32)
    return Recording(speech, track)


def segment(speaker: int, start: float, end: float | None = None) -> Segment:
    return Segment(speaker=speaker, start=start, end=end, file="a.wav")


def loudness(track: np.ndarray) -> float:
    return pyloudnorm.Meter(48_000).integrated_loudness(track.T.astype(np.float64))


def test_segments_lie_where_they_say():
    first, second, third = (recording(seconds, seed=number) for number, seconds in enumerate((1.0, 0.5, 2.0)))
    voices, sound, warnings = lay_out(
        [first, second, third], "timeline", [segment(1, 0.25), segment(2, 1.0), segment(1, 1.5, 2.75)]
    )
    assert len(voices) == 2 and warnings == ()
    assert [len(voice) for voice in voices] == [44_000, 44_000] and sound.shape == (1, 132_000)
    expected = np.zeros((2, 44_000), np.float32)
    expected[0, 4_000:20_000] = first.speech
    expected[1, 16_000:24_000] = second.speech
    expected[0, 24_000:] = third.speech[:20_000]
    assert np.array_equal(np.stack(voices), expected)
    heard = np.zeros((1, 132_000), np.float32)
    heard[:, 12_000:60_000] += first.soundtrack
    heard[:, 48_000:72_000] += second.soundtrack
    heard[:, 72_000:] += third.soundtrack[:, :60_000]
    assert np.array_equal(sound, heard)


def test_a_timeline_says_the_same_as_para_and_add():
    pair = [recording(1.0, seed=1), recording(0.5, seed=2, channels=2)]
    for mix, start in (("para", 0.0), ("add", 1.0)):
        voices, sound, _ = lay_out(pair, mix)
        assert np.array_equal(np.stack(voices), mix_speakers(pair[0].speech, pair[1].speech, mix))
        again, same, _ = lay_out(pair, "timeline", [segment(1, 0.0), segment(2, start)])
        assert np.array_equal(np.stack(voices), np.stack(again))
        assert np.array_equal(sound, same)


def test_sound_tracks_sum_without_clipping():
    speech = np.zeros(4, np.float32)
    mono = Recording(speech, np.full((1, 4), 0.8, np.float32))
    stereo = Recording(speech, np.full((2, 2), 0.6, np.float32))
    _, total, _ = lay_out([mono, stereo], "para")
    assert total.shape == (2, 4)
    assert total.max() == pytest.approx(1.0)
    assert total[0, 3] / total[0, 0] == pytest.approx(0.8 / 1.4)
    _, in_turn, _ = lay_out([mono, stereo], "add")
    np.testing.assert_allclose(in_turn, [[0.8] * 4 + [0.6] * 2] * 2, rtol=1e-6)


def test_whoever_says_nothing_is_silent():
    voices, _, _ = lay_out([recording(0.5)], "timeline", [segment(2, 0.0)])
    assert not voices[0].any() and voices[1].any()


@pytest.mark.parametrize("mix", ["para", "add", "timeline"])
def test_each_speaker_is_as_loud_as_asked(mix):
    pair = [recording(2.0, 0.5, seed=1), recording(2.0, 0.01, channels=2, seed=2)]
    segments = [segment(1, 0.0), segment(2, 2.0)]
    for number, wanted in enumerate((-20.0, -30.0)):
        quiet = [
            each if place == number else Recording(each.speech, 0 * each.soundtrack)
            for place, each in enumerate(pair)
        ]
        voices, sound, warnings = lay_out(quiet, mix, segments, (-20.0, -30.0))
        own = sound if mix == "para" else sound[:, 96_000 * number :][:, :96_000]
        assert loudness(own) == pytest.approx(wanted, abs=0.01)
        assert warnings == ()
        assert np.array_equal(np.stack(voices), np.stack(lay_out(quiet, mix, segments)[0])), (
            "the speech stays"
        )


def test_one_speaker_has_a_loudness_too():
    one = recording(2.0, 0.5)
    (voice,), sound, _ = lay_out([one], "para", (), (-33.0,))
    assert loudness(sound) == pytest.approx(-33, abs=0.1)
    assert np.array_equal(voice, one.speech)


def test_a_sum_that_would_clip_is_lowered_and_told():
    pair = [recording(1.0, seed=1), recording(1.0, seed=2)]
    _, sound, (warning,) = lay_out(pair, "para", (), (-3.0, -3.0))
    assert np.abs(sound).max() == pytest.approx(1.0, abs=1e-6)
    assert "would clip: it is lowered by" in warning


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        (
            [segment(1, 0.0, 1.5), segment(2, 0.0)],
            r"segment 1 is longer than its recording: received 1.5 s, and .*a\.wav lasts 1\.00 s",
        ),
        (
            [segment(1, 0.0), segment(1, 0.9)],
            r"segments 1 and 2 of speaker 1 overlap: received 0\.00 to 1\.00 s and 0\.90 to 1\.90",
        ),
        ([segment(2, 0.5), segment(2, 0.0)], r"segments 2 and 1 of speaker 2 overlap"),
        (
            [segment(1, 0.5), segment(2, 0.5, 0.53)],
            r"segment 2 is shorter than one video frame: received 0\.5 to 0\.53 s; allowed: 0\.04 s",
        ),
    ],
)
def test_segments_that_do_not_fit_are_refused(segments, message):
    with pytest.raises(InvalidRequest, match=message) as refused:
        lay_out([recording(1.0), recording(1.0)], "timeline", segments)
    assert refused.value.field == "segments"


def test_speakers_may_interrupt_each_other_and_segments_may_touch():
    lay_out([recording(1.0)] * 3, "timeline", [segment(1, 0.0), segment(1, 1.0), segment(2, 0.5)])


def test_a_segment_may_last_one_video_frame_at_any_time():
    parts = [segment(1, start, start + 0.04) for start in (0.1, 1.8, 7.3)]
    voices, _, _ = lay_out([recording(1.0)] * 3, "timeline", parts)
    assert [np.count_nonzero(voices[0][round(p.start * 16_000) :][:640]) > 600 for p in parts] == [True] * 3


def test_a_time_line_has_the_limit_of_a_recording():
    with pytest.raises(MediaTooLarge, match=r"time line is too long: received 61\.0 s; allowed: up to 60 s"):
        lay_out([recording(1.0)], "timeline", [segment(1, 60.0)], max_seconds=60.0)
