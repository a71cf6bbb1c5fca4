"""The folder of one run: whose it is, its finished chunks, and what is left of calls that were cut off."""

import hashlib
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from talkinghead_lab.errors import InvalidRequest, OutputError
from talkinghead_lab.foundation.files import LOCK, atomic_path, locked
from talkinghead_lab.foundation.paths import project_folder
from talkinghead_lab.media import video
from talkinghead_lab.media.pixels import to_uint8
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.pipeline.chunk_generator import GeneratedChunk
from talkinghead_lab.sampling.chunks import Chunk

RECORD = "run.json"
NOTEBOOK_SUFFIX = ".ipynb"  # papermill writes the notebook of a run into its folder before the run begins


@dataclass
class RunFolder:
    """The folder of one run.

    Args:
        path: the folder.
        params: the request.
        frame_size: (W, H) of the video.
        made_from: digest of weights and media; a chunk that was made from others is made again.
        timestamp: of this call, for the video's name.
    """

    path: Path
    params: GenerationParams
    frame_size: tuple[int, int]
    made_from: str
    timestamp: str

    @classmethod
    @contextmanager
    def open(
        cls,
        params: GenerationParams,
        path: str | Path | None,
        frame_size: tuple[int, int],
        made_from: str,
    ) -> Iterator["RunFolder"]:
        """Make the folder, or take up the one that an earlier call left; other calls are kept out meanwhile.

        Raises:
            OutputError: it cannot be made, holds something else, or is being written by another call.
        """
        timestamp = f"{datetime.now():%Y%m%d_%H%M%S}"
        if path is None:
            name = f"{_file_stem(params, frame_size)}_{timestamp}"
            path = _not_taken(project_folder() / "outputs" / name)
        run = cls(project_folder() / path, params, frame_size, made_from, timestamp)
        with _usable(run.path):
            run.path.mkdir(parents=True, exist_ok=True)
        with nullcontext() if run.finished else locked(run.path):
            with _usable(run.path):
                run._take_up()
            yield run

    def _take_up(self) -> None:
        self._claim()
        if self.finished:
            self.clear_chunks()  # the call that finished may have ended before this
        else:
            self.chunk_folder.mkdir(exist_ok=True)
            _remove_partial_files(self.chunk_folder)

    @property
    def chunk_folder(self) -> Path:
        return self.path / "chunks"

    @property
    def finished(self) -> bool:
        return (self.path / RECORD).is_file()

    def _claim(self) -> None:
        """Write down whose folder this is, or check that it is the same request's."""
        request = self.path / "request.yaml"
        _remove_partial_files(self.path)
        if request.is_file():
            try:
                # A budget changes no bit of the video: a run that it was too small for goes on with another.
                same = (
                    GenerationParams.from_yaml(request, vram_budget_gib=self.params.vram_budget_gib)
                    == self.params
                )
            except InvalidRequest:
                same = False
            if not same:
                raise OutputError(
                    "the folder holds a run of another request",
                    received=str(self.path),
                    remedy="Choose another folder, or repeat the request in its request.yaml.",
                )
            return
        unexpected = [
            item.name for item in self.path.iterdir() if item.suffix != NOTEBOOK_SUFFIX and item.name != LOCK
        ]
        if unexpected:
            raise OutputError(
                "the folder holds other things",
                received=f"{self.path} with {', '.join(sorted(unexpected)[:3])}",
                remedy="Choose a folder that is new or empty.",
            )
        with atomic_path(request) as temporary:
            temporary.write_text(self.params.to_yaml(), encoding="utf-8")

    def _part(self, chunk_index: int, suffix: str) -> Path:
        return self.chunk_folder / f"{chunk_index:05d}{suffix}"

    def has(self, chunk: Chunk) -> bool:
        """Whether the chunk is finished, and was made from what the request names now."""
        if not self._part(chunk.index, ".safetensors").is_file():
            return False
        return self._facts(chunk)["made_from"] == self.made_from

    def save(self, generated: GeneratedChunk, seconds: float) -> None:
        """Keep a chunk: its new frames as a silent video, then what the next chunk repeats.

        Raises:
            OutputError: no space is left; the chunks before stay as they are.
        """
        frames, index = to_uint8(generated.new_frames), generated.chunk.index
        picture, rest = self._part(index, ".mp4"), self._part(index, ".safetensors")
        for earlier in (rest, picture):  # of a call that was cut off, or made from other weights
            earlier.unlink(missing_ok=True)
        video.write_video(picture, [frames], None, len(frames), {})
        last_frames = generated.frames[:, -self.params.motion_frame :].contiguous()
        facts = {
            "frames_sha256": hashlib.sha256(frames.data).hexdigest(),
            "latent_sha256": hashlib.sha256(generated.latent.numpy().data).hexdigest(),
            "seconds": f"{seconds:.3f}",
            "made_from": self.made_from,
        }
        with atomic_path(rest) as temporary:
            temporary.write_bytes(save({"last_frames": last_frames}, facts))

    def last_frames(self, chunk: Chunk) -> Tensor | None:
        """What the chunk before left for this one to repeat, [3, motion_frame, H, W]."""
        if not chunk.repeated:
            return None
        with safe_open(self._part(chunk.index - 1, ".safetensors"), "pt") as file:
            return file.get_tensor("last_frames")

    def pictures(self, chunks: list[Chunk]) -> list[Path]:
        """The silent videos of finished chunks."""
        return [self._part(chunk.index, ".mp4") for chunk in chunks]

    def chunk_records(self, chunks: list[Chunk]) -> list[dict[str, Any]]:
        """Place, digests and seconds of finished chunks."""
        kept = ("frames_sha256", "latent_sha256")
        facts = [(chunk, self._facts(chunk)) for chunk in chunks]
        return [
            asdict(chunk) | {name: known[name] for name in kept} | {"seconds": float(known["seconds"])}
            for chunk, known in facts
        ]

    def _facts(self, chunk: Chunk) -> dict[str, str]:
        with safe_open(self._part(chunk.index, ".safetensors"), "pt") as file:
            return file.metadata()

    def new_video_path(self) -> Path:
        """Where the finished video goes; one whose call was cut off before its record is removed."""
        stem = _file_stem(self.params, self.frame_size)
        for unfinished in self.path.glob(f"{stem}_*.mp4"):
            unfinished.unlink()
        return self.path / f"{stem}_{self.timestamp}.mp4"

    def clear_chunks(self) -> None:
        """Remove the chunks of a finished run."""
        shutil.rmtree(self.chunk_folder, ignore_errors=True)


@contextmanager
def _usable(folder: Path) -> Iterator[None]:
    """Errors of the file system, told as ours."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"the run's folder cannot be made ({error.strerror})", received=str(folder)
        ) from None


def _remove_partial_files(folder: Path) -> None:
    """Remove what `atomic_path` left behind where its process was killed."""
    for partial in folder.glob(f".{'[0-9a-f]' * 16}.partial*"):
        partial.unlink(missing_ok=True)


def _file_stem(params: GenerationParams, frame_size: tuple[int, int]) -> str:
    words = re.sub(r"[^\w]+", "-", params.prompt.lower())[:40].strip("-_")
    return "infinitetalk_{}x{}_{}".format(*frame_size, words or "no-prompt")


def _not_taken(wanted: Path) -> Path:
    """`wanted`, or with the first number behind it that is not taken."""
    folder, number = wanted, 1
    while folder.exists():
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder
