"""Reading recordings in many formats, and refusing files that are none."""

import math

import av
import librosa
import numpy as np
import pyloudnorm
import pytest
import soundfile

from talkinghead_lab.errors import MediaError
from talkinghead_lab.media.audio import (
    SAMPLE_RATE,
    SOUNDTRACK_RATE,
    frame_count,
    mix_speakers,
    normalize_loudness,
    read_recording,
    read_soundtrack,
)


def tone(seconds, rate=SAMPLE_RATE, hertz=440.0, level=0.1):
    return (level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def write_with_av(path, wave, rate, codec, *, with_picture=False):
    """Write [channels, samples] into any container that PyAV supports, with or without a video stream."""
    with av.open(str(path), "w") as container:
        sound = container.add_stream(codec, rate=rate, layout="stereo" if len(wave) == 2 else "mono")
        if with_picture:
            picture = container.add_stream("mpeg4", rate=25)
            picture.width = picture.height = 32
            picture.pix_fmt = "yuv420p"
            container.mux(picture.encode(av.VideoFrame(32, 32, "yuv420p")))
            container.mux(picture.encode(None))
        frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout=sound.layout.name)
        frame.sample_rate = rate
        container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    return path


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000])
def test_speech_equals_librosas_with_normalised_loudness(tmp_path, rate):
    noise = np.random.default_rng(rate).normal(scale=0.05, size=(rate + 17, 2)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", noise, rate, subtype="FLOAT")
    expected, _ = librosa.load(tmp_path / "a.wav", sr=SAMPLE_RATE)
    speech = read_recording(tmp_path / "a.wav").speech
    assert speech.dtype == np.float32
    np.testing.assert_allclose(speech, normalize_loudness(expected), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3", "a.aiff"])
def test_sound_files_keep_length_pitch_and_level(tmp_path, name):
    soundfile.write(tmp_path / name, tone(1.0, 44100), 44100)
    speech = read_recording(tmp_path / name).speech
    # mp3 keeps its padding, ogg drops its first block.
    assert len(speech) == pytest.approx(SAMPLE_RATE, abs=1200)
    assert np.abs(np.fft.rfft(speech, SAMPLE_RATE)).argmax() == 440
    assert pyloudnorm.Meter(SAMPLE_RATE).integrated_loudness(speech) == pytest.approx(-23, abs=0.3)
    sound = read_soundtrack(tmp_path / name)
    assert sound.shape[0] == 1
    assert np.abs(sound[:, 4800:43200]).max() == pytest.approx(0.1, abs=0.005)


@pytest.mark.parametrize(
    ("name", "codec"), [("a.m4a", "aac"), ("a.mp4", "aac"), ("a.mkv", "libopus"), ("a.avi", "mp3")]
)
def test_containers_with_and_without_a_picture(tmp_path, name, codec):
    wave = np.stack([tone(1.0, 48000), tone(1.0, 48000, hertz=880.0)])
    write_with_av(tmp_path / name, wave, 48000, codec, with_picture=name != "a.m4a")
    speech = read_recording(tmp_path / name).speech
    assert len(speech) == pytest.approx(SAMPLE_RATE, abs=1200)
    spectrum = np.abs(np.fft.rfft(speech, SAMPLE_RATE))
    assert set(np.argsort(spectrum)[-2:]) == {440, 880}
    assert read_soundtrack(tmp_path / name).shape[0] == 2


def test_surround_is_mixed_down(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.stack([tone(0.5, 48000)] * 6, axis=1), 48000, subtype="PCM_24")
    assert read_soundtrack(tmp_path / "a.wav").shape == (2, 24000)
    assert read_recording(tmp_path / "a.wav").speech.shape == (8000,)


def test_the_sound_track_equals_the_recording(tmp_path):
    wave = np.random.default_rng(0).uniform(-0.9, 0.9, size=(SOUNDTRACK_RATE, 2)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", wave, SOUNDTRACK_RATE, subtype="FLOAT")
    sound = read_soundtrack(tmp_path / "a.wav")
    assert sound.dtype == np.float32
    np.testing.assert_allclose(sound, wave.T, atol=1e-6)


def test_silence_stays_silence(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(SAMPLE_RATE), SAMPLE_RATE)
    assert np.array_equal(read_recording(tmp_path / "a.wav").speech, np.zeros(SAMPLE_RATE, np.float32))


def test_a_clipped_recording_is_read(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.clip(tone(1.0, level=4.0), -1, 1), SAMPLE_RATE)
    speech = read_recording(tmp_path / "a.wav").speech
    assert pyloudnorm.Meter(SAMPLE_RATE).integrated_loudness(speech) == pytest.approx(-23, abs=1e-3)


@pytest.mark.parametrize("samples", [640, 3200, 6399, 6400, 6401])
def test_short_recordings_are_measured_on_a_repeated_copy(tmp_path, samples):
    wave = tone(samples / SAMPLE_RATE) + np.float32(0.01)
    soundfile.write(tmp_path / "a.wav", wave, SAMPLE_RATE, subtype="FLOAT")
    speech = read_recording(tmp_path / "a.wav").speech
    assert speech.shape == (samples,)
    assert np.isfinite(speech).all()
    if samples >= 3200:
        repeated = np.resize(speech.astype(np.float64), SAMPLE_RATE)
        assert pyloudnorm.Meter(SAMPLE_RATE).integrated_loudness(repeated) == pytest.approx(-23, abs=0.2)


def test_loudness_meets_its_target():
    wave = np.random.default_rng(1).normal(scale=0.3, size=2 * SAMPLE_RATE)
    for lufs in (-30.0, -23.0, -14.0):
        measured = pyloudnorm.Meter(SAMPLE_RATE).integrated_loudness(normalize_loudness(wave, lufs))
        assert measured == pytest.approx(lufs, abs=1e-9)


@pytest.mark.parametrize(
    ("samples", "frames"),
    [(1, 1), (639, 1), (640, 1), (1279, 1), (1280, 2), (3200, 5), (640 * 29, 29), (9_600_000, 15_000)],
)
def test_only_complete_frames_count(samples, frames):
    assert frame_count(np.zeros(samples, np.float32)) == frames


def test_mixing_places_both_speakers_on_one_timeline():
    first, second = np.full(3, 1.0, np.float32), np.full(5, 2.0, np.float32)
    together = mix_speakers(first, second, "para")
    assert [list(wave) for wave in together] == [[1, 1, 1, 0, 0], [2, 2, 2, 2, 2]]
    in_turn = mix_speakers(first, second, "add")
    assert [list(wave) for wave in in_turn] == [[1, 1, 1, 0, 0, 0, 0, 0], [0, 0, 0, 2, 2, 2, 2, 2]]


def test_a_truncated_recording_yields_what_is_left(tmp_path):
    soundfile.write(tmp_path / "whole.mp3", tone(4.0), SAMPLE_RATE)
    whole = (tmp_path / "whole.mp3").read_bytes()
    (tmp_path / "cut.mp3").write_bytes(whole[: len(whole) // 2])
    assert 1.5 < len(read_recording(tmp_path / "cut.mp3").speech) / SAMPLE_RATE < 2.1


def overwrite_a_part(path, share):
    """Overwrite `share` of a file with noise, starting after a third."""
    content = bytearray(path.read_bytes())
    start, length = len(content) // 3, int(share * len(content))
    content[start : start + length] = np.random.default_rng(0).bytes(length)
    path.write_bytes(content)


def test_a_few_damaged_packets_are_skipped_and_many_are_an_error(tmp_path):
    for share in (0.02, 0.5):
        write_with_av(tmp_path / "a.m4a", tone(4.0, 48000)[None], 48000, "aac")
        overwrite_a_part(tmp_path / "a.m4a", share)
        if share < 0.1:
            assert 3.7 < len(read_recording(tmp_path / "a.m4a").speech) / SAMPLE_RATE < 4.1
        else:
            with pytest.raises(MediaError, match=r"damaged: .*a\.m4a, \d+ of \d+ packets unreadable"):
                read_recording(tmp_path / "a.m4a")


def files_that_are_no_recordings(folder):
    (folder / "empty.wav").write_bytes(b"")
    (folder / "text.wav").write_text("no sound here\n" * 100)
    (folder / "text.txt").write_text("no sound here\n" * 100)
    (folder / "noise.mp3").write_bytes(np.random.default_rng(2).bytes(20_000))
    (folder / "playlist.m3u8").write_text("#EXTM3U\n#EXTINF:1,\nother.wav\n#EXT-X-ENDLIST\n")
    soundfile.write(folder / "none.wav", np.zeros(0), SAMPLE_RATE)
    soundfile.write(folder / "other.wav", tone(1.0), SAMPLE_RATE)
    header = (folder / "other.wav").read_bytes()[:30]
    (folder / "header.wav").write_bytes(header)
    write_with_av(folder / "whole.m4a", tone(2.0)[None], SAMPLE_RATE, "aac")
    whole = (folder / "whole.m4a").read_bytes()
    (folder / "cut.m4a").write_bytes(whole[: len(whole) // 2])


NO_RECORDINGS = [
    "empty.wav",
    "text.wav",
    "text.txt",
    "noise.mp3",
    "playlist.m3u8",
    "none.wav",
    "header.wav",
    "cut.m4a",
]


@pytest.mark.parametrize("name", NO_RECORDINGS)
def test_the_error_names_a_file_that_is_no_recording(tmp_path, name):
    files_that_are_no_recordings(tmp_path)
    for read in (read_recording, read_soundtrack):
        with pytest.raises(MediaError, match=name) as caught:
            read(tmp_path / name)
        assert caught.value.remedy


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_error_names_the_time_of_nan_or_infinity(tmp_path, bad):
    wave = tone(1.0)
    wave[12_000] = bad
    soundfile.write(tmp_path / "a.wav", wave, SAMPLE_RATE, subtype="FLOAT")
    for read in (read_recording, read_soundtrack):
        with pytest.raises(MediaError, match=r"NaN or infinity before 0\.[789]"):
            read(tmp_path / "a.wav")


def test_a_recording_over_the_limit_is_refused_while_decoding(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(1.0), SAMPLE_RATE)
    assert len(read_recording(tmp_path / "a.wav", max_seconds=1).speech) == SAMPLE_RATE
    soundfile.write(tmp_path / "b.wav", tone(1.2), SAMPLE_RATE)
    with pytest.raises(MediaError, match="too long"):
        read_recording(tmp_path / "b.wav", max_seconds=1)


@pytest.mark.parametrize("channels", [7, 8, 10, 12, 24])
def test_one_speaking_channel_of_many_is_heard(tmp_path, channels):
    """PyAV crashes the process on planar samples of eight channels and more."""
    sound = np.zeros((SAMPLE_RATE, channels))
    sound[:, 2] = tone(1.0)
    soundfile.write(tmp_path / "many.wav", sound, SAMPLE_RATE)
    soundfile.write(tmp_path / "one.wav", tone(1.0), SAMPLE_RATE)
    many, one = (read_recording(tmp_path / name) for name in ("many.wav", "one.wav"))
    assert many.soundtrack.shape == (2, SOUNDTRACK_RATE)
    # Both are normalised to the same loudness; the average of the channels is only quieter before that.
    np.testing.assert_allclose(many.speech, one.speech, atol=1e-3)


@pytest.mark.parametrize(("rate", "problem"), [(1, "too low"), (2**31 - 1, "too high")])
def test_a_header_that_claims_an_impossible_sample_rate_is_refused(tmp_path, rate, problem):
    path = tmp_path / "rate.wav"
    soundfile.write(path, tone(5.0), SAMPLE_RATE)
    data = bytearray(path.read_bytes())
    place = data.index(b"fmt ") + 12
    data[place : place + 4] = rate.to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(MediaError, match=problem):
        read_recording(path)
