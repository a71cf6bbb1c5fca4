"""One run: request → chunks → video and record, resumable after every finished chunk.

A run's folder holds `request.yaml` from the start, and `chunks/` while it is under way, with a video that can
be played as it grows. The video, the contact sheet and finally `run.json` appear when they are complete; then
the run is finished and `chunks/` is removed.
"""

import html
import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from talkinghead_lab.errors import OutputError, Stopped
from talkinghead_lab.foundation import digests, environment
from talkinghead_lab.foundation.files import atomic_path
from talkinghead_lab.foundation.html_media import data_url, video_html
from talkinghead_lab.foundation.latent_grid import FRAMES_PER_SECOND
from talkinghead_lab.measures.cartoon_faces import mouth_truth
from talkinghead_lab.measures.cost import cost
from talkinghead_lab.measures.judge import Judgement, Subject, judge_video
from talkinghead_lab.media import video
from talkinghead_lab.media.frame_size import fit_image
from talkinghead_lab.media.growing_video import GrowingVideo
from talkinghead_lab.media.inputs import Inputs
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.pipeline.chunk_generator import ChunkGenerator
from talkinghead_lab.pipeline.encoder_cache import EncodingStore, no_cache
from talkinghead_lab.pipeline.people import people_in_frame
from talkinghead_lab.pipeline.pipeline import Pipeline
from talkinghead_lab.pipeline.request import Resolved, read_inputs, resolve
from talkinghead_lab.request_text import VIDEO_METADATA_KEY
from talkinghead_lab.runs.chunk_files import ArrivingChunk, ChunkFiles
from talkinghead_lab.runs.chunk_writer import ChunkWriter
from talkinghead_lab.runs.folder import RunFolder, read_record, with_drawn_seed
from talkinghead_lab.runs.jobs import Progress
from talkinghead_lab.runs.origin import InputDigests, seen_files
from talkinghead_lab.runs.progress_bar import ProgressBar
from talkinghead_lab.runs.record import read_own_file, size_of_own_file, video_of
from talkinghead_lab.runs.stage_clock import StageClock
from talkinghead_lab.runs.time_left import TimeLeft, Work
from talkinghead_lab.sampling.chunks import Chunk, seams
from talkinghead_lab.sampling.guidance import planned_passes

LOG = logging.getLogger(__name__)

CONTACT_SHEET_FRAMES = 12
LARGEST_INLINE_VIDEO = 50_000_000  # bytes; beyond it a notebook shows the contact sheet alone


OnProgress = Callable[[Progress], bool | None]
OnGrowth = Callable[[Path], None]


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
        """Folder of the run."""
        return self.video_path.parent

    @property
    def contact_sheet_path(self) -> Path:
        """Path of the contact sheet."""
        return self.run_dir / "contact_sheet.png"

    def to_json(self) -> dict[str, Any]:
        """Plain values, as the shell and the HTTP interface return them."""
        return asdict(self) | {"video_path": str(self.video_path)}

    @classmethod
    def from_run(cls, run_dir: str | Path) -> "GenerationResult":
        """Read the result of a finished run.

        Raises:
            OutputError: the folder holds no finished run.
        """
        run_dir = Path(run_dir)
        record = read_record(run_dir)
        known = {each.name: record["result"][each.name] for each in fields(cls)}
        return cls(**(known | {"video_path": video_of(run_dir, record)}))

    def _repr_html_(self) -> str:
        """The video in a notebook, embedded; the contact sheet, if the video is too large."""
        caption = f"{self.video_path.name} · {self.resolution} · {self.duration_seconds:.2f} s"
        try:
            shown = self._player()
        except OutputError as error:
            shown = f"<p>{html.escape(str(error))}</p>"
        return f"<figure>{shown}<figcaption>{html.escape(caption)}</figcaption></figure>"

    def _player(self) -> str:
        wide = self.resolution.partition("x")[0]
        width = min(640, max(320, int(wide) if wide.isdecimal() else 0))
        if size_of_own_file(self.video_path) > LARGEST_INLINE_VIDEO:
            sheet = data_url(read_own_file(self.contact_sheet_path), "image/png")
            return f'<img width="{width}" src="{sheet}">'
        return video_html(read_own_file(self.video_path), f'controls width="{width}"')


