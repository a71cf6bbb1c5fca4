"""A run on disk: request → chunks → video and record, resumable at every finished chunk.

A run's folder holds `request.yaml` from the start and `chunks/` while it is under way. The video, the contact
sheet and last `run.json` appear when they are whole; with them the run is finished and `chunks/` goes.
"""

import base64
import hashlib
import html
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm.auto import tqdm

from talkinghead_lab import audio, environment, video
from talkinghead_lab.errors import InvalidRequest, OutputError, Stopped
from talkinghead_lab.files import atomic_path
from talkinghead_lab.latent_grid import FRAMES_PER_SECOND
from talkinghead_lab.params import VIDEO_METADATA_KEY, GenerationParams, local_file, project_folder
from talkinghead_lab.pipeline import ChunkGenerator, GeneratedChunk, Pipeline, read_inputs
from talkinghead_lab.streaming import Chunk

CONTACT_SHEET_FRAMES = 12
LARGEST_INLINE_VIDEO = 50_000_000  # bytes; beyond it a notebook shows the contact sheet alone


@dataclass(frozen=True)
class Progress:
    """How far a run is: `step` of `steps` in chunk `chunk` of `chunks`, all counted from 1."""

    chunk: int
    chunks: int
    step: int
    steps: int


OnProgress = Callable[[Progress], bool | None]


@dataclass(frozen=True)
class GenerationResult:
    """A finished video. In a notebook it displays itself."""

    video_path: Path
    duration_seconds: float
    resolution: str
    frame_count: int
    metadata: dict[str, str] = field(repr=False)

    @property
    def run_dir(self) -> Path:
        return self.video_path.parent

    @property
    def contact_sheet_path(self) -> Path:
        return self.run_dir / "contact_sheet.png"

    def to_json(self) -> dict[str, Any]:
        """Plain values, as the shell and the HTTP face give them."""
        return asdict(self) | {"video_path": str(self.video_path)}

    @classmethod
    def from_run(cls, run_dir: str | Path) -> "GenerationResult":
        """The result of a finished run."""
        run_dir = Path(run_dir)
        result = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))["result"]
        return cls(**(result | {"video_path": run_dir / result["video_path"]}))

    def _repr_html_(self) -> str:
        caption = f"{html.escape(self.video_path.name)} · {self.resolution} · {self.duration_seconds:.2f} s"
        path, kind = self.video_path, "video"
        if path.stat().st_size > LARGEST_INLINE_VIDEO:
            path, kind = self.contact_sheet_path, "img"
        data = base64.b64encode(path.read_bytes()).decode()
        width = min(640, max(320, int(self.resolution.split("x")[0])))
        if kind == "video":
            shown = f'<video controls width="{width}" src="data:video/mp4;base64,{data}"></video>'
        else:
            shown = f'<img width="{width}" src="data:image/png;base64,{data}">'
        return f"<figure>{shown}<figcaption>{caption}</figcaption></figure>"


def generate(
    params: GenerationParams,
    run_dir: str | Path | None = None,
    *,
    pipeline: Pipeline | None = None,
    on_progress: OnProgress | None = None,
    show_progress: bool = True,
) -> GenerationResult:
    """Make the video that a request describes.

    Args:
        params: the request.
        run_dir: the run's folder. An unfinished run of the same request is continued at its last finished
            chunk, a finished one is returned as it is. Unset: a new folder under `outputs/`.
        pipeline: networks loaded by `Pipeline.load` with the same checkpoint, LoRAs, precision and device, to
            use them for several videos; unset: loaded for this one.
        on_progress: called after every step; what it raises ends the run, and False stops it cleanly.
        show_progress: draw a progress bar, in a notebook or on stderr.

    Raises:
        InvalidRequest, MediaError, CheckpointError: something in the request cannot be used.
        OutputError: nothing can be written, or the folder belongs to another request.
        Stopped: `on_progress` returned False; finished chunks stay on disk.
    """
    clock = StageClock()
    with clock("read"):
        inputs = read_inputs(params)
    run = RunFolder.open(params, run_dir, inputs.frame_size)
    if run.finished:
        return GenerationResult.from_run(run.path)
    with clock("load"):
        pipeline = pipeline or Pipeline.load(params)
    generator = ChunkGenerator(pipeline, pipeline.encode(inputs, params, clock), params, clock)
    chunks = generator.chunks()
    with _bar(chunks, params, show_progress) as bar:
        for chunk in chunks:
            if not run.has(chunk):
                on_step = _StepReport(chunk, len(chunks), params.diffusion_steps, bar, on_progress)
                started = time.perf_counter()
                generated = generator.generate(chunk, run.last_frames(chunk), on_step=on_step)
                run.save(generated, time.perf_counter() - started)
    return run.finish(chunks, pipeline, clock)


