"""A run on disk: request → chunks → video and record, resumable at every finished chunk.

A run's folder holds `request.yaml` from the start and `chunks/` while it is under way. The video, the contact
sheet and last `run.json` appear when they are whole; with them the run is finished and `chunks/` goes.
"""

import base64
import html
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from talkinghead_lab.errors import Stopped
from talkinghead_lab.foundation import digests, environment
from talkinghead_lab.foundation.files import atomic_path
from talkinghead_lab.foundation.latent_grid import FRAMES_PER_SECOND
from talkinghead_lab.measures import all, cost
from talkinghead_lab.media import video
from talkinghead_lab.media.inputs import read_inputs, read_sound
from talkinghead_lab.params import VIDEO_METADATA_KEY, GenerationParams
from talkinghead_lab.pipeline.chunk_generator import ChunkGenerator
from talkinghead_lab.pipeline.encoder_cache import EncodingStore, no_cache
from talkinghead_lab.pipeline.pipeline import Pipeline
from talkinghead_lab.runs.folder import RECORD, RunFolder
from talkinghead_lab.runs.jobs import Progress
from talkinghead_lab.runs.origin import InputDigests
from talkinghead_lab.runs.stage_clock import StageClock
from talkinghead_lab.sampling.chunks import Chunk

CONTACT_SHEET_FRAMES = 12
LARGEST_INLINE_VIDEO = 50_000_000  # bytes; beyond it a notebook shows the contact sheet alone


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
        result = json.loads((run_dir / RECORD).read_text(encoding="utf-8"))["result"]
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
    encoder_cache: EncodingStore = no_cache,
    on_progress: OnProgress | None = None,
    show_progress: bool = True,
) -> GenerationResult:
    """Make the video that a request describes.

    Args:
        params: the request.
        run_dir: the run's folder. An unfinished run of the same request is continued at its last finished
            chunk, a finished one is returned as it is. Unset: a new folder under `outputs/`.
        pipeline: networks loaded by `Pipeline.load` with the same checkpoint, LoRAs, precision, device and
            budget, to use them for several videos; unset: loaded for this one.
        encoder_cache: keeps what the encoders give; see `encoder_cache`.
        on_progress: called after every step; what it raises ends the run, and False stops it cleanly.
        show_progress: draw a progress bar, in a notebook or on stderr.

    Raises:
        InvalidRequest, MediaError, CheckpointError: something in the request cannot be used.
        OutputError: nothing can be written, the folder belongs to another request, or another call writes it.
        OutOfMemory: the device is too small, or its budget; it is left clean, finished chunks stay on disk.
        Stopped: `on_progress` returned False; finished chunks stay on disk.
    """
    clock = StageClock()
    with clock("read"):
        inputs = read_inputs(params)
        origin = InputDigests.of(params)
    with RunFolder.open(params, run_dir, inputs.frame_size, origin.digest) as run:
        if run.finished:
            return GenerationResult.from_run(run.path)
        with clock("load"):
            pipeline = pipeline or Pipeline.load(params)
        conditions = pipeline.encode(inputs, params, clock, encoder_cache)
        generator = ChunkGenerator(pipeline, conditions, params, clock, encoder_cache)
        chunks = generator.chunks()
        made = [chunk for chunk in chunks if not run.has(chunk)]
        with _bar(chunks, params, show_progress) as bar:
            bar.update((len(chunks) - len(made)) * params.diffusion_steps)
            for chunk in made:
                on_step = _StepReport(chunk, len(chunks), params.diffusion_steps, bar, on_progress)
                started = time.perf_counter()
                generated = generator.generate(chunk, run.last_frames(chunk), on_step=on_step)
                run.save(generated, time.perf_counter() - started)
        return _finish(run, chunks, pipeline, clock, origin, len(chunks) - len(made))


def _finish(
    run: RunFolder,
    chunks: list[Chunk],
    pipeline: Pipeline,
    clock: StageClock,
    origin: InputDigests,
    kept: int,
) -> GenerationResult:
    """Join the chunks under the sound, then write the contact sheet and last the record."""
    params, frame_count = run.params, sum(chunk.new for chunk in chunks)
    path = run.new_video_path()
    with clock("mux"):
        request = {VIDEO_METADATA_KEY: params.to_yaml()}
        video.join_videos(path, run.pictures(chunks), read_sound(params), request)
    result = GenerationResult(
        video_path=path,
        duration_seconds=frame_count / FRAMES_PER_SECOND,
        resolution="{}x{}".format(*run.frame_size),
        frame_count=frame_count,
        metadata=_metadata(run),
    )
    with atomic_path(result.contact_sheet_path, overwrite=True) as temporary:
        video.contact_sheet(video.evenly_spaced(path, CONTACT_SHEET_FRAMES)).save(temporary)
    with clock("measure"):
        seams = [chunk.start + chunk.repeated for chunk in chunks[1:]]
        measures = all.measure_video(path, params, seams, pipeline.see)
    chunk_records = run.chunk_records(chunks)
    seconds = sum(chunk["seconds"] for chunk in chunk_records)
    measures += cost.cost(clock.stages, seconds, frame_count)
    record = {
        "result": result.to_json() | {"video_path": path.name},
        "request": params.model_dump(mode="json"),
        "resolved": {
            "sample_shift": params.shift,
            "frame_size": result.resolution,
            "device": str(pipeline.device),
            "compute_type": str(pipeline.dit.dtype).removeprefix("torch."),
        },
        "inputs": origin.media,
        "weights": origin.weights,
        "loras": origin.loras,
        "video_sha256": digests.sha256_of_file(path),
        "environment": environment.describe(),
        "chunks_of_earlier_calls": kept,  # `stages` does not count these
        "stages": clock.stages,
        "timeline": clock.timeline,
        "measures": [asdict(measure) for measure in measures],
        "chunks": chunk_records,
    }
    with atomic_path(run.path / RECORD) as temporary:
        temporary.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    run.clear_chunks()
    return result


def _metadata(run: RunFolder) -> dict[str, str]:
    params = run.params
    return {
        "seed": str(params.seed),
        "diffusion_steps": str(params.diffusion_steps),
        "text_guide_scale": str(params.text_guide_scale),
        "audio_guide_scale": str(params.audio_guide_scale),
        "resolution_bucket": params.resolution,
        "actual_resolution": "{}x{}".format(*run.frame_size),
        "motion_frame": str(params.motion_frame),
        "color_correction": str(params.use_color_correction).lower(),
        "timestamp": run.timestamp,
    }


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
