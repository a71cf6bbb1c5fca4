"""Repeats a run and compares: byte-identical, or which chunk and frame differ first, and by how much."""

import itertools
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from talkinghead_lab.errors import MediaError
from talkinghead_lab.foundation import digests
from talkinghead_lab.media import audio, video
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.pipeline.pipeline import Pipeline
from talkinghead_lab.request_text import VIDEO_METADATA_KEY
from talkinghead_lab.runs.folder import read_record
from talkinghead_lab.runs.generate import generate
from talkinghead_lab.runs.record import video_of

Change = tuple[Any, Any]
# The parts of a record that can explain a difference, as they are named before what differs in them.
PARTS = {
    "resolved": "setting, ",
    "kernels": "kernel, ",
    "inputs": "medium, ",
    "weights": "weights, ",
    "environment": "machine, ",
    "loras": "LoRAs",
}
SHOWN_OF_DIGEST = 12  # characters


@dataclass(frozen=True)
class Verification:
    """The result of repeating a run.

    Args:
        run_dir: the run.
        identical: every latent, frame and byte of the video is the same.
        video_intact: the run's video file still has its recorded digest.
        first_chunk: number of the first chunk whose latent or frames differ, from 0.
        first_frame: number of the first decoded frame of the video that differs, from 0.
        psnr: of that frame, in dB.
        worst_psnr: of the frame that differs most, in dB.
        differs_in: what differs where all latents and frames are the same: "sound", or metadata of the file,
            in which every field of the request counts by itself.
        changed: possible causes of a difference, as (then, now): media, weights, settings, machine.
    """

    run_dir: str
    identical: bool
    video_intact: bool
    first_chunk: int | None
    first_frame: int | None
    psnr: float | None
    worst_psnr: float | None
    differs_in: tuple[str, ...]
    changed: dict[str, Change]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def __str__(self) -> str:
        same_frames = self.video_intact and self.first_chunk is self.first_frame is None
        lines = ["identical" if self.identical else "same frames" if same_frames else "different"]
        if self.differs_in:
            lines[0] += f", record differs in {', '.join(self.differs_in)}"
        if not self.video_intact:
            lines.append("the video file has changed since it was recorded")
        if self.first_chunk is not None:
            lines.append(f"first differing chunk: {self.first_chunk}")
        if self.first_frame is not None:
            lines.append(
                f"first differing frame: {self.first_frame}, PSNR {self.psnr:.1f} dB; "
                f"worst frame {self.worst_psnr:.1f} dB"
            )
        for name, (then, now) in self.changed.items():
            part, _, rest = name.partition(".")
            lines.append(f"{PARTS[part]}{rest.replace('_', ' ')}: {_words(then)} then, {_words(now)} now")
        return "\n".join(lines)


def verify(
    run_dir: str | Path, *, pipeline: Pipeline | None = None, show_progress: bool = True
) -> Verification:
    """Repeat a finished run in a temporary folder, without any cache, and compare.

    Args:
        run_dir: the run's folder; nothing in it changes.
        pipeline: networks that are already loaded.
        show_progress: draw a progress bar.

    Raises:
        OutputError: the folder holds no finished run, its record is damaged or its video is gone.
        MediaError, CheckpointError: a file that the run was made from is missing.
    """
    run_dir = Path(run_dir)
    then = read_record(run_dir)
    recorded = video_of(run_dir, then)
    params = GenerationParams(**then["request"])
    with tempfile.TemporaryDirectory(prefix="verify-") as folder:
        again = generate(params, Path(folder) / "run", pipeline=pipeline, show_progress=show_progress)
        now = read_record(again.run_dir)
        frame, psnr, worst = _first_difference(recorded, again.video_path)
        parts = _differing_parts(recorded, again.video_path)
    chunk = _first_differing_chunk(then["chunks"], now["chunks"])
    intact = digests.sha256_of_file(recorded) == then["video_sha256"]
    same_bytes = then["video_sha256"] == now["video_sha256"]
    return Verification(
        run_dir=str(run_dir),
        identical=intact and same_bytes and chunk is None,
        video_intact=intact,
        first_chunk=chunk,
        first_frame=frame,
        psnr=psnr,
        worst_psnr=worst,
        differs_in=parts if intact and chunk is frame is None else (),
        changed=_changes(then, now),
    )


