"""From a job to its answer: the model on demand, the run in its own folder, the checks, and tidying up."""

import gc
import importlib
import json
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from talkinghead_lab.foundation.files import atomic_path
from talkinghead_lab.foundation.imports import gc_disabled
from talkinghead_lab.foundation.snapshot import Snapshot
from talkinghead_lab.media.acceptance import MediaLimits, check_media
from talkinghead_lab.media.isolated import IsolatedCall
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.runs.jobs import INPUTS
from talkinghead_lab.service.inputs import copy_allowed
from talkinghead_lab.service.jobs import QueuedJob
from talkinghead_lab.service.problems import without_paths
from talkinghead_lab.service.retention import FINISHED, OutputFolder
from talkinghead_lab.service.settings import ServiceSettings

if TYPE_CHECKING:
    from talkinghead_lab.media.inputs import Inputs
    from talkinghead_lab.pipeline.pipeline import Pipeline

LOG = logging.getLogger(__name__)

BYTES_PER_WEIGHT = 2  # the transformer is held in bf16 on a GPU
IMPORTS = threading.Lock()


class Generator:
    """Makes videos with networks that are loaded when first needed. Not for two threads at once."""

    def __init__(self, settings: ServiceSettings):
        self.settings, self.output = settings, OutputFolder(settings.output_dir)
        self._call = IsolatedCall(settings.media_seconds, settings.media_mib)
        self._limits = MediaLimits(settings.largest_pixels, settings.longest_seconds)
        self._pipeline: Pipeline | None = None

    @property
    def model_loaded(self) -> bool:
        """Whether the networks are in memory."""
        return self._pipeline is not None

    def prepare(self) -> None:
        """Make the first file as quick to check as any other."""
        self._call(bool)

    def check(self, job_id: str, params: GenerationParams) -> None:
        """Copy and decode the files of a request and keep nothing; the job does so again when its turn comes.

        Raises:
            Problem, MediaError, OutputError: a file cannot be used or copied.
        """
        with self._copies(job_id) as copy:
            copies = {name: copy(name, path) for name, path in params.media.items()}
            self._call(check_media, {name: file.path for name, file in copies.items()}, self._limits)
            del copies

    def plan(self, job_id: str, params: GenerationParams, people: bool = False) -> dict[str, Any]:
        """What a request would do, with the fields of `PlanAnswer`; its files are copied, read and removed.

        Args:
            job_id: names the folder of the copies.
            params: the request.
            people: look for people in the picture, too.

        Raises:
            Problem, TalkingHeadError: the request cannot be used, or nobody is found.
        """
        _import_libraries()
        from talkinghead_lab.pipeline.people import boxes_of_people
        from talkinghead_lab.pipeline.request import resolve
        from talkinghead_lab.pipeline.request_media import read_inputs

        with self._copies(job_id) as copy:
            inputs = read_inputs(params, copy, call=self._call, limits=self._limits)
            resolved = resolve(params, inputs)
            steps = params.diffusion_steps * len(resolved.chunks)
            return {
                "frame_size": resolved.frame_size,
                "picture": inputs.reference.size,
                "crop": resolved.kept,
                "seconds": resolved.seconds,
                "frames": resolved.frames,
                "chunks": len(resolved.chunks),
                "steps": steps,
                "forward_passes": resolved.forward_passes,
                "skippable_passes": resolved.skippable_passes,
                "warnings": list(map(without_paths, resolved.warnings)),
                "people": boxes_of_people(inputs.reference.frame_at(0.0)) if people else None,
            }

    @contextmanager
    def _copies(self, job_id: str) -> Iterator[Callable[[str, str], Snapshot]]:
        """Yield what copies a file of a request, given its field and path; copies last for the block."""
        try:
            with self.output.claimed(job_id) as folder:
                yield partial(copy_allowed, self.settings, folder / INPUTS)
        finally:
            self.output.remove(job_id)

    def __call__(self, job: QueuedJob) -> dict[str, Any]:
        """Generate the video of a job; the answer has the fields of `GenerationResult`.

        Raises:
            TalkingHeadError: as `generate`.
            Problem: an input was replaced since it was accepted, and must not be read now.
        """
        _import_libraries()
        from talkinghead_lab.pipeline.request import resolve
        from talkinghead_lab.pipeline.request_media import read_inputs
        from talkinghead_lab.runs.folder import read_record
        from talkinghead_lab.runs.generate import generate

        with self.output.claimed(job.id) as folder:
            copy = partial(copy_allowed, self.settings, folder / INPUTS)
            inputs = read_inputs(job.params, copy, call=self._call, limits=self._limits)
            job.warnings = tuple(map(without_paths, resolve(job.params, inputs).warnings))
            params = self._within_budget(job.params, inputs)
            result = generate(
                params,
                folder,
                inputs=inputs,
                pipeline=self._loaded(params, inputs),
                on_progress=job.report,
                time_left=job.time_left,
                show_progress=False,
            )
            record = read_record(folder)
            checks = record["checks"]
            job.first_frame = (record.get("time_to_first_frame") or {}).get("seconds")
            with atomic_path(folder / FINISHED) as temporary:
                temporary.write_text(json.dumps(checks, indent=1), encoding="utf-8")
        answer = result.to_json()
        told = {"checks": checks, "warnings": list(job.warnings)}
        return answer | {"metadata": answer["metadata"] | told}

    def after(self, job: QueuedJob, error: BaseException | None) -> None:
        """Give back what the run held: GPU memory, and the folder where the run failed.

        A job that has not started holds nothing but uploads, and may end in the event loop, which must not
        wait.
        """
        if error is not None:
            self.output.remove_uploads(job.id)
        if job.started is None:
            return
        if error is not None:
            _forget_frames(error)
            if job.problem is not None and job.problem.status == 503:
                self.unload()
            self.output.remove(job.id)
        _free_memory()
        self.tidy()

    def unload(self) -> None:
        """Drop the networks."""
        if self._pipeline is not None:
            self._pipeline.release()
            self._pipeline = None
            LOG.info("model dropped")
        _free_memory()
        gc.freeze()  # what is left are modules, which stay

    def tidy(self) -> None:
        """Keep the output folder within its bounds."""
        try:
            removed = self.output.tidy(self.settings.keep_hours * 3600, self.settings.keep_gib * 2**30)
        except OSError as error:
            LOG.warning("the output folder could not be tidied", extra={"reason": error.strerror})
        else:
            if removed:
                LOG.info("runs removed", extra={"runs": removed})

    def _loaded(self, params: GenerationParams, inputs: "Inputs") -> "Pipeline":
        from talkinghead_lab.pipeline.pipeline import Pipeline
        from talkinghead_lab.pipeline.request import load_settings

        if self._pipeline is not None and not self._pipeline.fits(load_settings(params)):
            self.unload()  # a weight file was replaced
        if self._pipeline is None:
            self._pipeline = Pipeline.load(params, inputs)
            LOG.info("model loaded")
        return self._pipeline

    def _within_budget(self, params: GenerationParams, inputs: "Inputs") -> GenerationParams:
        """The request with the smallest budget that runs it, plus room for weights that are to stay."""
        kept = self.settings.num_persistent_param_in_dit
        if kept is None:
            return params
        from talkinghead_lab.foundation.devices import GIB
        from talkinghead_lab.pipeline.plan import planned
        from talkinghead_lab.pipeline.request import resolve

        needs = self._pipeline.requirements if self._pipeline is not None else planned
        smallest = needs(resolve(params, inputs)).smallest
        return params.replace(vram_budget_gib=(smallest + kept * BYTES_PER_WEIGHT) / GIB)


@cache
def gpu_available() -> bool:
    """Whether there is a GPU that can be used. The first call imports torch, which takes seconds."""
    import torch

    return torch.cuda.is_available()


def _import_libraries() -> None:
    """Import what plans and jobs need: too slow for the start of the service.

    Looking for garbage in all modules takes a third of a second, on a busy machine several times that, and no
    other thread runs meanwhile, not even the one that answers health checks. So the collector is to leave the
    modules out, before networks are built: these are released one day, and have to be found then.
    """
    with IMPORTS:  # a plan and the first job may need them at once
        _import_once()


@cache
def _import_once() -> None:
    with gc_disabled():
        from talkinghead_lab.runs import generate  # noqa: F401
        from talkinghead_lab.weights.transformer import BACKGROUND_IMPORTS

        for name in BACKGROUND_IMPORTS:
            importlib.import_module(name)
        gc.freeze()


def _forget_frames(error: BaseException) -> None:
    """Let go of the failed run's tensors, which the frames of its traceback hold."""
    current: BaseException | None = error
    while current is not None:
        current.__traceback__, current = None, current.__cause__ or current.__context__


def _free_memory() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
