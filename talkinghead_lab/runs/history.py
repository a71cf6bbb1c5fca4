"""Runs that lie on disk: found again, and shown while they grow."""

from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from talkinghead_lab.errors import NoFinishedRun, OutputError, TalkingHeadError
from talkinghead_lab.foundation.paths import local_file, project_folder
from talkinghead_lab.media import video
from talkinghead_lab.media.growing_video import plain_copy
from talkinghead_lab.media.reference import open_reference
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.runs.folder import CHUNK_FILE, CHUNKS, RECORD, REQUEST, check_is_of, read_record
from talkinghead_lab.runs.jobs import GROWING
from talkinghead_lab.runs.result import GenerationResult
from talkinghead_lab.sampling.config import Scale

LARGEST_PREVIEW = 10_000_000  # bytes of a video that is shown while a run is under way


@dataclass(frozen=True)
class PastRun:
    """A run's folder.

    Args:
        folder: of the run.
        params: its request.
        begun: when.
        finished: whether it has a record that can be used.
        problem: why its record cannot be used; empty: it can, or there is none.
    """

    folder: Path
    params: GenerationParams
    begun: datetime
    finished: bool
    problem: str = ""

    @property
    def state(self) -> str:
        """In one word."""
        return "damaged" if self.problem else "finished" if self.finished else "unfinished"

    @property
    def parts(self) -> list[Path]:
        """The finished chunks of an unfinished run, silent videos, in order."""
        return parts_in(self.folder)

    @cached_property
    def result(self) -> GenerationResult:
        """The video of a finished run."""
        return GenerationResult.from_run(self.folder)

    @cached_property
    def record(self) -> dict[str, Any]:
        """What `run.json` of a finished run says."""
        return read_record(self.folder)

    @property
    def seconds(self) -> float:
        """Seconds of all stages of the call that finished the run."""
        return float(sum(stage["seconds"] for stage in self.record["stages"].values()))

    @property
    def chunks_of_earlier_calls(self) -> int:
        """Chunks of a finished run whose time `seconds` leaves out."""
        return int(self.record.get("chunks_of_earlier_calls", 0))

    @property
    def measures(self) -> dict[str, dict[str, Any]]:
        """What was measured of the video, by name; empty where the run is not finished."""
        return {measure["name"]: measure for measure in self.record["measures"]} if self.finished else {}


def parts_in(folder: Path) -> list[Path]:
    """The finished chunks in the folder of an unfinished run, silent videos, in order.

    Links do not count: they could name any file.
    """
    chunks = folder / CHUNKS
    if chunks.is_symlink():
        return []
    videos = sorted(path for path in chunks.glob("*.mp4") if CHUNK_FILE.fullmatch(path.name))
    return [path for path in videos if path.with_suffix(".safetensors").exists() and not path.is_symlink()]


def find_runs(folder: Path) -> list[PastRun]:
    """The runs in a folder, newest first. A folder without a valid request is left out."""
    runs = []
    for request in folder.glob(f"*/{REQUEST}"):
        with suppress(TalkingHeadError, OSError, ValueError, OverflowError):
            runs.append(run_in(request.parent))
    return sorted(runs, key=lambda run: (run.begun, run.folder.name), reverse=True)


def finished_run(folder: Path) -> PastRun:
    """The finished run in a folder.

    Raises:
        OutputError: the folder holds none, or its record cannot be used.
        InvalidRequest: its request is not valid.
    """
    run = run_in(folder)
    if run.problem:
        raise OutputError(f"the run cannot be used: {run.problem.rstrip('.')}", received=str(folder))
    if not run.finished:
        remedy = f"Finish it: generate {folder}/{REQUEST} --run {folder}"
        raise NoFinishedRun("the run is not finished", received=str(folder), remedy=remedy)
    return run


def run_in(folder: Path) -> PastRun:
    """The run in a folder.

    Raises:
        NoFinishedRun: the folder has no request.
        InvalidRequest: its request is not valid.
    """
    request = folder / REQUEST
    if not request.is_file():
        listed = Path("outputs") / folder.name
        is_listed = (project_folder() / listed / REQUEST).is_file()
        remedy = f"Did you mean {listed}?" if is_listed else "Name the folder of a run."
        raise NoFinishedRun("no run", received=str(folder), remedy=remedy)
    params = GenerationParams.from_yaml(request)
    begun = datetime.fromtimestamp(request.stat().st_mtime)
    if not (folder / RECORD).is_file():
        return PastRun(folder, params, begun, finished=False)
    run = PastRun(folder, params, begun, finished=True)
    try:
        _ = run.result
        check_is_of(run.record, params, folder)
    except TalkingHeadError as error:
        return PastRun(folder, params, begun, finished=False, problem=str(error))
    return run


def growing_video(folder: Path) -> bytes | None:
    """What is finished of an unfinished run's video, with its sound; of a long one the newest part.

    None: there are no frames yet.

    Raises:
        MediaError: it cannot be read.
    """
    path = folder / GROWING
    linked = path.is_symlink() or path.parent.is_symlink()  # it could name any file
    if linked or not path.is_file() or not path.stat().st_size:
        return None
    return plain_copy(path, LARGEST_PREVIEW)


def thumbnail(run: PastRun) -> Image.Image:
    """A frame from the middle of a run's video, from its newest chunk, or its portrait.

    Raises:
        MediaError: the video, the chunk or the portrait cannot be read.
    """
    if run.finished:
        pictures = video.evenly_spaced(run.result.video_path, 3)
        return pictures[len(pictures) // 2][1]
    if run.parts:
        return video.evenly_spaced(run.parts[-1], 1)[0][1]
    return open_reference(local_file(run.params.pictures[0].file), run.params.background).frame_at(0.0)


def in_a_line(params: GenerationParams) -> str:
    """The settings that are changed most."""
    return (
        f"{params.diffusion_steps} steps · audio {_scale(params.audio_guide_scale)} · text "
        f"{_scale(params.text_guide_scale)} · seed {params.seed}"
    )


def _scale(scale: Scale) -> str:
    """A guidance scale, or the values of its schedule."""
    return f"{scale:g}" if isinstance(scale, int | float) else " → ".join(f"{value:g}" for value in scale)


def chunks(count: int) -> str:
    """So many chunks, in words."""
    return f"{count} chunk" if count == 1 else f"{count} chunks"


def moment(time: datetime) -> str:
    """A time of today; of another day the day too, with its year unless it is this one."""
    now = datetime.now()
    if time.date() == now.date():
        return f"{time:%H:%M:%S}"
    return f"{time:%-d %b %H:%M}" if time.year == now.year else f"{time:%-d %b %Y %H:%M}"
