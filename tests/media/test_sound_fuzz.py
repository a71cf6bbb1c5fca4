"""Damaged, spliced and lying sound files are read or refused by name, without a crash or a hang.

`SOUND_FUZZ_FILES=10000 python -m pytest tests/media/test_sound_fuzz.py` reads more files than by default.
"""

import json
import os
import select
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

FILES = int(os.environ.get("SOUND_FUZZ_FILES", "150"))
FIRST = int(os.environ.get("SOUND_FUZZ_FIRST", "0"))  # number of the first file, to repeat one
READERS = 2
TIMEOUT = 30  # seconds for a file
SECONDS = 0.7

# Extension, codec, rate, layouts.
ENCODED = [
    ("m4a", "aac", 44100, ("mono", "stereo", "5.1", "7.1")),
    ("m4a", "alac", 48000, ("mono", "stereo", "5.1")),
    ("mp4", "aac", 22050, ("stereo",)),
    ("mov", "pcm_s16be", 48000, ("mono", "7.1")),
    ("aac", "aac", 48000, ("mono", "stereo", "5.1")),
    ("ts", "aac", 44100, ("mono", "stereo")),
    ("ts", "mp2", 48000, ("stereo",)),
    ("mkv", "flac", 48000, ("mono", "5.1", "7.1")),
    ("mka", "aac", 32000, ("stereo",)),
    ("mka", "mp3", 44100, ("mono", "stereo")),
    ("webm", "libopus", 48000, ("mono", "stereo", "5.1")),
    ("ogg", "libopus", 48000, ("mono", "stereo")),
    ("ogg", "flac", 44100, ("stereo",)),
    ("mp3", "mp3", 44100, ("mono", "stereo")),
    ("mp3", "mp3", 16000, ("mono",)),
    ("mp2", "mp2", 32000, ("stereo",)),
    ("avi", "mp3", 44100, ("stereo",)),
    ("avi", "pcm_s16le", 11025, ("mono",)),
    ("flv", "mp3", 44100, ("stereo",)),
    ("wma", "wmav2", 44100, ("stereo",)),
    ("asf", "wmav1", 22050, ("mono",)),
    ("ac3", "ac3", 48000, ("stereo", "5.1")),
    ("eac3", "eac3", 48000, ("5.1",)),
    ("wv", "wavpack", 44100, ("mono", "stereo", "5.1")),
    ("tta", "tta", 44100, ("stereo",)),
    ("caf", "pcm_s24le", 96000, ("stereo",)),
    ("wav", "adpcm_ima_wav", 22050, ("mono", "stereo")),
    ("wav", "adpcm_ms", 44100, ("stereo",)),
    ("wav", "pcm_mulaw", 8000, ("mono",)),
    ("au", "pcm_alaw", 8000, ("mono",)),
    ("w64", "pcm_f32le", 48000, ("stereo",)),
    ("3gp", "aac", 16000, ("mono",)),
]
SAMPLED = [
    ("wav", "PCM_16"),
    ("wav", "FLOAT"),
    ("wav", "PCM_24"),
    ("aiff", "PCM_16"),
    ("flac", "PCM_16"),
    ("ogg", None),
]
NUMBERS = [
    0,
    1,
    2,
    8,
    255,
    256,
    1000,
    8000,
    44100,
    48000,
    192_000,
    2**16 - 1,
    2**24,
    2**31 - 1,
    2**31,
    2**32 - 1,
]


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory):
    """(name, bytes) of sound files of many kinds, with 1 to 24 channels."""
    folder = tmp_path_factory.mktemp("whole")
    for extension, codec, rate, layouts in ENCODED:
        for layout in layouts:
            encode(folder / f"{codec}-{rate}-{layout}.{extension}", codec, rate, layout)
    for number, (extension, subtype) in enumerate(SAMPLED):
        for channels in (1, 2, 3, 5, 8, 9, 12, 17, 24):
            if channels <= (8 if extension in ("flac", "ogg") else 24):
                rate = (8000, 16000, 44100, 48000, 96000)[(number + channels) % 5]
                wave = noise(channels, rate).T
                path = folder / f"{subtype}-{rate}-{channels}.{extension}"
                soundfile.write(path, wave, rate, subtype=subtype)
    return [(path.name, path.read_bytes()) for path in sorted(folder.iterdir())]


def noise(channels, rate):
    return (
        np.random.default_rng(channels)
        .uniform(-0.3, 0.3, (channels, round(SECONDS * rate)))
        .astype("float32")
    )


def encode(path, codec, rate, layout):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        stream.bit_rate = 128_000
        packed = noise(stream.layout.nb_channels, rate).T.reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(packed, "flt", layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        resampler = av.AudioResampler(stream.format.name, layout, rate, frame_size=stream.frame_size or 1024)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))


def damaged(files, number):
    """(name, bytes) of the file with this number."""
    random = np.random.default_rng(number)
    name, content = files[number % len(files)]
    other = files[random.integers(len(files))][1]
    content = bytearray(content)
    damages = [flip_bits, flip_bits, overwrite, truncate, cut, repeat, lie, lie, lie]
    for _ in range(random.integers(1, 4)):
        damages[random.integers(len(damages))](content, random)
    if random.random() < 0.15:
        content += other
    elif random.random() < 0.15:
        content[random.integers(len(content) + 1) :] = other[random.integers(len(other)) :]
    if random.random() < 0.1:
        name = Path(name).stem + Path(files[random.integers(len(files))][0]).suffix
    return f"{number}-{name}", bytes(content)


def place(content, random):
    """A position; more often near the start, where headers are, and near the end, where mp4 has them."""
    size = max(1, len(content))
    near = random.integers(min(size, 600))
    return (near, random.integers(size), size - 1 - near)[random.choice(3, p=(0.5, 0.3, 0.2))]


def flip_bits(content, random):
    for _ in range(random.integers(1, 40)):
        if content:
            content[place(content, random)] ^= 1 << random.integers(8)


def overwrite(content, random):
    start, length = place(content, random), random.integers(1, 400)
    content[start : start + length] = random.bytes(length) if random.random() < 0.5 else bytes(length)


def truncate(content, random):
    del content[random.integers(len(content) + 1) :]


def cut(content, random):
    start = place(content, random)
    del content[start : start + random.integers(1, max(2, len(content) // 3))]


def repeat(content, random):
    start = place(content, random)
    content[start:start] = content[start : start + random.integers(1, 3000)]


def lie(content, random):
    """Replace a number."""
    size = (1, 2, 4, 8)[random.integers(4)]
    value = NUMBERS[random.integers(len(NUMBERS))] % 2 ** (8 * size)
    start = place(content, random)
    content[start : start + size] = value.to_bytes(size, ("little", "big")[random.integers(2)])


class Reader:
    """A process that reads files one after the other, and is started again after a crash or a hang."""

    command = (sys.executable, "-u", "-m", "tests.media.sound_reader")

    def __init__(self):
        self.process = None

    def start(self, path):
        if self.process is None:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        self.process.stdin.write(f"{path}\n".encode())
        self.process.stdin.flush()

    def outcome(self):
        if not select.select([self.process.stdout], [], [], TIMEOUT)[0]:
            self.stop()
            return {"wrong": f"more than {TIMEOUT} s"}
        line = self.process.stdout.readline()
        if line:
            return json.loads(line)
        code = self.process.wait()
        self.process = None
        return {"wrong": f"the process ended with {code}"}

    def stop(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def test_whole_files_are_read(whole_files, tmp_path):
    reader, outcomes = Reader(), {}
    for name, content in whole_files:
        (tmp_path / name).write_bytes(content)
        reader.start(tmp_path / name)
        outcomes[name] = reader.outcome().get("seconds", 0)
    reader.stop()
    assert len(outcomes) > 70
    assert {name: time for name, time in outcomes.items() if abs(time - SECONDS) > 0.1} == {}


@pytest.mark.slow
def test_damaged_files_are_read_or_refused(whole_files, tmp_path):
    readers, wrong, seconds, refused = [Reader() for _ in range(READERS)], {}, [], 0
    readers = readers[: os.cpu_count()]
    numbers = range(FIRST, FIRST + FILES)
    for group in (numbers[i : i + len(readers)] for i in range(0, len(numbers), len(readers))):
        paths = []
        for reader, number in zip(readers, group, strict=False):
            name, content = damaged(whole_files, number)
            paths.append(tmp_path / name)
            paths[-1].write_bytes(content)
            reader.start(paths[-1])
        for reader, path in zip(readers, paths, strict=False):
            outcome = reader.outcome()
            if "wrong" in outcome:
                wrong[path.name] = outcome["wrong"]
            else:
                path.unlink()
                refused += "refused" in outcome
                seconds += [outcome["seconds"]] if "seconds" in outcome else []
    for reader in readers:
        reader.stop()
    assert wrong == {}
    assert refused > 0.05 * FILES
    assert len(seconds) > 0.3 * FILES