def generate(
    params: GenerationParams,
    run_dir: str | Path | None = None,
    *,
    inputs: Inputs | None = None,
    pipeline: Pipeline | None = None,
    encoder_cache: EncodingStore = no_cache,
    on_progress: OnProgress | None = None,
    on_growth: OnGrowth | None = None,
    time_left: TimeLeft | None = None,
    show_progress: bool = True,
) -> GenerationResult:
    """Generate the video that a request describes. Its warnings are logged before the networks are loaded.

    Args:
        params: the request.
        run_dir: the run's folder. An unfinished run of the same request resumes at its last finished chunk;
            a finished one is returned unchanged. None: a new folder under `outputs/`.
        inputs: media of the request that were read already.
        pipeline: networks that were loaded with `Pipeline.load` for a request of the same checkpoint, LoRAs,
            precision, attention and device; None: loaded for this run.
        encoder_cache: stores encodings; see `encoder_cache`.
        on_progress: called after every step. An exception from it ends the run; False stops it cleanly.
        on_growth: called with the run's folder while there is more to come, after chunks were saved.
        time_left: is told how far the run is; it may be asked for the time left in any thread.
        show_progress: draw a progress bar, in a notebook or on stderr.

    Raises:
        InvalidRequest, MediaError, CheckpointError: something in the request cannot be used, or changed.
        OutputError: nothing can be written, the folder belongs to another request, or another call writes it.
        OutOfMemory: the device or the budget is too small. The device is left clean, finished chunks stay.
        Stopped: `on_progress` returned False; finished chunks stay.
    """
    params = with_drawn_seed(params, run_dir)
    time_left = time_left or TimeLeft()
    clock = StageClock(time_left.enter)
    with clock("read"):
        inputs = inputs or read_inputs(params)
        resolved = resolve(params, inputs)
    opened = RunFolder.open(params, run_dir, resolved.frame_size, lambda: origin().digest)
    with opened as run, ExitStack() as ending:
        if run.finished:
            if pipeline is not None:
                pipeline.dit.group.broadcast(None)  # the other processes have nothing to do
            return GenerationResult.from_run(run.path)
        origin = InputDigests.begin(params, inputs, resolved.networks, show_progress)
        for warning in resolved.warnings:
            LOG.warning(warning)
        with clock("load"):
            if pipeline is None:
                pipeline = Pipeline.load(params, inputs)
                ending.callback(pipeline.release)
            pipeline = pipeline.serving(resolved)
        start = ResumePoint.of(run.chunks, resolved.chunks, seen_files(inputs, resolved.networks))
        pipeline.dit.group.broadcast(start)
        time_left.plan(_work(resolved, start.finished))
        if show_progress:
            ending.enter_context(ProgressBar(time_left))
        conditions = pipeline.encode(inputs, resolved, clock, encoder_cache)
        generator = ChunkGenerator(pipeline, conditions, resolved, clock, encoder_cache)
        with GrowingVideo(run.growing_video, inputs.soundtrack, resolved.frames) as growing:
            for chunk in resolved.chunks[: start.finished]:
                growing.append(run.chunks.picture(chunk))
            on_saved = partial(on_growth, run.path) if on_growth else lambda: None
            with ChunkWriter(run.chunks, growing, on_saved) as writer:
                _make_chunks(writer, generator, start, on_progress, time_left)
            growing.finish()
        if growing.first_written and not start.finished:
            clock.record_first_frame(growing.first_written)
        del generator, conditions  # memory for the image encoder, which judges the video
        path = _join_chunks(run, resolved, inputs, clock)
        return _finish(run, resolved, inputs, pipeline, clock, time_left, origin(), path, start.finished)


@dataclass(frozen=True)
class ResumePoint:
    """Where a run goes on.

    Args:
        finished: number of chunks that earlier calls finished.
        last_frames: overlap frames of the last of them, [3, motion_frame, H, W]; None: there is none.
        fp16_overflowed: whether decoding in fp16 overflowed in one of them.
        seen_files: what tells whether other processes read the same weights and media.
    """

    finished: int
    last_frames: Tensor | None
    fp16_overflowed: bool
    seen_files: str

    @classmethod
    def of(cls, files: ChunkFiles, chunks: list[Chunk], seen_files: str) -> "ResumePoint":
        """Find the first chunk that is to be generated."""
        finished = files.find_finished(chunks)
        previous = files.last_frames(chunks[finished]) if finished < len(chunks) else None
        return cls(finished, previous, files.fp16_overflowed, seen_files)


def _make_chunks(
    writer: ChunkWriter,
    generator: ChunkGenerator,
    start: ResumePoint,
    on_progress: OnProgress | None,
    time_left: TimeLeft,
) -> None:
    """Generate and save chunks; each starts from the last frames of the previous one, held in memory."""
    chunks, steps = generator.resolved.chunks, generator.resolved.sampling.steps
    overlap, previous = generator.resolved.request.motion_frame, start.last_frames
    generator.fp16_overflowed = start.fp16_overflowed
    for chunk in chunks[start.finished :]:
        on_step = _StepReport(chunk, len(chunks), steps, time_left, on_progress, writer)
        started = time.perf_counter()
        with writer.open(chunk) as saving:
            on_frames = partial(_add_frames, saving, time_left)
            generated = generator.generate(chunk, previous, on_step=on_step, on_frames=on_frames)
            generator.networks.check_files()
            saving.finish(generated, time.perf_counter() - started)
        time_left.end_chunk()
        previous = generated.frames[:, -overlap:].clone()
        del generated, saving, on_frames


def _add_frames(saving: ArrivingChunk, time_left: TimeLeft, frames: Tensor) -> None:
    saving.add(frames)
    time_left.decoded(frames.shape[1])


