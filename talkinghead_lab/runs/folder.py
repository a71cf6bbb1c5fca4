"""The folder of one run: its request, its finished chunks, its record."""

import json
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from talkinghead_lab import defaults
from talkinghead_lab.errors import InvalidRequest, NoFinishedRun, OutputError
from talkinghead_lab.foundation import digests, schema
from talkinghead_lab.foundation.files import LOCK, atomic_path, locked, output_errors, remove_file
from talkinghead_lab.foundation.paths import project_folder
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.runs.chunk_files import ChunkFiles
from talkinghead_lab.runs.jobs import GROWING, INPUTS
from talkinghead_lab.runs.record import check_form, damaged, video_of

RECORD, REQUEST, CHUNKS = "run.json", "request.yaml", "chunks"
CHUNK_FILE = re.compile(r"\d{5,}\.(mp4|safetensors)")
UNUSABLE = "the run's folder cannot be made"
NOTEBOOK_SUFFIX = ".ipynb"  # papermill writes the run's notebook into the folder before the run starts


@dataclass
class RunFolder:
    """The folder of one run.

    Args:
        path: the folder.
        params: the request.
        frame_size: (W, H) of the video.
        made_from: gives the digest of weights and media; chunks that were made from other files are made
            again.
        timestamp: of this call, for the name of the video.
    """

    path: Path
    params: GenerationParams
    frame_size: tuple[int, int]
    made_from: Callable[[], str]
    timestamp: str

    @classmethod
    @contextmanager
    def open(
        cls,
        params: GenerationParams,
        path: str | Path | None,
        frame_size: tuple[int, int],
        made_from: str | Callable[[], str],
    ) -> Iterator["RunFolder"]:
        """Create the folder or resume an unfinished one; the folder is locked against other calls.

        Args:
            params, path, frame_size: see above; path None: a new folder under `outputs/`.
            made_from: digest of weights and media, or a function that waits for it.

        Raises:
            OutputError: it cannot be made, holds something else, or is being written by another call.
        """
        timestamp = f"{datetime.now():%Y%m%d_%H%M%S}"
        if path is None:
            name = f"{_file_stem(params, frame_size)}_{timestamp}"
            path = _not_taken(project_folder() / "outputs" / name)
        digest = made_from if callable(made_from) else lambda: made_from
        run = cls(project_folder() / path, params, frame_size, digest, timestamp)
        with output_errors(UNUSABLE, run.path):
            run.path.mkdir(parents=True, exist_ok=True)
        with nullcontext() if run.finished else locked(run.path):
            with output_errors(UNUSABLE, run.path):
                run._prepare()
            yield run

    def _prepare(self) -> None:
        self._claim()
        if self.finished:
            self._remove_remains()
        else:
            self.chunk_folder.mkdir(exist_ok=True)
            _remove_partial_files(self.chunk_folder)

    def _remove_remains(self) -> None:
        """Remove what is left of a call that was killed after its record; not while that call still runs."""
        if self.chunk_folder.exists() or (self.path / LOCK).exists():
            with suppress(OutputError), locked(self.path):
                self.clear_chunks()

    @property
    def chunk_folder(self) -> Path:
        """Folder of the finished chunks."""
        return self.path / CHUNKS

    @property
    def growing_video(self) -> Path:
        """Path of the video that can be played while the run is under way."""
        return self.path / GROWING

    @cached_property
    def chunks(self) -> ChunkFiles:
        """The chunks of an unfinished run; those of another request do not count."""
        request = digests.sha256_of_file(self.path / REQUEST)
        return ChunkFiles(
            self.chunk_folder,
            lambda: digests.combined([request, self.made_from()]),
            self.params.motion_frame,
        )

    @property
    def finished(self) -> bool:
        """Whether the run has a record."""
        return (self.path / RECORD).is_file()

    def _claim(self) -> None:
        """Record the request, or check that the folder belongs to the same one."""
        request = self.path / REQUEST
        _remove_partial_files(self.path)
        if request.is_file():
            try:
                found = GenerationParams.from_yaml(request)
            except InvalidRequest as error:
                raise OutputError(
                    f"the request of the run cannot be read: {error.problem}",
                    received=str(request),
                    remedy="Restore it from a copy, or choose another folder.",
                ) from None
            if not _same_video(found, self.params):
                raise OutputError(
                    "the folder holds a run of another request",
                    received=str(self.path),
                    remedy="Choose another folder, or repeat the request in its request.yaml.",
                )
            return
        unexpected = [
            item.name
            for item in self.path.iterdir()
            if item.suffix != NOTEBOOK_SUFFIX and item.name not in (LOCK, INPUTS)
        ]
        if unexpected:
            raise OutputError(
                "the folder holds other things",
                received=f"{self.path} with {', '.join(sorted(unexpected)[:3])}",
                remedy="Choose a folder that is new or empty.",
            )
        with atomic_path(request) as temporary:
            temporary.write_text(self.params.to_yaml(versioned=True), encoding="utf-8")

    def check_record(self) -> None:
        """Check that a finished run is that of the request, and its video as it was recorded.

        Raises:
            OutputError: one of them was exchanged or damaged.
        """
        record = read_record(self.path)
        check_is_of(record, self.params, self.path)
        if digests.sha256_of_file(video_of(self.path, record)) != record["video_sha256"]:
            raise damaged(self.path / RECORD, "the video has changed since")

    def write_record(self, content: dict[str, Any]) -> None:
        """Write `run.json`, which finishes the run."""
        text = json.dumps(schema.versioned(content), indent=1, ensure_ascii=False)
        with atomic_path(self.path / RECORD) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")

    def new_video_path(self) -> Path:
        """Path of the finished video. Removes the video of a call that was interrupted before its record.

        Raises:
            OutputError: it cannot be removed.
        """
        stem = _file_stem(self.params, self.frame_size)
        for unfinished in self.path.glob(f"{stem}_*.mp4"):
            remove_file(unfinished)
        return self.path / f"{stem}_{self.timestamp}.mp4"

    def clear_chunks(self) -> None:
        """Remove the chunks of a finished run; other files in their folder stay."""
        with suppress(OSError):
            _remove_partial_files(self.chunk_folder)
            for path in self.chunk_folder.iterdir():
                if CHUNK_FILE.fullmatch(path.name) or path == self.growing_video:
                    path.unlink()
            self.chunk_folder.rmdir()


