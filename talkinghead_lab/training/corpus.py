"""Monologues with mouth tracks in one compact file, so that training needs no synthesiser.

The safetensors file holds Ogg Vorbis streams back to back in `audio` (uint8, ends in `audio_ends`), and mouth
tracks in `mouth` (float16 [ΣF, 5], ends in `frame_ends`). The metadata lists their voices and sentences.
"""

import io
import json
import multiprocessing
import os
import random
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from talkinghead_lab.errors import OutputError
from talkinghead_lab.training.sentences import sentences
from talkinghead_lab.training.speech import SAMPLE_RATE, SAMPLES_PER_FRAME, Voice, sample_voice, speak
from talkinghead_lab.training.visemes import FRAMES_PER_SECOND

SENTENCES_EACH = 5


@dataclass(frozen=True)
class Monologue:
    """A few sentences by one voice, separated by pauses.

    `wave` [F · 640] is int16 at 16 kHz; `mouth` [F, 5] is aligned with it.
    """

    voice: Voice
    sentences: tuple[str, ...]
    wave: Tensor
    mouth: Tensor

    @property
    def frames(self) -> int:
        """Number of video frames F."""
        return len(self.mouth)


def speak_monologue(lines: list[str], voice: Voice, rng: random.Random) -> Monologue:
    """Speak the sentences in order, each at about the same level."""
    waves, tracks = [], []
    for line in lines:
        pause = rng.randint(2, 16)
        utterance = speak(line, voice)
        level = max(np.sqrt((utterance.wave**2).mean()), 1e-3)
        waves += [np.zeros(pause * SAMPLES_PER_FRAME, np.float32), utterance.wave * (0.08 / level)]
        tracks += [np.zeros((pause, 5), np.float32), utterance.mouth]
    wave = (np.concatenate(waves).clip(-1, 1) * 32767).astype(np.int16)
    mouth = _join_tracks(np.concatenate(tracks))
    return Monologue(voice, tuple(lines), torch.from_numpy(wave), torch.from_numpy(mouth))


def build_corpus(path: Path, split: str, minutes: float, seed: int = 0, workers: int = 2) -> int:
    """Synthesise `minutes` of speech of a split (`train` or `test`) into the file `path`.

    The splits share no voice and no sentence. Returns the file size in bytes, about 0.3 MB per minute.

    Raises:
        OutputError: `path` exists already.
        MissingExtra: espeak-ng or flite is not installed.
    """
    if path.exists():
        raise OutputError("the corpus file already exists", received=str(path), remedy="Choose another path.")
    # A sentence and its pause last about four seconds; synthesis stops once there is enough speech.
    count = int(minutes * 60 / (SENTENCES_EACH * 3.2)) + 2
    lines = sentences(split, count * SENTENCES_EACH, seed)
    jobs = [
        (lines[i * SENTENCES_EACH : (i + 1) * SENTENCES_EACH], split, f"{seed}-{i}") for i in range(count)
    ]
    tensors: dict[str, list[Tensor]] = {"audio": [], "mouth": []}
    voices, frames = [], 0
    # One process per monologue: the sound of espeak-ng depends on what the process has spoken before.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with context.Pool(workers, maxtasksperchild=1) as pool:
        for spoken, voice, audio, mouth in pool.imap(_make_entry, jobs):
            if frames >= minutes * 60 * FRAMES_PER_SECOND:
                break
            frames += len(mouth)
            tensors["audio"].append(torch.frombuffer(bytearray(audio), dtype=torch.uint8))
            tensors["mouth"].append(torch.from_numpy(mouth))
            voices.append({"voice": asdict(voice), "sentences": spoken})
    return _save(path, tensors, {"split": split, "seed": str(seed), "monologues": json.dumps(voices)})


def load_corpus(path: Path) -> list[Monologue]:
    """Read and decode every monologue of a corpus file."""
    with safe_open(path, "pt") as file:
        entries = json.loads(file.metadata()["monologues"])
        tensors = {name: file.get_tensor(name) for name in ("audio", "audio_ends", "mouth", "frame_ends")}
    streams = tensors["audio"].tensor_split(tensors["audio_ends"][:-1])
    tracks = tensors["mouth"].float().tensor_split(tensors["frame_ends"][:-1])
    monologues = []
    for entry, stream, mouth in zip(entries, streams, tracks, strict=True):
        wave, _ = soundfile.read(io.BytesIO(stream.numpy().tobytes()), dtype="int16")
        voice = Voice(**entry["voice"])
        monologues.append(Monologue(voice, tuple(entry["sentences"]), torch.from_numpy(wave), mouth))
    return monologues


def _make_entry(job: tuple[list[str], str, str]) -> tuple[list[str], Voice, bytes, np.ndarray]:
    lines, split, seed = job
    rng = random.Random(f"{split}-{seed}")
    voice = sample_voice(split, rng)
    monologue = speak_monologue(lines, voice, rng)
    stream = io.BytesIO()
    soundfile.write(stream, monologue.wave.numpy(), SAMPLE_RATE, format="OGG", subtype="VORBIS")
    return lines, voice, stream.getvalue(), monologue.mouth.half().numpy()


def _join_tracks(mouth: np.ndarray) -> np.ndarray:
    """Smooth width, rounding, teeth and tongue between sentences; the opening stays as it is."""
    eased = mouth.copy()
    kernel = np.array([0.25, 0.5, 0.25])
    for channel in range(1, mouth.shape[1]):
        eased[:, channel] = np.convolve(np.pad(mouth[:, channel], 1, mode="edge"), kernel, mode="valid")
    return eased.astype(np.float32)


def _save(path: Path, lists: dict[str, list[Tensor]], metadata: dict[str, str]) -> int:
    tensors = {name: torch.cat(parts).contiguous() for name, parts in lists.items()}
    tensors["audio_ends"] = torch.tensor([len(part) for part in lists["audio"]]).cumsum(0)
    tensors["frame_ends"] = torch.tensor([len(part) for part in lists["mouth"]]).cumsum(0)
    unfinished = path.with_name(path.name + ".part")
    save_file(tensors, unfinished, metadata)
    with unfinished.open("rb") as file:
        os.fsync(file.fileno())
    unfinished.rename(path)
    return path.stat().st_size
