"""Speech synthesis by espeak-ng and flite, with the time of every phoneme.

Both are Debian packages (`apt-get install espeak-ng flite`), needed only to make training data. flite prints
the end of each phoneme. espeak-ng is used as a library, because only the library reports phonemes as events.
"""

import ctypes
import functools
import itertools
import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from talkinghead_lab.errors import MissingExtra
from talkinghead_lab.training.visemes import FRAMES_PER_SECOND, Segment, viseme_track

SAMPLE_RATE = 16000
SAMPLES_PER_FRAME = SAMPLE_RATE // FRAMES_PER_SECOND

FLITE_VOICES = {"train": ("slt", "awb", "kal16"), "test": ("rms",)}
ESPEAK_ACCENTS = ("en-us", "en", "en-gb-x-rp", "en-gb-scotland", "en-029", "en-us-nyc")
ESPEAK_VARIANTS = {
    "train": (
        "f1", "f2", "f3", "f5", "m1", "m2", "m3", "m4", "m6", "m7", "m8", "Alex", "Alicia", "Andy",
        "Denis", "Diogo", "Gene", "Jacky", "Lee", "Marco", "Mario", "Mike", "adam", "anika",
        "antonio", "aunty", "benjamin", "boris", "caleb", "david", "ed", "edward", "grandma",
        "grandpa", "iven", "klatt2", "klatt4", "max", "michel", "miguel", "norbert", "pablo",
        "paul", "pedro", "quincy", "rob", "robert", "sandro", "shelby", "steph", "victor", "zac",
    ),
    "test": ("f4", "m5", "Annie", "Michael", "belinda", "travis", "john", "linda"),
}  # fmt: skip


@dataclass(frozen=True)
class Voice:
    """A synthesiser's voice and its settings.

    `engine` is `flite` or `espeak`, `name` one of its voices. `speed` 1 is its default; `pitch` is 0 … 1.
    """

    engine: str
    name: str
    speed: float = 1.0
    pitch: float = 0.5


@dataclass(frozen=True)
class Utterance:
    """A spoken sentence: `wave` [F · 640] float32 at 16 kHz, aligned with `mouth` [F, 5] at 25 fps."""

    sentence: str
    voice: Voice
    wave: np.ndarray
    mouth: np.ndarray


def sample_voice(split: str, rng: random.Random) -> Voice:
    """A random voice of a split; the splits share no voice. A third are flite's, which sound more human."""
    speed, pitch = rng.uniform(0.82, 1.25), rng.uniform(0.15, 0.9)
    if rng.random() < 0.36:
        return Voice("flite", rng.choice(FLITE_VOICES[split]), speed, pitch)
    return Voice("espeak", f"{rng.choice(ESPEAK_ACCENTS)}+{rng.choice(ESPEAK_VARIANTS[split])}", speed, pitch)