def _same_video(one: GenerationParams, other: GenerationParams) -> bool:
    """Whether requests are of one video; neither a memory budget nor the device identifies it."""
    return one.replace(vram_budget_gib=other.vram_budget_gib, device=other.device) == other


def check_is_of(record: dict[str, Any], params: GenerationParams, run_dir: Path) -> None:
    """Check that a record is that of a request.

    Raises:
        OutputError: one of the two files was exchanged.
    """
    try:
        same = _same_video(GenerationParams(**record["request"]), params)
    except InvalidRequest as error:
        raise damaged(run_dir / RECORD, f"its request: {error}") from None
    if not same:
        raise damaged(run_dir / RECORD, f"it is of another request than {REQUEST}")


def with_drawn_seed(params: GenerationParams, run_dir: str | Path | None) -> GenerationParams:
    """The request with a number for the seed `random`: that of the run in the folder, or a new one."""
    if params.seed != "random":
        return params
    request = None if run_dir is None else project_folder() / run_dir / REQUEST
    if request is not None and request.is_file():
        with suppress(InvalidRequest):  # opening the folder reports it
            return params.replace(seed=GenerationParams.from_yaml(request).seed)
    return params.replace(seed=secrets.randbelow(2**32))


def read_record(run_dir: Path) -> dict[str, Any]:
    """Read the `run.json` of a finished run.

    Raises:
        NoFinishedRun: there is none.
        OutputError: it is damaged.
        InvalidRequest: a later version of the package wrote it.
    """
    path = run_dir / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise NoFinishedRun("no finished run", received=str(run_dir), remedy=_instead(run_dir)) from None
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, str(error)) from None
    if not isinstance(record, dict):
        raise damaged(path, f"a {type(record).__name__} instead of an object")
    version, record = schema.split(record, unwritten=1)
    check_form(record, path)
    return record | {"request": defaults.completed(record["request"], version)}


def _instead(run_dir: Path) -> str:
    """What a path is that is not the folder of a finished run, and what to do."""
    if not run_dir.exists():
        return "There is no such folder: check the path and the working directory."
    if not run_dir.is_dir():
        return "This is a file: name the folder of the run."
    if (run_dir / "sweep.yaml").is_file():
        return "This is the folder of a sweep: its runs are the folders in cells/."
    if (run_dir / REQUEST).is_file():
        return "An unfinished run resumes with `generate … --run FOLDER`."
    return "The folder of a finished run contains run.json; `python -m talkinghead_lab runs list` finds runs."


def _remove_partial_files(folder: Path) -> None:
    """Remove files that `atomic_path` left where its process was killed."""
    for partial in folder.glob(f".{'[0-9a-f]' * 16}.partial*"):
        partial.unlink(missing_ok=True)


def _file_stem(params: GenerationParams, frame_size: tuple[int, int]) -> str:
    words = re.sub(r"[^\w]+", "-", params.prompts[0].text.lower())[:40].strip("-_")
    return "infinitetalk_{}x{}_{}".format(*frame_size, words or "no-prompt")


def _not_taken(wanted: Path) -> Path:
    """`wanted`, or the same name with the first free number behind it."""
    folder, number = wanted, 1
    while folder.exists():
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder
