"""Drawn clips, and copies of them with one planted fault each.

`python -m tests.evaluation.faults FOLDER` prints which measure finds which fault.
"""

import json
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter

from talkinghead_lab.evaluation.manifest import Manifest, from_folder
from talkinghead_lab.evaluation.systems import Benchmark
from talkinghead_lab.evaluation.table import Row, benchmark_table
from talkinghead_lab.media.video import write_video
from talkinghead_lab.training.avatar import Motion, render
from talkinghead_lab.training.samples import presenter
from talkinghead_lab.training.train_vae import to_bytes

LATE = 3  # frames, 120 ms
SIZE = 96  # quick to draw, and enough for the face reader
Drawn = np.ndarray


def motion(seed: int, frames: int) -> Motion:
    """A head that sways, from any moment of its sway on, and a mouth that opens and shuts at random."""
    made = Motion.still(frames)
    rng, time = np.random.default_rng(seed), np.arange(frames) / 25
    made.pose[:, 0] = torch.from_numpy(4 * np.sin(2 * np.pi * (0.5 * time + rng.random())))
    corners = rng.uniform(0, 1, frames // 3 + 2) * (rng.random(frames // 3 + 2) < 0.7)
    made.mouth[:, 0] = torch.from_numpy(np.interp(np.arange(frames) / 3, np.arange(len(corners)), corners))
    made.mouth[:, 1] = 0.3
    return made


@cache  # drawing takes most of the time
def drawn_early(number: int, seed: int, frames: int) -> Drawn:
    """Frames uint8 [LATE + F, H, W, 3] of a presenter whose motion begins before the clip."""
    pixels = to_bytes(render(presenter(number), motion(seed, LATE + frames), SIZE))
    return pixels.permute(0, 2, 3, 1).contiguous().numpy()


def drawn(number: int, seed: int, frames: int) -> Drawn:
    """The frames of a clip, uint8 [F, H, W, 3]."""
    return drawn_early(number, seed, frames)[LATE:]


def late(number: int, frames: int) -> Drawn:
    """Lips 120 ms behind the sound."""
    return drawn_early(number, number, frames)[:frames]


def other_person(number: int, frames: int) -> Drawn:
    """The right motion by another presenter."""
    return drawn(number + 1, number, frames)


def blurred(number: int, frames: int) -> Drawn:
    """Out of focus."""
    pictures = map(Image.fromarray, drawn(number, number, frames))
    return np.stack([np.asarray(picture.filter(ImageFilter.GaussianBlur(1))) for picture in pictures])


def frozen(number: int, frames: int) -> Drawn:
    """The first frame throughout."""
    return drawn(number, number, frames)[:1].repeat(frames, 0)


def other_lips(number: int, frames: int) -> Drawn:
    """The mouth of another clip."""
    return drawn(number, number + 1, frames)


FAULTS: dict[str, Callable[[int, int], Drawn]] = {
    fault.__name__: fault for fault in (late, other_person, blurred, frozen, other_lips)
}


def write(path: Path, frames: Drawn, opening: np.ndarray | None = None) -> None:
    """A clip whose sound is as loud as the mouth is open; with the truth beside it."""
    sound = None
    if opening is not None:
        loud = np.repeat(opening, 48_000 // 25)
        sound = (0.3 * loud * np.random.default_rng(0).normal(size=len(loud))).astype(np.float32)[None]
        path.with_suffix(".truth.json").write_text(json.dumps(opening.tolist()))
    write_video(path, [frames], sound, len(frames), {})


def clips(folder: Path, count: int, frames: int) -> Manifest:
    """A manifest of `count` clips of as many presenters."""
    folder.mkdir(parents=True)
    for number in range(count):
        opening = motion(number, LATE + frames).mouth[LATE:, 0].double().numpy()
        write(folder / f"clip{number}.mp4", drawn(number, number, frames), opening)
    found = from_folder(folder, "faults", frames / 25, identity="(.+)", cartoon=True)
    found.write(folder / "clips.yaml")
    return Manifest.from_yaml(folder / "clips.yaml")


def scored(folder: Path, manifest: Manifest, faults: tuple[str, ...], progress: bool = False) -> list[Row]:
    """The table of copies without a fault and of copies with one each; the former are the base."""
    benchmark = Benchmark(manifest, folder / "out", progress)
    benchmark.score("a-copy", folder / "clips")
    for fault in faults:
        videos = folder / fault
        videos.mkdir()
        for clip in manifest.clips:
            frames = FAULTS[fault](int(clip.id.removeprefix("clip")), clip.frames)
            write(videos / f"{clip.id}.mp4", frames)
        benchmark.score(fault, videos)
    return benchmark_table(folder / "out", "a-copy")


def found(rows: list[Row], system: str) -> set[str]:
    """Measures by which a system differs from the copies, for certain."""
    return {row.measure for row in rows if row.system == system and row.p is not None and row.p < 0.05}


def moved(rows: list[Row], fault: str, measure: str) -> str:
    """How far a fault moves a measure from its value of the copies, marked if for certain.

    The distance of copies is 0, so a distance is its own difference.
    """
    of = {row.system: row for row in rows if row.measure == measure and row.rule == "excluded"}
    if fault not in of or of[fault].why_not:
        return "not taken"
    row = of[fault]
    if row.difference is None:
        certain = row.interval.low is not None and row.interval.low > 0
        return f"{row.interval.value:.3g}{'*' if certain else ''}".replace("-", "−")
    return f"{row.difference.value:+.3g}{'*' if measure in found(rows, fault) else ''}".replace("-", "−")


def main() -> None:
    """Print the matrix of 24 clips of 1.6 seconds as Markdown."""
    folder = Path(sys.argv[1])
    rows = scored(folder, clips(folder / "clips", 24, 40), tuple(FAULTS), progress=True)
    # Fréchet distances are above 0 by their bias, so their intervals prove nothing.
    biased = ("drawn_fid", "drawn_fvd")
    taken = [row.measure for row in rows if row.why_not is None and row.measure not in biased]
    measures = list(dict.fromkeys(taken))
    print("| fault |", " | ".join(measures), "|")
    print("| --- " * (len(measures) + 1) + "|")
    for fault in FAULTS:
        print(f"| {fault} |", " | ".join(moved(rows, fault, measure) for measure in measures), "|")


if __name__ == "__main__":
    main()
