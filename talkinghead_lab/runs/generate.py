"""One run: request → chunks → video and record, resumable after every finished chunk.

A run's folder holds `request.yaml` from the start, and `chunks/` while it is under way, with a video that can
be played as it grows. The video, the contact sheet and finally `run.json` appear when they are complete; then
the run is finished and `chunks/` is removed.
"""

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from talkinghead_lab.errors import OutputError, Stopped
from talkinghead_lab.foundation import digests, environment
from talkinghead_lab.foundation.files import atomic_path
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
from talkinghead_lab.pipeline.request import Resolved, resolve
from talkinghead_lab.pipeline.request_media import read_inputs
from talkinghead_lab.request_text import VIDEO_METADATA_KEY
from talkinghead_lab.runs.chunk_files import ArrivingChunk, ChunkFiles
from talkinghead_lab.runs.chunk_writer import ChunkWriter
from talkinghead_lab.runs.folder import RunFolder, with_drawn_seed
from talkinghead_lab.runs.jobs import Progress
from talkinghead_lab.runs.origin import InputDigests, seen_files
from talkinghead_lab.runs.progress_bar import ProgressBar
from talkinghead_lab.runs.result import GenerationResult
from talkinghead_lab.runs.stage_clock import StageClock
from talkinghead_lab.runs.time_left import TimeLeft, Work
from talkinghead_lab.sampling.chunks import Chunk, seams
from talkinghead_lab.sampling.guidance import planned_passes

LOG = logging.getLogger(__name__)

CONTACT_SHEET_FRAMES = 12

OnProgress = Callable[[Progress], bool | None]
OnGrowth = Callable[[Path], None]


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
        OutputError: nothing can be written, the folder belongs to another request, another call writes it, or
            a finished video was changed.
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
            run.check_record()
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
        generation = _Generation(run, inputs, resolved, pipeline, clock, time_left, start)
        generation.make_chunks(encoder_cache, on_progress, on_growth)
        return generation.finish(origin())


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


@dataclass(frozen=True)
class _Generation:
    """A run under way: what it is made from and with, what measures it, and where it goes on."""

    run: RunFolder
    inputs: Inputs
    resolved: Resolved
    pipeline: Pipeline
    clock: StageClock
    time_left: TimeLeft
    start: ResumePoint

    def make_chunks(
        self, encoder_cache: EncodingStore, on_progress: OnProgress | None, on_growth: OnGrowth | None
    ) -> None:
        """Generate and save the missing chunks. Their conditions are freed before the video is judged."""
        conditions = self.pipeline.encode(self.inputs, self.resolved, self.clock, encoder_cache)
        generator = ChunkGenerator(self.pipeline, conditions, self.resolved, self.clock, encoder_cache)
        generator.fp16_overflowed = self.start.fp16_overflowed
        on_saved = partial(on_growth, self.run.path) if on_growth else lambda: None
        with GrowingVideo(self.run.growing_video, self.inputs.soundtrack, self.resolved.frames) as growing:
            for chunk in self.resolved.chunks[: self.start.finished]:
                growing.append(self.run.chunks.silent_video(chunk))
            with ChunkWriter(self.run.chunks, growing, on_saved) as writer:
                self._make_missing(generator, writer, on_progress)
            growing.finish()
        if growing.first_written and not self.start.finished:
            self.clock.record_first_frame(growing.first_written)

    def _make_missing(
        self, generator: ChunkGenerator, writer: ChunkWriter, on_progress: OnProgress | None
    ) -> None:
        """Generate each missing chunk from the last frames of the previous one, held in memory."""
        chunks, steps = self.resolved.chunks, self.resolved.sampling.steps
        overlap, previous = self.resolved.request.motion_frame, self.start.last_frames
        for chunk in chunks[self.start.finished :]:
            on_step = _StepReport(chunk, len(chunks), steps, self.time_left, on_progress, writer)
            started = time.perf_counter()
            with writer.open(chunk) as saving:
                on_frames = partial(_add_frames, saving, self.time_left)
                generated = generator.generate(chunk, previous, on_step=on_step, on_frames=on_frames)
                self.pipeline.check_files()
                saving.finish(generated, time.perf_counter() - started)
            self.time_left.end_chunk()
            previous = generated.frames[:, -overlap:].clone()
            del generated, saving, on_frames  # frees the chunk's frames

    def finish(self, origin: InputDigests) -> GenerationResult:
        """Join the chunks, judge the video, then write the contact sheet and, last, the record.

        Raises:
            OutputError: the video is not as long as planned.
        """
        run, resolved, clock = self.run, self.resolved, self.clock
        path = self._join_chunks()
        result = GenerationResult(
            video_path=path,
            duration_seconds=resolved.frames / FRAMES_PER_SECOND,
            resolution="{}x{}".format(*resolved.frame_size),
            frame_count=resolved.frames,
            metadata=_metadata(run),
        )
        judgement = self._judge(path, origin)
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
                "kernels": self.pipeline.kernels(),
                "inputs": origin.media,
                "weights": origin.weights,
                "loras": origin.loras,
                "video_sha256": digests.sha256_of_file(path),
                "environment": environment.describe(),
                "chunks_of_earlier_calls": self.start.finished,  # `stages` does not include these
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

    def _join_chunks(self) -> Path:
        """Join the chunks under the sound track."""
        with self.clock("mux"):
            pictures, path = self.run.chunks.silent_videos(self.resolved.chunks), self.run.new_video_path()
            request = {VIDEO_METADATA_KEY: self.resolved.request.to_yaml(versioned=True)}
            video.join_videos(path, pictures, self.inputs.soundtrack, request)
        return path

    def _judge(self, path: Path, origin: InputDigests) -> Judgement:
        with self.clock("measure"):
            subject = _subject(self.resolved, self.inputs, origin, self.run.chunks.luma_changes())
            return judge_video(
                path, subject, self.pipeline.image_features, CONTACT_SHEET_FRAMES, self.time_left.measured
            )


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