def speak(sentence: str, voice: Voice) -> Utterance:
    """Synthesise a sentence.

    Raises:
        MissingExtra: the synthesiser is not installed.
    """
    rate, samples, segments = {"flite": _flite, "espeak": _espeak}[voice.engine](sentence, voice)
    wave = samples.astype(np.float32) / 32768
    if rate != SAMPLE_RATE:
        wave = soxr.resample(wave, rate, SAMPLE_RATE).astype(np.float32)
    frames = -(-len(wave) // SAMPLES_PER_FRAME)
    wave = np.pad(wave, (0, frames * SAMPLES_PER_FRAME - len(wave)))
    return Utterance(sentence, voice, wave, viseme_track(segments, frames, loudness(wave)))


def loudness(wave: np.ndarray) -> np.ndarray:
    """Level [F] of each video frame: 1 at the loud parts of the recording, 0 at 25 dB below."""
    level = np.sqrt((wave.reshape(-1, SAMPLES_PER_FRAME) ** 2).mean(1) + 1e-10)
    decibels = 20 * np.log10(level / max(np.percentile(level, 95), 1e-4))
    smooth = np.convolve(np.pad(decibels, 1, mode="edge"), [0.25, 0.5, 0.25], mode="valid")
    return np.clip(1 + smooth / 25, 0, 1)


def synthesisers() -> list[str]:
    """Names of the installed engines."""
    found = ["flite"] if shutil.which("flite") else []
    try:
        _espeak_library()
    except MissingExtra:
        return found
    return [*found, "espeak"]


_FLITE_PITCH = {"slt": (150, 230), "awb": (95, 160), "kal16": (80, 140), "rms": (80, 140)}  # hertz


def _flite(sentence: str, voice: Voice) -> tuple[int, np.ndarray, list[Segment]]:
    program = shutil.which("flite")
    if program is None:
        raise _missing("flite")
    low, high = _FLITE_PITCH[voice.name]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "speech.wav"
        options = {
            "duration_stretch": 1 / voice.speed,
            "int_f0_target_mean": low + (high - low) * voice.pitch,
        }
        settings = [part for name, value in options.items() for part in ("--setf", f"{name}={value:.3f}")]
        command = [program, "-voice", voice.name, *settings, "-psdur", "-o", str(path), "-t", sentence]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        samples, rate = soundfile.read(path, dtype="int16")
    segments, clock = [], 0.0
    for item in printed.split():
        phoneme, end = item.rsplit(":", 1)
        segments.append(Segment(phoneme, clock, float(end)))
        clock = float(end)
    return rate, samples, segments


class _EventName(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("pointer", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    """`espeak_EVENT` of speak_lib.h."""

    _fields_ = (
        ("type", ctypes.c_int), ("identifier", ctypes.c_uint), ("text_position", ctypes.c_int),
        ("length", ctypes.c_int), ("milliseconds", ctypes.c_int), ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p), ("name", _EventName),
    )  # fmt: skip


_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)
_SYNCHRONOUS, _PHONEME_EVENTS, _UTF8 = 2, 1, 1
_EVENT_END_OF_LIST, _EVENT_PHONEME = 0, 7
_PARAMETER_RATE, _PARAMETER_PITCH = 1, 3


@functools.cache
def _espeak_library() -> tuple[ctypes.CDLL, int]:
    """The espeak-ng library and its sample rate.

    The library keeps the phase of its oscillators between sentences, even when reinitialised. Results are
    reproducible only for the same sentences in the same order in a new process.
    """
    try:
        library = ctypes.CDLL("libespeak-ng.so.1")
    except OSError:
        raise _missing("espeak-ng") from None
    return library, library.espeak_Initialize(_SYNCHRONOUS, 0, None, _PHONEME_EVENTS)


def _espeak(sentence: str, voice: Voice) -> tuple[int, np.ndarray, list[Segment]]:
    library, rate = _espeak_library()
    chunks, marks = _espeak_events(library, sentence.encode(), voice)
    samples = np.concatenate(chunks)
    starts = [sample / rate for _, sample in marks] + [len(samples) / rate]
    names = [name or "_" for name, _ in marks]
    segments = [Segment(*part) for part in zip(names, starts[:-1], starts[1:], strict=True)]
    return rate, samples, [Segment("_", 0.0, starts[0]), *segments]


def _espeak_events(
    library: ctypes.CDLL, text: bytes, voice: Voice
) -> tuple[list[np.ndarray], list[tuple[str, int]]]:
    """Blocks of int16 samples, and the name and first sample of every phoneme."""
    chunks, marks = [], []

    def collect(samples: Any, count: int, events: Any) -> int:
        if count > 0:
            chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        for event in itertools.takewhile(lambda event: event.type != _EVENT_END_OF_LIST, _each(events)):
            if event.type == _EVENT_PHONEME:
                marks.append((event.name.string.decode(), event.sample))
        return 0

    callback = _CALLBACK(collect)
    library.espeak_SetSynthCallback(callback)
    if library.espeak_SetVoiceByName(voice.name.encode()):
        raise ValueError(f"espeak-ng has no voice {voice.name!r}")
    library.espeak_SetParameter(_PARAMETER_RATE, round(155 * voice.speed), 0)
    library.espeak_SetParameter(_PARAMETER_PITCH, round(20 + 60 * voice.pitch), 0)
    library.espeak_Synth(text, len(text) + 1, 0, 0, 0, _UTF8, None, None)
    return chunks, marks


def _each(events: Any) -> Iterator[_Event]:
    """Items of a C array whose length is unknown; the last item marks the end."""
    return (events[index] for index in itertools.count())


def _missing(program: str) -> MissingExtra:
    remedy = f"Install it with `apt-get install {program}`; it is needed only to make training data."
    return MissingExtra(f"{program} is not installed", remedy=remedy)
