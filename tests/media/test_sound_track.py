"""Timestamps, parameters that change inside a file, and the choice of a track."""

import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from av.stream import Disposition

from talkinghead_lab.errors import MediaError
from talkinghead_lab.media.audio import SAMPLE_RATE, SOUNDTRACK_RATE, read_recording, read_soundtrack
from talkinghead_lab.media.packets import demux
from talkinghead_lab.media.resampled_track import MonoTrack, ResampledTrack
from talkinghead_lab.media.video import decode_once

RATE = SOUNDTRACK_RATE
LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}
LANGUAGES = [("eng", "Original"), ("deu", "Dubbed"), ("fra", "")]
CODECS = [
    ("a.m4a", "aac"),
    ("a.mka", "aac"),
    ("a.mka", "libopus"),
    ("a.webm", "libopus"),
    ("a.mka", "flac"),
]


def bursts(seconds, rate=RATE, seed=0):
    """Noise whose level changes every 50 ms, so that any shift shows."""
    generator = np.random.default_rng(seed)
    levels = np.repeat(generator.uniform(0.02, 0.3, size=round(seconds * 20)), rate // 20)
    return (levels * generator.normal(size=len(levels))).clip(-0.9, 0.9).astype(np.float32)


def written(path, tracks, codec="aac", rate=RATE, edit=None, picture=False, flags=None):
    """Write sound tracks [channels, samples].

    Args:
        edit: changes (packet, its seconds), and drops it by returning False.
        picture: adds a second of video that starts at 0.
        flags: the disposition of each track; None: as the container has it.
    """
    with av.open(str(path), "w") as container:
        if picture:
            video = container.add_stream("mpeg4", rate=25)
            video.width = video.height = 32
            video.pix_fmt = "yuv420p"
        sounds = [container.add_stream(codec, rate=rate, layout=LAYOUTS[len(wave)]) for wave in tracks]
        if codec == "wmav2":
            sounds[0].bit_rate = 128_000  # it has no default
        for number, sound in enumerate(sounds):
            sound.metadata["language"], sound.metadata["title"] = LANGUAGES[number]
            if flags is not None:
                sound.disposition = flags[number]
        if picture:
            for number in range(25):
                frame = av.VideoFrame(32, 32, "yuv420p")
                frame.pts, frame.time_base = number, Fraction(1, 25)
                container.mux(video.encode(frame))
            container.mux(video.encode(None))
        for sound, wave in zip(sounds, tracks, strict=True):
            for packet in [*sound.encode(sound_frame(wave, sound, rate)), *sound.encode(None)]:
                if edit is None or edit(packet, float(packet.pts * packet.time_base)) is not False:
                    container.mux(packet)
    return path


def sound_frame(wave, stream, rate):
    samples = np.ascontiguousarray(wave.T.reshape(1, -1) if stream.format.is_packed else wave)
    name = stream.format.name
    if name[:3] in ("s16", "s32"):
        samples = (samples * (2.0 ** (int(name[1:3]) - 1) - 1)).astype(f"int{name[1:3]}")
    frame = av.AudioFrame.from_ndarray(samples, name, stream.layout.name)
    frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
    return frame


def shift(packet, seconds):
    packet.pts += round(seconds / packet.time_base)
    packet.dts = packet.pts


def lag(heard, truth):
    """Samples by which `heard` is late."""
    size = 2 * max(len(heard), len(truth))
    spectrum = np.fft.rfft(heard, size) * np.conj(np.fft.rfft(truth, size))
    best = int(np.fft.irfft(spectrum, size).argmax())
    return best - size if best > size // 2 else best


@pytest.mark.parametrize(("name", "codec"), CODECS)
@pytest.mark.parametrize("length", [0.3, 1.5])
def test_a_gap_becomes_silence(tmp_path, name, codec, length):
    wave, end = bursts(5.0), 1.0 + length
    whole = read_soundtrack(written(tmp_path / f"whole-{name}", [wave[None]], codec))[0]
    path = written(tmp_path / name, [wave[None]], codec, edit=lambda p, t: not 1.0 <= t < end)
    heard, speech = read_soundtrack(path)[0], read_recording(path).speech
    assert len(heard) == pytest.approx(len(whole), abs=50)
    assert len(speech) == -(-len(heard) // 3)
    after = slice(round((end + 0.15) * RATE), round(4.9 * RATE))
    assert abs(lag(heard[after], whole[after])) <= 48  # containers round to a millisecond
    assert lag(heard[:RATE], whole[:RATE]) == 0
    silent = heard[round(1.1 * RATE) : round((end - 0.05) * RATE)]
    assert np.abs(silent).max() < 1e-3


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "aac"), ("a.mkv", "libopus"), ("a.mkv", "flac")])
def test_sound_that_starts_after_the_picture_stays_late(tmp_path, name, codec):
    wave = bursts(2.0)
    on_time = read_soundtrack(written(tmp_path / f"b-{name}", [wave[None]], codec, picture=True))[0]
    path = written(tmp_path / name, [wave[None]], codec, edit=lambda p, t: shift(p, 0.5), picture=True)
    late = read_soundtrack(path)[0]
    assert lag(late, on_time) == pytest.approx(RATE // 2, abs=1100)  # the encoder's delay may be kept
    assert np.abs(late[: round(0.45 * RATE)]).max() < 1e-3
    assert np.array_equal(decode_once(path, lambda frame: None)[0], late)


def test_sound_alone_starts_at_once(tmp_path):
    """As FFmpeg and players have it: time starts with the first stream."""
    wave = bursts(1.0)[None]
    path = written(tmp_path / "late.mka", [wave], "flac", edit=lambda p, t: shift(p, 0.5))
    assert read_soundtrack(path).shape == (1, RATE)


@pytest.mark.parametrize("jitter", [0.001, 0.03])
def test_jitter_of_timestamps_changes_nothing(tmp_path, jitter):
    wave, random = bursts(3.0)[None], np.random.default_rng(1)
    steady = read_soundtrack(written(tmp_path / "steady.mka", [wave], "flac"))
    path = tmp_path / "a.mka"
    written(path, [wave], "flac", edit=lambda p, t: shift(p, random.uniform(0, jitter)))
    assert np.array_equal(read_soundtrack(path), steady)


def test_one_wrong_timestamp_changes_nothing(tmp_path):
    def edit(packet, time):
        if 0.5 < time < 0.6:
            packet.pts += round(3600 / packet.time_base)

    path = written(tmp_path / "a.mka", [bursts(3.0)[None]], "flac", edit=edit)
    with av.open(str(path)) as container:
        assert any(packet.pts and packet.pts > 3_600_000 for packet in container.demux())
    assert read_soundtrack(path).shape == (1, 3 * RATE)


@pytest.mark.parametrize("hours", [3, 100])
def test_a_gap_of_hours_is_refused(tmp_path, hours):
    path = tmp_path / "a.mka"
    written(path, [bursts(1.0)[None]], "flac", edit=lambda p, t: shift(p, hours * 3600 * (t > 0.5)))
    with pytest.raises(MediaError, match=rf"too long: received .*a\.mka, {hours * 3600}\.\d+ s by its"):
        read_recording(path)


def test_timestamps_that_fall_together_cut_nothing(tmp_path):
    """As where a header lies about the time scale."""

    def edit(packet, time):
        packet.pts = packet.dts = packet.pts // 50

    path = written(tmp_path / "a.mka", [bursts(3.0)[None]], "flac", edit=edit)
    assert read_soundtrack(path).shape == (1, 3 * RATE)


def test_skipped_packets_keep_their_duration(tmp_path):
    wave = bursts(3.0)[None]
    whole = read_soundtrack(written(tmp_path / "whole.mka", [wave], "mp3"))[0]
    content = (tmp_path / "whole.mka").read_bytes()
    with av.open(str(tmp_path / "whole.mka")) as container:
        packets = [bytes(packet) for packet in container.demux() if packet.size]
    for packet in packets[40:43]:
        content = content.replace(packet, bytes(len(packet)))
    (tmp_path / "a.mka").write_bytes(content)
    heard = read_soundtrack(tmp_path / "a.mka")[0]
    assert abs(len(heard) - len(whole)) <= 48
    assert abs(lag(heard[2 * RATE :], whole[2 * RATE :])) <= 48


def joined(path, parts):
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def mp3(path, wave, rate):
    with av.open(str(path), "w", options={"write_xing": "0", "id3v2_version": "0"}) as container:
        sound = container.add_stream("mp3", rate=rate, layout=LAYOUTS[len(wave)])
        container.mux([*sound.encode(sound_frame(wave, sound, rate)), *sound.encode(None)])
    return path


def test_the_sample_rate_may_change_inside_a_file(tmp_path):
    wave = bursts(3.0, 44100)
    parts = [
        mp3(tmp_path / "1.mp3", wave[None, :44100], 44100),
        mp3(tmp_path / "2.mp3", wave[None, 44100::2], 22050),
    ]
    recording = read_recording(joined(tmp_path / "a.mp3", parts))
    assert len(recording.speech) / SAMPLE_RATE == pytest.approx(3.12, abs=0.02)
    second = read_soundtrack(parts[1])[0]
    heard = recording.soundtrack[0, -len(second) :]
    assert abs(lag(heard[4800:-4800], second[4800:-4800])) < 0.02 * RATE
    assert np.corrcoef(heard[9600:-9600], second[9600:-9600])[0, 1] > 0.9


@pytest.mark.parametrize("rate", [22050, 32000, 48000])
def test_counted_timestamps_make_no_gaps(tmp_path, rate):
    """FFmpeg counts the frames of ADTS at the first sample rate."""
    tone = [
        0.25 * np.sin(2 * np.pi * 440 * np.arange(2 * to, dtype=np.float32) / to)[None]
        for to in (44100, rate)
    ]
    parts = [
        written(tmp_path / f"{number}.aac", [wave], rate=to)
        for number, (wave, to) in enumerate(zip(tone, (44100, rate), strict=True))
    ]
    heard = read_soundtrack(joined(tmp_path / "a.aac", parts))[0]
    assert len(heard) == pytest.approx(sum(read_soundtrack(part).shape[1] for part in parts), abs=2)
    loudness = np.sqrt(np.square(heard[: len(heard) // 480 * 480].reshape(-1, 480)).mean(axis=1))
    assert np.count_nonzero(loudness < 0.05) * 480 < 0.15 * RATE, "silence of the encoder's delay only"


@pytest.mark.parametrize("name", ["a.mp3", "a.aac", "a.ts"])
@pytest.mark.parametrize("order", [(1, 2), (2, 1), (1, 2, 1)])
def test_channels_may_change_inside_a_file(tmp_path, name, order):
    wave, parts = bursts(1.0), []
    for number, channels in enumerate(order):
        path = tmp_path / f"{number}-{name}"
        sound = np.stack([wave, 0.5 * wave])[:channels]
        if name == "a.mp3":
            parts.append(mp3(path, sound, RATE))
        else:
            parts.append(written(path, [sound]))
    recording = read_recording(joined(tmp_path / name, parts))
    assert recording.soundtrack.shape[0] == 2
    assert recording.soundtrack.shape[1] / RATE == pytest.approx(len(order), abs=0.15)
    for number, channels in enumerate(order):
        inside = slice(round((number + 0.2) * RATE), round((number + 0.8) * RATE))
        left, right = (np.abs(channel).mean() for channel in recording.soundtrack[:, inside])
        assert right / left == pytest.approx(1.0 if channels == 1 else 0.5, abs=0.05)


@pytest.mark.parametrize(("channels", "rate"), [(2, 44100), (1, 44100), (1, 22050), (2, 22050)])
def test_every_link_of_a_chained_ogg_file_is_read(tmp_path, channels, rate):
    for name, wave, rate_ in (("1", bursts(1.0, 44100), 44100), ("2", bursts(2.0, rate, seed=1), rate)):
        count = 2 if name == "1" else channels
        soundfile.write(tmp_path / f"{name}.ogg", np.stack([wave] * count, axis=1), rate_)
    parts = [tmp_path / "1.ogg", tmp_path / "2.ogg"]
    heard = read_soundtrack(joined(tmp_path / "a.ogg", parts))
    first, second = (read_soundtrack(part) for part in parts)
    assert heard.shape == (2, first.shape[1] + second.shape[1])
    np.testing.assert_allclose(heard[:, :45600], first[:, :45600], atol=1e-5)
    inside = slice(first.shape[1] + 2400, -2400)
    np.testing.assert_allclose(heard[0, inside], second[0, 2400:-2400], atol=1e-5)


@pytest.mark.parametrize("name", ["a.mka", "a.mp4"])
def test_the_default_track_is_read(tmp_path, name):
    waves = [bursts(1.0, seed=seed)[None] for seed in range(3)]
    path = written(tmp_path / name, waves, flags=[Disposition(0), Disposition.default, Disposition(0)])
    chosen = [read_soundtrack(path, track) for track in (None, 1, 2, 3)]
    assert np.array_equal(chosen[0], chosen[2])
    for heard, wave in zip(chosen[1:], waves, strict=True):
        assert np.corrcoef(heard[0, 2048 : RATE // 2], wave[0, 2048 : RATE // 2])[0, 1] > 0.4  # AAC
    with pytest.raises(MediaError, match=r"track 4; allowed: 1 \(eng.*\), 2 \(deu.*\), 3 \(fra"):
        read_recording(path, 4)


def test_without_a_default_track_the_one_with_most_channels_is_read(tmp_path):
    waves = [np.stack([bursts(1.0, seed=seed)] * (1 + seed)) for seed in range(2)]
    assert read_soundtrack(written(tmp_path / "a.ts", waves)).shape[0] == 2
    assert read_soundtrack(written(tmp_path / "b.ts", waves[::-1])).shape[0] == 2


def test_a_start_skips_sound(tmp_path):
    wave = bursts(2.0)
    soundfile.write(tmp_path / "a.wav", wave, RATE, subtype="FLOAT")
    late, whole = (read_recording(tmp_path / "a.wav", start=start) for start in (0.75, 0))
    assert np.array_equal(late.soundtrack, whole.soundtrack[:, 36000:])
    assert len(late.speech) == 20000
    assert np.corrcoef(late.speech, whole.speech[12000:])[0, 1] > 0.9999
    with pytest.raises(MediaError, match=r"beyond the end.*received 2\.5 s, .*a\.wav lasts 2\.00 s"):
        read_recording(tmp_path / "a.wav", start=2.5)
    with pytest.raises(MediaError, match=r"shorter than one video frame.*0\.0100 s after 1\.99 s"):
        read_soundtrack(tmp_path / "a.wav", start=1.99)


@pytest.mark.parametrize("milliseconds", [0.0625, 10, 20, 39])
def test_less_than_a_frame_of_sound_is_refused(tmp_path, milliseconds):
    soundfile.write(tmp_path / "a.wav", np.full(round(16 * milliseconds), 0.1), SAMPLE_RATE)
    for read in (read_recording, read_soundtrack):
        with pytest.raises(MediaError, match=r"shorter than one video frame: .*allowed: 0\.04 s or more"):
            read(tmp_path / "a.wav")


@pytest.mark.parametrize("channels", [2, 3, 6, 8, 24])
@pytest.mark.parametrize("opposite", [1.0, 0.8])
def test_channels_in_opposite_phase_are_heard(tmp_path, channels, opposite):
    voice, noise = bursts(2.0), np.random.default_rng(3).normal(scale=1e-4, size=(channels, 2 * RATE))
    sound = noise.astype(np.float32)
    sound[0], sound[1] = voice, -opposite * voice
    soundfile.write(tmp_path / "a.wav", sound.T, RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "one.wav", voice, RATE, subtype="FLOAT")
    heard, one = (read_recording(tmp_path / name).speech for name in ("a.wav", "one.wav"))
    assert np.corrcoef(heard, one)[0, 1] > 0.999


@pytest.mark.parametrize("common", ["hum", "offset", "sibilants"])
def test_a_voice_in_opposite_phase_is_heard_whatever_is_in_phase(tmp_path, common):
    """Of white noise, the whole band of vowels is in opposite phase."""
    seconds, voice = np.arange(2 * RATE) / RATE, bursts(2.0)
    if common == "sibilants":
        spectrum = np.fft.rfft(voice)
        frequencies = np.fft.rfftfreq(len(voice), 1 / RATE)
        vowels = (frequencies > 500) & (frequencies < 1500)
        opposite = 0.99 * np.fft.irfft(np.where(vowels, -spectrum, spectrum))
    else:
        shared = 0.2 if common == "offset" else 0.3 * np.sin(2 * np.pi * 50 * seconds)
        voice, opposite = voice + shared, shared - 0.8 * voice
    sound = np.stack([voice, opposite], axis=1)
    soundfile.write(tmp_path / "a.wav", sound, RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "one.wav", voice, RATE, subtype="FLOAT")
    heard, one = (read_recording(tmp_path / name).speech for name in ("a.wav", "one.wav"))
    assert np.corrcoef(heard, one)[0, 1] > 0.999


@pytest.mark.parametrize(("left", "right"), [(1, 0), (0, 1), (1, 1), (1, 0.1), (1, -0.3)])
def test_channels_that_do_not_cancel_are_averaged(tmp_path, left, right):
    voice = bursts(1.0, SAMPLE_RATE)
    soundfile.write(tmp_path / "a.wav", np.stack([left * voice, right * voice], axis=1), SAMPLE_RATE)
    soundfile.write(tmp_path / "mean.wav", (left + right) / 2 * voice, SAMPLE_RATE, subtype="FLOAT")
    heard, mean = (read_recording(tmp_path / name).speech for name in ("a.wav", "mean.wav"))
    np.testing.assert_allclose(heard, mean, atol=2e-3)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="compares with ffmpeg")
@pytest.mark.parametrize("case", ["late", "gap", "jitter", "both"])
def test_timestamps_are_followed_as_ffmpeg_follows_them(tmp_path, case):
    random = np.random.default_rng(5)

    def edit(packet, time):
        if case in ("gap", "both") and 0.8 <= time < 1.9:
            return False
        late = 0.7 * (case in ("late", "both")) + random.uniform(0, 0.03) * (case == "jitter")
        return shift(packet, late)

    path = written(tmp_path / "a.mkv", [bursts(3.0)[None]], "flac", edit=edit, picture=True)
    command = ["ffmpeg", "-loglevel", "error", "-i", path, "-af", "aresample=async=1:first_pts=0"]
    done = subprocess.run([*command, "-f", "f32le", "-"], capture_output=True, check=True)
    expected, heard = np.frombuffer(done.stdout, np.float32), read_soundtrack(path)[0]
    assert len(heard) == pytest.approx(len(expected), abs=0.005 * RATE)
    for part in (slice(0, round(1.5 * RATE)), slice(2 * RATE, len(expected))):
        assert abs(lag(heard[part], expected[part])) <= 0.005 * RATE


def test_a_wrong_time_scale_cuts_nothing(tmp_path):
    content = bytearray(written(tmp_path / "a.m4a", [bursts(3.0)[None]]).read_bytes())
    whole = read_soundtrack(tmp_path / "a.m4a")
    scale = content.index(b"mdhd") + 4 + 12
    assert int.from_bytes(content[scale : scale + 4], "big") == RATE
    content[scale : scale + 4] = (2**31 - 1).to_bytes(4, "big")
    (tmp_path / "a.m4a").write_bytes(content)
    # The edit list of the encoder's delay, in this scale, is lost with it.
    assert read_soundtrack(tmp_path / "a.m4a").shape[1] == pytest.approx(whole.shape[1], abs=2048)


def test_a_track_without_a_decoder_is_not_chosen(tmp_path):
    waves = [np.stack([bursts(1.0, seed=seed)] * (2 - seed)) for seed in range(2)]
    content = written(tmp_path / "a.mka", waves).read_bytes()
    (tmp_path / "a.mka").write_bytes(content.replace(b"A_AAC", b"A_XYZ", 1))
    assert read_soundtrack(tmp_path / "a.mka").shape[0] == 1
    with pytest.raises(MediaError, match=r"codec is unknown: received .*a\.mka, track 1; allowed: .*AAC"):
        read_soundtrack(tmp_path / "a.mka", 1)


@pytest.mark.parametrize("flag", ["comment", "visual_impaired"])
def test_speech_is_preferred_to_what_goes_with_it(tmp_path, flag):
    waves = [np.stack([bursts(1.0, seed=seed)] * (2 - seed)) for seed in range(2)]
    path = written(tmp_path / "a.mka", waves, flags=[Disposition[flag], Disposition(0)])
    assert np.array_equal(read_soundtrack(path), read_soundtrack(path, 2))


def test_sound_that_the_decoder_drops_at_the_start_is_silence(tmp_path):
    """FFmpeg's WMA decoder drops two frames; the timestamps of the packets say when they were."""
    wave = bursts(2.0)
    heard = read_soundtrack(written(tmp_path / "a.wma", [wave[None]], "wmav2"))[0]
    assert len(heard) > len(wave)
    assert 0 <= lag(heard, wave) <= 0.05 * RATE, "the delay of the encoder"


@pytest.mark.parametrize("size", [5_000, 300_000])
def test_garbage_behind_a_transport_stream_is_skipped(tmp_path, size):
    path = written(tmp_path / "a.ts", [bursts(1.0)[None]])
    whole = read_soundtrack(path)
    path.write_bytes(path.read_bytes() + np.random.default_rng(2).bytes(size))
    assert np.array_equal(read_soundtrack(path), whole)


LAYOUTS_OF_FFMPEG = (
    *("mono", "stereo", "2.1", "3.0", "3.0(back)", "4.0", "quad", "quad(side)", "3.1", "5.0", "5.0(side)"),
    *("4.1", "5.1", "5.1(side)", "6.0", "6.0(front)", "3.1.2", "hexagonal", "6.1", "6.1(back)", "6.1(front)"),
    *("7.0", "7.0(front)", "7.1", "7.1(wide)", "7.1(wide-side)", "5.1.2", "octagonal", "cube", "5.1.4"),
    *("7.1.2", "7.1.4", "7.2.3", "9.1.4", "hexadecagonal", "downmix", "22.2", "ambisonic 1", "ambisonic 2"),
)


@pytest.mark.parametrize("format", ["s16", "s16p", "s32p", "flt", "fltp", "dblp", "u8"])
def test_every_layout_and_sample_type_is_mixed(format):
    for name in LAYOUTS_OF_FFMPEG:
        layout = av.AudioLayout(name)
        packed = np.full((1, 480 * layout.nb_channels), 0.25, np.float32)
        frame = av.AudioFrame.from_ndarray(packed, "flt", name)
        frame.sample_rate = RATE
        (frame,) = av.AudioResampler(format).resample(frame)
        speech, sound = MonoTrack(SAMPLE_RATE), ResampledTrack(RATE)
        for track in (speech, sound):
            track.add(frame, Fraction(0), Path("a.wav"))
        assert speech.wave().shape == (1, 160)
        assert speech.loudest == {}
        mixed = sound.wave()
        assert mixed.shape == (min(2, layout.nb_channels), 480)
        assert np.isfinite(mixed).all() and mixed.max() > 0.1


@pytest.mark.parametrize("channels", range(1, 25))
def test_any_number_of_channels_is_read(tmp_path, channels):
    voice, subtype = bursts(0.5), ("PCM_16", "FLOAT")[channels % 2]
    soundfile.write(tmp_path / "a.wav", np.stack([voice] * channels, axis=1), RATE, subtype=subtype)
    soundfile.write(tmp_path / "one.wav", voice, RATE, subtype="FLOAT")
    many, one = (read_recording(tmp_path / name) for name in ("a.wav", "one.wav"))
    assert many.soundtrack.shape == (min(2, channels), RATE // 2)
    np.testing.assert_allclose(many.speech, one.speech, atol=1e-3)
    if channels < 3 or channels > 8:
        np.testing.assert_allclose(many.soundtrack[0], voice, atol=1e-4)


@pytest.mark.parametrize("name", ["a.aiff", "a.caf"])
def test_a_layout_that_lists_its_channels_is_read(tmp_path, name):
    """PyAV frees such a list once for each frame, which ends the process: hence one of its own."""
    voice = bursts(0.5)
    path = written(tmp_path / name, [np.stack([voice] * 8)], "pcm_s16be")
    assert b"chan" in path.read_bytes().lower()
    script = (
        "import sys, numpy; from talkinghead_lab.media.audio import read_recording;"
        "found = read_recording(sys.argv[1]); numpy.save(sys.argv[2], found.soundtrack)"
    )
    subprocess.run([sys.executable, "-c", script, path, tmp_path / "heard.npy"], check=True, timeout=120)
    heard = np.load(tmp_path / "heard.npy")
    assert heard.shape == (2, RATE // 2)
    assert np.corrcoef(heard[0], voice)[0, 1] > 0.999


def test_streams_that_appear_inside_the_file_do_not_end_reading():
    """PyAV then may fail after the last packet: it looks beyond the end of its list of streams."""

    class Container:
        def demux(self, stream):
            yield from (1, 2)
            raise IndexError

    assert list(demux(Container(), None)) == [1, 2]
