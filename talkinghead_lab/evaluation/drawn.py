"""A benchmark that anyone can make: drawn presenters that the bundled model was not trained on."""

import json
import logging
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import soxr
from tqdm.auto import tqdm

from talkinghead_lab.errors import OutputError
from talkinghead_lab.evaluation.manifest import Maker, Manifest, from_folder
from talkinghead_lab.foundation.digests import combined
from talkinghead_lab.foundation.files import atomic_path, locked, output_errors
from talkinghead_lab.foundation.latent_grid import FRAMES_PER_SECOND
from talkinghead_lab.foundation.paths import user_cache_folder
from talkinghead_lab.media.audio import SAMPLE_RATE, SOUNDTRACK_RATE
from talkinghead_lab.media.video import write_video
from talkinghead_lab.training.avatar import render
from talkinghead_lab.training.corpus import build_corpus, load_corpus
from talkinghead_lab.training.dataset import ClipMaker
from talkinghead_lab.training.samples import presenter
from talkinghead_lab.training.train_vae import to_bytes

SIZE = 160  # pixels, the frame size of the bundled model
MADE_BY = "maker.json"  # in the folder of drawn clips: what made them

logger = logging.getLogger(__name__)


def open_manifest(
    path: Path, folder: Path | None = None, show_progress: bool = True, small: bool = False
) -> Manifest:
    """Read a manifest; clips that it lets be made are drawn, unless they are there already.

    Args:
        path: YAML file.
        folder: where its clips lie or are drawn; None: as the manifest says, and drawn in the user's cache.
        show_progress: draw a progress bar.
        small: only a few of the clips, see `Manifest.reduced`.

    Raises:
        InvalidRequest: the file or a field is not valid.
        MissingExtra, OutputError: as of `draw_clips`.
    """
    manifest = Manifest.from_yaml(path, folder)
    manifest = manifest.reduced() if small else manifest
    maker = manifest.maker
    if maker is None:
        return manifest
    folder = folder or user_cache_folder() / "benchmarks" / f"drawn-{combined([_seeds(maker)])[:12]}"
    drawn = draw_clips(folder, maker, show_progress).model_copy(update={"name": manifest.name})
    found = clips_digest(drawn)
    if maker.digest and found != maker.digest:
        logger.warning(
            "the clips in %s show what those of %s show, but are not equal to the byte (%s…, not %s…): "
            "another processor, or other versions of espeak-ng, flite, PyTorch or FFmpeg, drew them. Compare "
            "with the author's table only roughly.",
            *(folder, path, found[:12], maker.digest[:12]),
        )
    return drawn


def draw_clips(folder: Path, maker: Maker, show_progress: bool = True) -> Manifest:
    """Draw videos of presenters who speak, with the truth of every mouth, and list them.

    Presenters, voices and sentences are those of the test split. An interrupted call goes on where it was.

    Args:
        folder: of the videos; those of an earlier, equal call are kept.
        maker: how many, how long, and the seed.
        show_progress: draw a progress bar.

    Raises:
        MissingExtra: espeak-ng or flite, which speak the sentences, is not installed.
        OutputError: the folder cannot be written, or holds clips that another maker made.
    """
    with output_errors("the folder of the clips cannot be created", folder):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        _claim(folder, maker)
        paths = {
            (number, count): folder / f"presenter{number:04}_{count:03}.mp4"
            for number in range(maker.identities)
            for count in range(maker.clips_each)
        }
        missing = {place: path for place, path in paths.items() if not path.exists()}
        if missing:
            _draw_all(missing, maker, show_progress)
    return from_folder(folder, f"drawn-{maker.seed}", maker.seconds, cartoon=True)


def clips_digest(manifest: Manifest) -> str:
    """One digest of the ids and contents of all clips."""
    return combined([[clip.id, clip.sha256] for clip in manifest.clips])


def _claim(folder: Path, maker: Maker) -> None:
    """Note in the folder what makes its clips, whose voices depend on the size of the whole set."""
    note = folder / MADE_BY
    text = json.dumps(_seeds(maker)) + "\n"
    if not note.is_file() and not any(folder.glob("*.mp4")):
        with atomic_path(note, overwrite=True) as temporary:
            temporary.write_text(text, "utf-8")
    elif not note.is_file() or note.read_text("utf-8") != text:
        raise OutputError(
            "the folder holds clips that were drawn otherwise, or videos of others",
            received=str(folder),
            remedy="Choose an empty folder.",
        )


def _seeds(maker: Maker) -> dict[str, object]:
    return maker.model_dump(mode="json", exclude={"digest"})


def _draw_all(missing: dict[tuple[int, int], Path], maker: Maker, show_progress: bool) -> None:
    frames = round(maker.seconds * FRAMES_PER_SECOND)
    minutes = maker.identities * maker.clips_each * maker.seconds / 60
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "corpus.safetensors"
        build_corpus(file, "test", minutes=max(1.0, minutes), seed=maker.seed)
        corpus = load_corpus(file)
    bar = tqdm(missing.items(), desc="draw clips", unit="clip", disable=not show_progress)
    for (number, count), path in bar:
        seed = 1_000_000 * maker.seed + 1000 * number + count
        _draw(ClipMaker(corpus, "test", seed, non_speech_share=0.0), number, frames, path)


def _draw(maker: ClipMaker, number: int, frames: int, path: Path) -> None:
    clip = replace(maker.clip(frames), identity=presenter(number))
    opening = [round(float(value), 3) for value in clip.motion.mouth[:, 0]]
    with atomic_path(path.with_suffix(".truth.json"), overwrite=True) as temporary:
        temporary.write_text(json.dumps(opening) + "\n", "utf-8")
    pixels = to_bytes(render(clip.identity, clip.motion, SIZE)).permute(0, 2, 3, 1).numpy()
    sound = soxr.resample(clip.wave.numpy(), SAMPLE_RATE, SOUNDTRACK_RATE).astype(np.float32)
    write_video(path, [np.ascontiguousarray(pixels)], sound[None], frames, {})
