"""A benchmark that anyone can make: drawn presenters that the bundled model was not trained on."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import soxr
from tqdm.auto import tqdm

from talkinghead_lab.evaluation.manifest import Manifest, from_folder
from talkinghead_lab.foundation.files import atomic_path
from talkinghead_lab.foundation.latent_grid import FRAMES_PER_SECOND
from talkinghead_lab.media.audio import SAMPLE_RATE, SOUNDTRACK_RATE
from talkinghead_lab.media.video import write_video
from talkinghead_lab.training.avatar import render
from talkinghead_lab.training.corpus import build_corpus, load_corpus
from talkinghead_lab.training.dataset import ClipMaker
from talkinghead_lab.training.samples import presenter
from talkinghead_lab.training.train_vae import to_bytes

SIZE = 160  # pixels, the frame size of the bundled model


def draw_clips(
    folder: Path, identities: int, clips_each: int, seconds: float, seed: int, show_progress: bool = True
) -> Manifest:
    """Draw videos of presenters who speak, with the truth of every mouth, and list them.

    Presenters, voices and sentences are those of the test split. Clips that are there already are kept, so
    a larger set can be made from a smaller one.

    Args:
        folder: of the videos.
        identities: number of presenters.
        clips_each: clips of each presenter.
        seconds: length of each clip.
        seed: of sentences, voices and motion.
        show_progress: draw a progress bar.

    Raises:
        MissingExtra: espeak-ng or flite, which speak the sentences, is not installed.
        OutputError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    frames = round(seconds * FRAMES_PER_SECOND)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "corpus.safetensors"
        build_corpus(file, "test", minutes=max(1.0, identities * clips_each * seconds / 60), seed=seed)
        corpus = load_corpus(file)
    for number in tqdm(range(identities), unit="presenter", disable=not show_progress):
        for count in range(clips_each):
            path = folder / f"presenter{number:04}_{count:03}.mp4"
            if not path.exists():
                maker = ClipMaker(
                    corpus, "test", 1_000_000 * seed + 1000 * number + count, non_speech_share=0.0
                )
                _draw(maker, number, frames, path)
    return from_folder(folder, f"drawn-{seed}", seconds, cartoon=True)


def _draw(maker: ClipMaker, number: int, frames: int, path: Path) -> None:
    clip = replace(maker.clip(frames), identity=presenter(number))
    opening = [round(float(value), 3) for value in clip.motion.mouth[:, 0]]
    with atomic_path(path.with_suffix(".truth.json"), overwrite=True) as temporary:
        temporary.write_text(json.dumps(opening) + "\n", "utf-8")
    pixels = to_bytes(render(clip.identity, clip.motion, SIZE)).permute(0, 2, 3, 1).numpy()
    sound = soxr.resample(clip.wave.numpy(), SAMPLE_RATE, SOUNDTRACK_RATE).astype(np.float32)
    write_video(path, [np.ascontiguousarray(pixels)], sound[None], frames, {})
