"""One run on several GPUs of one host, started by torchrun: they share the forward passes of every step.

Every process encodes, samples and decodes. The first writes the run, the others a temporary copy.
"""

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from talkinghead_lab.foundation.devices import pick_device
from talkinghead_lab.models.dit.sequence_parallel import SequenceParallelGroup
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.pipeline.pipeline import Pipeline
from talkinghead_lab.runs.generate import GenerationResult, generate


def is_parallel() -> bool:
    """Whether torchrun started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def generate_in_parallel(params: GenerationParams, run_dir: Path | None) -> GenerationResult | None:
    """Generate with all processes that torchrun started. The first returns the result, the others None.

    Args:
        run_dir: the run's folder; an unfinished run resumes. None: a new one, named by the first process.
    """
    with _process_group(params) as share:
        pipeline = Pipeline.load(params)
        pipeline.dit.group = share
        if share.rank == 0:
            dist.barrier()  # the others have copied the finished chunks
            return generate(params, run_dir, pipeline=pipeline)
        logging.getLogger("talkinghead_lab").setLevel(logging.ERROR)  # the first process warns
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "run"
            if run_dir is not None and run_dir.is_dir():
                shutil.copytree(run_dir, copy)
            dist.barrier()
            generate(params, copy, pipeline=pipeline, show_progress=False)
    return None


@contextmanager
def _process_group(params: GenerationParams) -> Iterator[SequenceParallelGroup]:
    """Join the other processes; each uses its own GPU."""
    device = pick_device(params.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield SequenceParallelGroup.of_all_processes()
    finally:
        dist.destroy_process_group()
