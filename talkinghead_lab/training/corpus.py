"""Spoken monologues with their mouth tracks in one compact file, so that training needs no synthesiser.

The file is safetensors: `audio` holds one Ogg Vorbis stream after the other (uint8, ends in `audio_ends`),
`mouth` the tracks in sixteen bits ([ΣF, 5], ends in `frame_ends`); the metadata lists voice and sentences
of each monologue.
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
    """A few sentences by one voice with pauses between them.

    `wave` is int16 at 16 kHz, [F · 640]; `mouth` [F, 5] is in step with it.
    """

    voice: Voice
    sentences: tuple[str, ...]
    wave: Tensor
    mouth: Tensor

    @property
    def frames(self) -> int:
        return len(self.mouth)


def speak_monologue(lines: list[str], voice: Voice, dice: random.Random) -> Monologue:
    """Say the sentences one after the other, each at about the same level."""
    waves, tracks = [], []
    for line in lines:
        pause = dice.randint(2, 16)
        utterance = speak(line, voice)
        level = max(np.sqrt((utterance.wave**2).mean()), 1e-3)
        waves += [np.zeros(pause * SAMPLES_PER_FRAME, np.float32), utterance.wave * (0.08 / level)]
        tracks += [np.zeros((pause, 5), np.float32), utterance.mouth]
    wave = (np.concatenate(waves).clip(-1, 1) * 32767).astype(np.int16)
    mouth = _join_tracks(np.concatenate(tracks))
    return Monologue(voice, tuple(lines), torch.from_numpy(wave), torch.from_numpy(mouth))


def build_corpus(path: Path, split: str, minutes: float, seed: int = 0, workers: int = 2) -> int:
    """Synthesise `minutes` of speech of a split (`train` or `test`) into the file `path`.

    The splits share no voice and no sentence. Returns the bytes written; about 0.3 MB a minute.

    Raises:
        OutputError: `path` exists already.
        MissingExtra: espeak-ng or flite is not installed.
    """
    if path.exists():
        raise OutputError("the corpus is there already", received=str(path), remedy="Name another file.")
    # A sentence and its pause last about four seconds; what is over is not made.
    count = int(minutes * 60 / (SENTENCES_EACH * 3.2)) + 2
    lines = sentences(split, count * SENTENCES_EACH, seed)
    jobs = [
        (lines[i * SENTENCES_EACH : (i + 1) * SENTENCES_EACH], split, f"{seed}-{i}") for i in range(count)
    ]
    tensors: dict[str, list[Tensor]] = {"audio": [], "mouth": []}
    voices, frames = [], 0
    # A process for each monologue: what espeak-ng said before would change its sound.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with context.Pool(workers, maxtasksperchild=1) as pool:
        for lines_said, voice, audio, mouth in pool.imap(_make_entry, jobs):
            if frames >= minutes * 60 * FRAMES_PER_SECOND:
                break
            frames += len(mouth)
            tensors["audio"].append(torch.frombuffer(bytearray(audio), dtype=torch.uint8))
            tensors["mouth"].append(torch.from_numpy(mouth))
            voices.append({"voice": asdict(voice), "sentences": lines_said})
    return _save(path, tensors, {"split": split, "seed": str(seed), "monologues": json.dumps(voices)})


def load_corpus(path: Path) -> list[Monologue]:
    """Every monologue of a corpus file, decoded."""
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
    dice = random.Random(f"{split}-{seed}")
    voice = sample_voice(split, dice)
    monologue = speak_monologue(lines, voice, dice)
    stream = io.BytesIO()
    soundfile.write(stream, monologue.wave.numpy(), SAMPLE_RATE, format="OGG", subtype="VORBIS")
    return lines, voice, stream.getvalue(), monologue.mouth.half().numpy()


def _join_tracks(mouth: np.ndarray) -> np.ndarray:
    """Ease width, rounding, teeth and tongue over the seams between sentences; a shut mouth stays shut."""
    eased = mouth.copy()
    kernel = np.array([0.25, 0.5, 0.25])
    for channel in range(1, mouth.shape[1]):
        eased[:, channel] = np.convolve(np.pad(mouth[:, channel], 1, mode="edge"), kernel, mode="valid")
    return eased.astype(np.float32)


def _save(path: Path, lists: dict[str, list[Tensor]], metadata: dict[str, str]) -> int:
    tensors = {name: torch.cat(parts).contiguous() for name, parts in lists.items()}
    tensors["audio_ends"] = torch.tensor([len(part) for part in lists["audio"]]).cumsum(0)
    tensors["frame_ends"] = torch.tensor([len(part) for part in lists["mouth"]]).cumsum(0)
    beside = path.with_name(path.name + ".part")
    save_file(tensors, beside, metadata)
    with beside.open("rb") as file:
        os.fsync(file.fileno())
    beside.rename(path)
    return path.stat().st_size