def _read_sound(params: GenerationParams) -> audio.Wave:
    sound = audio.read_soundtrack(local_file(params.audio_path))
    if params.second_audio_path is None:
        return sound
    return audio.mix_soundtracks(
        sound, audio.read_soundtrack(local_file(params.second_audio_path)), params.audio_mix
    )


@dataclass
class _StepReport:
    chunk: Chunk
    chunks: int
    steps: int
    bar: tqdm
    on_progress: OnProgress | None

    def __call__(self, step: int) -> None:
        self.bar.set_description(f"chunk {self.chunk.index + 1} of {self.chunks}", refresh=False)
        self.bar.update()
        if (
            self.on_progress
            and self.on_progress(Progress(self.chunk.index + 1, self.chunks, step, self.steps)) is False
        ):
            raise Stopped(
                "the run was stopped", remedy="Ask for it again with the same run folder to continue."
            )


@contextmanager
def _bar(chunks: list[Chunk], params: GenerationParams, show: bool) -> Iterator[tqdm]:
    with tqdm(total=len(chunks) * params.diffusion_steps, unit="step", disable=not show, leave=False) as bar:
        yield bar


class StageClock:
    """Seconds and peak GPU memory of every named stage, summed where a stage comes again."""

    def __init__(self) -> None:
        self.stages: dict[str, dict[str, float]] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
        if gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        try:
            yield
        finally:
            stage = self.stages.setdefault(name, {"seconds": 0.0})
            if gpu:
                torch.cuda.synchronize()
                peak = torch.cuda.max_memory_allocated() / 2**30
                stage["peak_gpu_gib"] = max(peak, stage.get("peak_gpu_gib", 0.0))
            stage["seconds"] += time.perf_counter() - started


@dataclass
class RunFolder:
    """The folder of one run."""

    path: Path
    params: GenerationParams
    frame_size: tuple[int, int]
    timestamp: str

    @classmethod
    def open(
        cls, params: GenerationParams, path: str | Path | None, frame_size: tuple[int, int]
    ) -> "RunFolder":
        """Make the folder, or take up the one that an earlier call left.

        Raises:
            OutputError: it cannot be made, or holds something else.
        """
        timestamp = f"{datetime.now():%Y%m%d_%H%M%S}"
        if path is None:
            name = f"{_file_stem(params, frame_size)}_{timestamp}"
            path = _not_taken(project_folder() / "outputs" / name)
        run = cls(Path(path), params, frame_size, timestamp)
        try:
            run.path.mkdir(parents=True, exist_ok=True)
            run._claim()
            if not run.finished:
                run.chunk_folder.mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"the run's folder cannot be made ({error.strerror})", received=str(run.path)
            ) from None
        return run

    @property
    def chunk_folder(self) -> Path:
        return self.path / "chunks"

    @property
    def finished(self) -> bool:
        return (self.path / "run.json").is_file()

    def _claim(self) -> None:
        """Write down whose folder this is, or check that it is the same request's."""
        request = self.path / "request.yaml"
        if request.is_file():
            try:
                same = GenerationParams.from_yaml(request) == self.params
            except InvalidRequest:
                same = False
            if not same:
                raise OutputError(
                    "the folder holds a run of another request",
                    received=str(self.path),
                    remedy="Choose another folder, or repeat the request in its request.yaml.",
                )
            return
        strangers = [item.name for item in self.path.iterdir()]
        if strangers:
            raise OutputError(
                "the folder holds other things",
                received=f"{self.path} with {', '.join(sorted(strangers)[:3])}",
                remedy="Choose a folder that is new or empty.",
            )
        with atomic_path(request) as temporary:
            temporary.write_text(self.params.to_yaml(), encoding="utf-8")

    def _part(self, chunk_index: int, suffix: str) -> Path:
        return self.chunk_folder / f"{chunk_index:05d}{suffix}"

    def has(self, chunk: Chunk) -> bool:
        """Whether the chunk is finished."""
        return self._part(chunk.index, ".safetensors").is_file()

    def save(self, generated: GeneratedChunk, seconds: float) -> None:
        """Keep a chunk: its new frames as a silent video, then what the next chunk repeats."""
        frames, index = to_uint8(generated.new_frames), generated.chunk.index
        picture = self._part(index, ".mp4")
        picture.unlink(missing_ok=True)  # of a call that was cut off before the chunk was finished
        video.write_video(picture, [frames], None, len(frames), {})
        last_frames = generated.frames[:, -self.params.motion_frame :].contiguous()
        facts = {
            "frames_sha256": hashlib.sha256(frames.data).hexdigest(),
            "latent_sha256": hashlib.sha256(generated.latent.numpy().data).hexdigest(),
            "seconds": f"{seconds:.3f}",
        }
        with atomic_path(self._part(index, ".safetensors")) as temporary:
            temporary.write_bytes(save({"last_frames": last_frames}, facts))

    def last_frames(self, chunk: Chunk) -> Tensor | None:
        """What the chunk before left for this one to repeat, [3, motion_frame, H, W]."""
        if not chunk.repeated:
            return None
        with safe_open(self._part(chunk.index - 1, ".safetensors"), "pt") as file:
            return file.get_tensor("last_frames")

    def finish(self, chunks: list[Chunk], pipeline: Pipeline, clock: StageClock) -> GenerationResult:
        """Join the chunks under the sound, then write the contact sheet and last the record."""
        frame_count = sum(chunk.new for chunk in chunks)
        stem = _file_stem(self.params, self.frame_size)
        for unfinished in self.path.glob(f"{stem}_*.mp4"):  # an earlier call was cut off before its record
            unfinished.unlink()
        path = self.path / f"{stem}_{self.timestamp}.mp4"
        with clock("mux"):
            pictures = [self._part(chunk.index, ".mp4") for chunk in chunks]
            request = {VIDEO_METADATA_KEY: self.params.to_yaml()}
            video.join_videos(path, pictures, _read_sound(self.params), request)
        result = GenerationResult(
            video_path=path,
            duration_seconds=frame_count / FRAMES_PER_SECOND,
            resolution="{}x{}".format(*self.frame_size),
            frame_count=frame_count,
            metadata=self._metadata(),
        )
        with atomic_path(result.contact_sheet_path, overwrite=True) as temporary:
            video.contact_sheet(video.evenly_spaced(path, CONTACT_SHEET_FRAMES)).save(temporary)
        self._write_record(result, chunks, pipeline, clock)
        shutil.rmtree(self.chunk_folder)
        return result

    def _metadata(self) -> dict[str, str]:
        params = self.params
        return {
            "seed": str(params.seed),
            "diffusion_steps": str(params.diffusion_steps),
            "text_guide_scale": str(params.text_guide_scale),
            "audio_guide_scale": str(params.audio_guide_scale),
            "resolution_bucket": params.resolution,
            "actual_resolution": "{}x{}".format(*self.frame_size),
            "motion_frame": str(params.motion_frame),
            "color_correction": str(params.use_color_correction).lower(),
            "timestamp": self.timestamp,
        }

    def _write_record(
        self, result: GenerationResult, chunks: list[Chunk], pipeline: Pipeline, clock: StageClock
    ) -> None:
        record = {
            "result": result.to_json() | {"video_path": result.video_path.name},
            "request": self.params.model_dump(mode="json"),
            "resolved": {
                "sample_shift": self.params.shift,
                "frame_size": "{}x{}".format(*self.frame_size),
                "device": str(pipeline.device),
                "compute_type": str(pipeline.dit.dtype).removeprefix("torch."),
            },
            "inputs": {name: sha256_of_file(path) for name, path in self._input_files().items()},
            "environment": environment.describe(),
            "stages": clock.stages,
            "chunks": [asdict(chunk) | self._chunk_facts(chunk) for chunk in chunks],
        }
        with atomic_path(self.path / "run.json") as temporary:
            temporary.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def _chunk_facts(self, chunk: Chunk) -> dict[str, Any]:
        with safe_open(self._part(chunk.index, ".safetensors"), "pt") as file:
            facts = file.metadata()
        return facts | {"seconds": float(facts["seconds"])}

    def _input_files(self) -> dict[str, Path]:
        named = {
            "image_path": self.params.image_path,
            "audio_path": self.params.audio_path,
            "second_audio_path": self.params.second_audio_path,
        }
        return {name: local_file(value) for name, value in named.items() if value is not None}


def to_uint8(frames: Tensor) -> NDArray[np.uint8]:
    """[3, F, H, W] in [−1, 1] → uint8 [F, H, W, 3]."""
    pixels = ((frames + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(1, 2, 3, 0).contiguous().numpy()


def sha256_of_file(path: Path) -> str:
    """Digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