def _work(resolved: Resolved, finished: int) -> Work:
    width, height = resolved.frame_size
    sampling = resolved.sampling
    return Work(
        chunks=resolved.chunks,
        finished=finished,
        steps=sampling.steps,
        passes=planned_passes(sampling),
        pixels=width * height,
        checkpoint=resolved.request.checkpoint,
        cached=sampling.step_cache is not None,
    )


def _join_chunks(run: RunFolder, resolved: Resolved, inputs: Inputs, clock: StageClock) -> Path:
    """Join the chunks under the sound track."""
    with clock("mux"):
        pictures, path = run.chunks.pictures(resolved.chunks), run.new_video_path()
        request = {VIDEO_METADATA_KEY: resolved.request.to_yaml(versioned=True)}
        video.join_videos(path, pictures, inputs.soundtrack, request)
    return path


def _finish(
    run: RunFolder,
    resolved: Resolved,
    inputs: Inputs,
    pipeline: Pipeline,
    clock: StageClock,
    time_left: TimeLeft,
    origin: InputDigests,
    path: Path,
    made_earlier: int,
) -> GenerationResult:
    """Judge the video, then write the contact sheet and, last, the record.

    Raises:
        OutputError: the video is not as long as planned.
    """
    result = GenerationResult(
        video_path=path,
        duration_seconds=resolved.frames / FRAMES_PER_SECOND,
        resolution="{}x{}".format(*resolved.frame_size),
        frame_count=resolved.frames,
        metadata=_metadata(run),
    )
    with clock("measure"):
        subject = _subject(resolved, inputs, origin, run.chunks.luma_changes())
        judgement = judge_video(
            path, subject, pipeline.image_features, CONTACT_SHEET_FRAMES, time_left.measured
        )
    _check_length(judgement, result)
    with atomic_path(result.contact_sheet_path, overwrite=True) as temporary:
        video.contact_sheet(judgement.snapshots).save(temporary)
    chunk_records = run.chunks.records(resolved.chunks)
    seconds = sum(chunk["seconds"] for chunk in chunk_records)
    measures = judgement.measures + cost(clock.stages, seconds, result.frame_count, clock.first_frame)
    run.write_record(
        {
            "result": result.to_json() | {"video_path": path.name},
            "request": resolved.request.model_dump(mode="json"),
            "resolved": resolved.to_json(),
            "kernels": pipeline.dit.kernels(),
            "inputs": origin.media,
            "weights": origin.weights,
            "loras": origin.loras,
            "video_sha256": digests.sha256_of_file(path),
            "environment": environment.describe(),
            "chunks_of_earlier_calls": made_earlier,  # `stages` does not include these
            "time_to_first_frame": clock.first_frame,
            "stages": clock.stages,
            "timeline": clock.timeline,
            "measures": [asdict(measure) for measure in measures],
            "checks": judgement.checks,
            "chunks": chunk_records,
        }
    )
    run.clear_chunks()
    return result


def _check_length(judgement: Judgement, result: GenerationResult) -> None:
    """Count the frames of the video, and compare its sound, with the plan."""
    frames, sound = judgement.checks["frame_count"], judgement.facts.audio_seconds
    if frames["passed"] and abs(sound - result.duration_seconds) < 1 / FRAMES_PER_SECOND:
        return
    result.video_path.unlink()
    raise OutputError(
        "the finished video is not as long as planned",
        received=f"{frames['measured']} frames and {sound:.2f} s of sound",
        allowed=f"{result.frame_count} frames, {result.duration_seconds:.2f} s",
        remedy="Request the run again: finished chunks are checked, and damaged ones generated again.",
    )


def _subject(
    resolved: Resolved, inputs: Inputs, origin: InputDigests, changes: list[float] | None
) -> Subject:
    request = resolved.request
    cut = request.max_frames is not None and resolved.frames == request.max_frames
    portrait, *others = (
        fit_image(shot.reference.frame_at(shot.offset), resolved.frame_size, shot.framing)
        for shot in inputs.shots
    )
    later = dict(zip(resolved.cuts, others, strict=False))  # fewer, if the video ends before a shot
    return Subject(
        portrait=portrait,
        later=later,
        speech=inputs.voices[0],
        frame_count=resolved.frames,
        truth=mouth_truth(origin.media.get("audio_path", "")),
        seconds=resolved.frames / FRAMES_PER_SECOND if cut else inputs.seconds,
        seams=seams(resolved.chunks),
        changes=changes,
        speakers=request.speakers,
        people=people_in_frame(resolved, inputs),
        cartoon=request.checkpoint == "embedded",
        warnings=resolved.warnings,
    )


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
    time_left: TimeLeft
    on_progress: OnProgress | None
    writer: ChunkWriter

    def __call__(self, step: int) -> None:
        self.writer.check()
        self.time_left.step()
        if (
            self.on_progress
            and self.on_progress(Progress(self.chunk.index + 1, self.chunks, step, self.steps)) is False
        ):
            raise Stopped("the run was stopped", remedy="Run it again with the same run folder to resume.")
