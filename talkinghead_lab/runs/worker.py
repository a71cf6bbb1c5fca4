"""Runs jobs one after another with networks that stay loaded."""

import json
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from talkinghead_lab.foundation.files import atomic_path
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.pipeline.encoder_cache import EncoderCache
from talkinghead_lab.pipeline.pipeline import Pipeline
from talkinghead_lab.runs.generate import generate

OF_LOADING = (
    "checkpoint",
    "ckpt_dir",
    "wav2vec_dir",
    "infinitetalk_dir",
    "loras",
    "precision",
    "attention",
    "compile_blocks",
    "device",
    "vram_budget_gib",
    "speakers",
)


@dataclass(frozen=True)
class Failure:
    """Why a cell failed: the error in a line, and where it came from."""

    error: str
    details: str = ""


@dataclass(frozen=True)
class Job:
    """One cell to run, and where."""

    params: GenerationParams
    run_dir: Path

    @property
    def failure(self) -> Path:
        """Where it is written down that, and why, the cell failed."""
        return self.run_dir.with_name(f"{self.run_dir.name}.error.json")

    def record_failure(self, failure: Failure) -> None:
        """Write down why the cell failed."""
        self.failure.parent.mkdir(parents=True, exist_ok=True)
        content = json.dumps(asdict(failure), indent=1, ensure_ascii=False)
        with atomic_path(self.failure, overwrite=True) as temporary:
            temporary.write_text(content + "\n", encoding="utf-8")


@dataclass
class Worker:
    """Runs one job after another; networks are loaded once for all jobs that agree on them."""

    loaded_for: tuple[Any, ...] | None = field(default=None, init=False)
    pipeline: Pipeline | None = field(default=None, init=False)

    def run(self, job: Job) -> None:
        """Run a job; an error is written down and ends this job only."""
        failure = self.attempt(job)
        if failure is not None:
            job.record_failure(failure)

    def attempt(self, job: Job) -> Failure | None:
        """Run a job and say why it failed, if it did."""
        try:
            pipeline = self.load(job.params)
            cache = EncoderCache.of(job.params, pipeline.device)
            generate(job.params, job.run_dir, pipeline=pipeline, encoder_cache=cache, show_progress=False)
        except Exception as error:
            return Failure(f"{type(error).__name__}: {error}", traceback.format_exc())
        return None

    def load(self, params: GenerationParams) -> Pipeline:
        """The networks of a request, which stay loaded until others are asked for."""
        wanted = tuple(getattr(params, name) for name in OF_LOADING)
        if self.pipeline is None or self.loaded_for != wanted:
            self.pipeline = None  # gives its memory back before the next is loaded
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self.pipeline, self.loaded_for = Pipeline.load(params), wanted
        return self.pipeline
