"""The systems of a benchmark's folder: generated here from a request, or made elsewhere.

FOLDER/manifest.json              which benchmark it is
FOLDER/inputs/CLIP.png            the portraits
FOLDER/systems/NAME/runs/CLIP-…/   runs of a system that generates here, by what they are made from
FOLDER/systems/NAME/scores/       a file for each clip
FOLDER/table.*
"""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from talkinghead_lab.errors import InvalidRequest, MediaError, OutputError, TalkingHeadError
from talkinghead_lab.evaluation.manifest import VIDEO_SUFFIXES, Clip, Manifest, reference_picture
from talkinghead_lab.evaluation.scoring import Score, bound_tasks, read_json, score_tasks, write_json
from talkinghead_lab.foundation.digests import combined
from talkinghead_lab.foundation.files import atomic_path, locked, output_errors
from talkinghead_lab.media.reference import DrivingVideo
from talkinghead_lab.media.video import write_video
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.runs.folder import RECORD, read_record
from talkinghead_lab.runs.record import video_of
from talkinghead_lab.sweeps.definition import Cell
from talkinghead_lab.workers.ray_cluster import run_on_ray
from talkinghead_lab.workers.this_machine import ThisMachine
from talkinghead_lab.workers.worker import Job, Task

REENCODED = "-reencoded"
REAL, WRONG = "real", "real-wrong-recordings"  # the bounds: what any table has


class Benchmark:
    """A folder of scores, which belongs to one manifest.

    Args:
        manifest: the clips.
        folder: of the benchmark; it need not exist.
        show_progress: draw progress bars.
        workers: processes that generate and score. 0: one per GPU, or this process if there is no GPU.
        ray_address: generate and score on this Ray cluster instead; see `ray_cluster.run_on_ray`. All its
            machines have the folder and the clips at the same place.

    Raises:
        OutputError: the folder belongs to another manifest, or cannot be written.
        MediaError: a clip is missing or differs from the manifest.
    """

    def __init__(
        self,
        manifest: Manifest,
        folder: Path,
        show_progress: bool = True,
        workers: int = 0,
        ray_address: str | None = None,
    ) -> None:
        self.manifest, self.folder, self.show_progress = manifest, folder, show_progress
        self.workers, self.ray_address = workers, ray_address
        manifest.check()
        with output_errors("the folder of the benchmark cannot be created", folder):
            (folder / "inputs").mkdir(parents=True, exist_ok=True)
        facts = {"name": manifest.name, "clips": _digest(manifest)}
        stored = folder / "manifest.json"
        if not stored.is_file():
            write_json(stored, facts)
        elif read_json(stored) != facts:
            raise OutputError(
                "the folder holds scores of another manifest",
                received=f"{folder} with {read_json(stored).get('name')!r}, and {manifest.name!r}",
                remedy="Choose another folder: values of different clips do not belong into one table.",
            )

    def score(self, name: str, videos: Path) -> list[Score]:
        """Score videos made elsewhere, which are named after the clips, and the bounds.

        Raises:
            InvalidRequest: `name` is not a file name, or that of a bound.
            MediaError: the folder has a video of no clip, or two of one.
        """
        files = _videos_in(videos)
        if not files.keys() & {clip.id for clip in self.manifest.clips}:
            raise MediaError(
                "no video in the folder has a clip's name",
                received=f"{len(files)} videos in {videos}",
                allowed=f"names such as {self.manifest.clips[0].id}.mp4",
            )
        return self._scored(name, lambda clip: files.get(clip.id, videos / f"{clip.id}.mp4"))

    def codec_check(self, name: str, videos: Path) -> list[Score]:
        """Score videos as `score` does, after encoding each once more, as the system NAME-reencoded.

        Compared with the system NAME, it says how far an encoding moves each measure.

        Raises:
            InvalidRequest, MediaError: as for `score`.
        """
        name = f"{name}{REENCODED}"
        copies = self._system(name) / "videos"
        copies.mkdir(exist_ok=True)
        sources = _videos_in(videos)
        for clip in tqdm(self.manifest.clips, desc="re-encode", unit="clip", disable=not self.show_progress):
            copy = copies / f"{clip.id}.mp4"
            copy.unlink(missing_ok=True)
            with suppress(TalkingHeadError):  # a clip without a copy counts as failed
                if clip.id in sources:
                    _encode_again(sources[clip.id], copy, clip.frames)
        return self.score(name, copies)

    def generate(self, name: str, fields: Mapping[str, Any]) -> list[Score]:
        """Generate the videos of a request and score them, and the bounds; what is finished is not repeated.

        Args:
            name: of the system.
            fields: of the request; portrait, recording and length come from the clips.

        Raises:
            InvalidRequest: a field is not valid, or `name` as for `score`.
        """
        folder = self._system(name)
        jobs = {clip.id: self._job(clip, folder, fields) for clip in self.manifest.clips}
        waiting = [job for job in jobs.values() if not (job.run_dir / RECORD).is_file()]
        with locked(folder):
            self._work(waiting, f"generate {name}", "run")

        def video(clip: Clip) -> Path:
            job = jobs[clip.id]
            if not (job.run_dir / RECORD).is_file():
                raise MediaError(job.reason if job.failure.is_file() else "the run is unfinished")
            return video_of(job.run_dir, read_record(job.run_dir))

        return self._scored(name, video)

    def _job(self, clip: Clip, folder: Path, fields: Mapping[str, Any]) -> Job:
        portrait = self.folder / "inputs" / f"{clip.id}.png"
        if not portrait.is_file():
            with atomic_path(portrait, overwrite=True) as temporary:
                reference_picture(clip).save(temporary, "PNG")
        given = {
            "image_path": str(portrait.resolve()),
            "audio_path": str(clip.video),
            "audio_start": clip.start,
            "max_frames": clip.frames,
        }
        cell = Cell(GenerationParams(**{**fields, **given}), {})
        return Job(cell.params, folder / "runs" / f"{clip.id}-{cell.key()}")

    def _scored(self, name: str, video: Callable[[Clip], Path]) -> list[Score]:
        folder = self._system(name) / "scores"
        tasks = score_tasks(folder, self.manifest, video)
        real, wrong = (self._system(bound, bound=True) / "scores" for bound in (REAL, WRONG))
        tasks += bound_tasks(real, wrong, self.manifest)
        self._work([task for task in tasks if not task.is_done], f"score {name}", "video")
        return [stored_score(folder, clip.id) for clip in self.manifest.clips]

    def _work(self, tasks: Sequence[Task], description: str, unit: str) -> None:
        """Let the workers do tasks; an interrupt leaves what is finished."""
        if not tasks:
            return
        with tqdm(total=len(tasks), desc=description, unit=unit, disable=not self.show_progress) as bar:
            if self.ray_address:
                run_on_ray(tasks, self.ray_address, bar.update)
                return
            machine = ThisMachine(self.workers, len(tasks))
            try:
                machine.run(tasks, bar.update)
            finally:
                machine.end()

    def _system(self, name: str, bound: bool = False) -> Path:
        if not bound:
            check_names([name])
        folder = self.folder / "systems" / name
        with output_errors("the folder of the system cannot be created", folder):
            folder.mkdir(parents=True, exist_ok=True)
        return folder