def _first_differing_chunk(then: list[dict[str, Any]], now: list[dict[str, Any]]) -> int | None:
    digests = ("latent_sha256", "frames_sha256")
    nothing: dict[str, Any] = {}
    for number, (before, after) in enumerate(itertools.zip_longest(then, now, fillvalue=nothing)):
        if any(before.get(name) != after.get(name) for name in digests):
            return number
    return None


def _first_difference(then: Path, now: Path) -> tuple[int | None, float | None, float | None]:
    """Find (number of the first differing frame, its PSNR, the lowest PSNR); None where all are equal.

    A frame that only one of the videos has counts as 0 dB; frames that can no longer be read do not count.
    """
    found: dict[int, float] = {}
    with suppress(MediaError):
        pairs = itertools.zip_longest(video.read_frames(then), video.read_frames(now))
        for number, (before, after) in enumerate(pairs):
            if before is None or after is None or before.shape != after.shape:
                found[number] = 0.0
            elif not np.array_equal(before, after):
                error = np.square(before.astype(np.float64) - after).mean()
                found[number] = float(10 * np.log10(255**2 / error))
    first = min(found, default=None)
    return first, found.get(first) if first is not None else None, min(found.values(), default=None)


def _differing_parts(then: Path, now: Path) -> tuple[str, ...]:
    """What differs between two files besides their frames; see `Verification.differs_in`."""
    with suppress(MediaError):
        before, after = _metadata(then), _metadata(now)
        names = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        same_sound = np.array_equal(audio.read_soundtrack(then), audio.read_soundtrack(now))
        return (*names, *(() if same_sound else ("sound",)))
    return ()


def _metadata(path: Path) -> dict[str, Any]:
    """The metadata of a file, with the fields of its request in place of their text."""
    metadata: dict[str, Any] = dict(video.read_metadata(path))
    with suppress(yaml.YAMLError):
        request = yaml.safe_load(metadata.get(VIDEO_METADATA_KEY, ""))
        if isinstance(request, dict):
            del metadata[VIDEO_METADATA_KEY]
            metadata |= {f"request.{name}": value for name, value in request.items()}
    return metadata


def _changes(then: dict[str, Any], now: dict[str, Any]) -> dict[str, Change]:
    """List media, weights, LoRAs, settings, kernels and environment that differ."""
    changes = {}
    for part in ("resolved", "kernels", "inputs", "weights", "environment"):
        before, after = _named(then.get(part, {})), _named(now[part])
        names = before.keys() | after.keys()
        if part not in ("inputs", "weights"):  # earlier versions recorded fewer
            names = before.keys() & after.keys()
        for name in sorted(names):
            if before.get(name) != after.get(name):
                changes[f"{part}.{name}"] = (before.get(name), after.get(name))
    if then["loras"] != now["loras"]:
        changes["loras"] = (then["loras"], now["loras"])
    return changes


def _named(part: dict[str, Any]) -> dict[str, Any]:
    """A part of a record with its optional kernels by name: earlier versions had fewer."""
    own = {name: value for name, value in part.items() if name != "optional"}
    return {**own, **part.get("optional", {})}


def _words(value: object) -> str:
    """A recorded value; of a digest only the beginning."""
    if isinstance(value, list):
        return "; ".join(map(_words, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_words(each)}" for name, each in value.items())
    if isinstance(value, str) and len(value) == 64:
        return f"{value[:SHOWN_OF_DIGEST]}…"
    return "none" if value is None else str(value)