def check_names(names: Sequence[str]) -> None:
    """Check the names of systems before any of them is generated.

    Raises:
        InvalidRequest: one is no file name, or that of a bound, or two are equal.
    """
    for number, name in enumerate(names):
        if not re.fullmatch(r"[\w.-]+", name) or name in (REAL, WRONG, ".", ".."):
            raise InvalidRequest(
                "not a name for a system",
                received=name,
                allowed=f"letters, digits, dot, dash and underscore; not {REAL} or {WRONG}",
            )
        if name in names[:number]:
            raise InvalidRequest(
                "two systems have one name",
                received=name,
                remedy="A system is named after its parameter file: give one of the files another name.",
            )


def _videos_in(folder: Path) -> dict[str, Path]:
    """The videos in a folder, by the name of their clip.

    Raises:
        MediaError: two of them have one name, and which one counts is not known.
    """
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    found: dict[str, Path] = {}
    for path in files:
        if path.suffix.lower() not in VIDEO_SUFFIXES:
            continue
        if path.stem in found:
            raise MediaError(
                "two videos are of one clip",
                received=f"{found[path.stem].name} and {path.name} in {folder}",
                remedy="Keep one of them in the folder.",
            )
        found[path.stem] = path
    return found


def _encode_again(source: Path, copy: Path, frames: int) -> None:
    """Write a video's frames as this package encodes its own: H.264 at CRF 17, 25 frames per second."""
    video = DrivingVideo(source)
    sizes = [picture.size for picture in video.frames(0.0, frames)]
    if not sizes or any(side % 2 for side in sizes[0]):
        raise MediaError("H.264 takes frames of even size", received=f"{source}: {sizes[:1]}")
    pixels = (np.array(picture)[None] for picture in video.frames(0.0, frames))
    write_video(copy, pixels, None, len(sizes), {})


def stored_scores(folder: Path) -> dict[str, list[Score]]:
    """The scores of every system in a benchmark's folder, by name; bounds first.

    Raises:
        OutputError: there are none.
    """
    names = [path.parent.name for path in (folder / "systems").glob("*/scores")]
    if not names:
        raise OutputError(
            "the folder has no scores", received=str(folder), remedy="Run or score a system first."
        )
    ordered = sorted(names, key=lambda name: (name not in (REAL, WRONG), name != REAL, name))
    return {
        name: [
            stored_score(path.parent, path.stem)
            for path in sorted((folder / "systems" / name / "scores").glob("[!.]*.json"))  # but partial ones
        ]
        for name in ordered
    }


@dataclass(frozen=True)
class ShownVideo:
    """The span of a file that was scored: `frames` pictures, 25 per second, from `start` on, in seconds."""

    video: Path
    start: float
    frames: int


def shown_video(folder: Path, system: str, clip: str) -> ShownVideo | None:
    """Which video a system's score of a clip is of; None: it had none, or it is no longer there.

    Args:
        folder: of the benchmark.
        system, clip: their names.

    Raises:
        OutputError: the score is missing or damaged.
    """
    shown = read_json(folder / "systems" / system / "scores" / f"{clip}.json").get("shown")
    if shown is None or not Path(shown["video"]).is_file():
        return None
    return ShownVideo(**shown | {"video": Path(shown["video"])})


def benchmark_name(folder: Path) -> str:
    """Name of the manifest that a benchmark's folder belongs to.

    Raises:
        OutputError: the folder is not one of a benchmark.
    """
    return str(read_json(folder / "manifest.json")["name"])


def stored_score(folder: Path, clip: str) -> Score:
    """The score of a clip in the folder of a system's scores.

    Raises:
        OutputError: it is missing or damaged.
    """
    return Score.from_json(read_json(folder / f"{clip}.json")["score"])


def _digest(manifest: Manifest) -> str:
    """Of what the clips are, wherever their files lie."""
    clips = [clip.model_dump(mode="json", exclude={"video", "truth"}) for clip in manifest.clips]
    return combined([manifest.cartoon, clips])
