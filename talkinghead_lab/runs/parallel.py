"""One run on several GPUs of one host, started by torchrun: they share the forwards of every step.

Every process encodes, samples and decodes; the first writes the run, the others a copy that is thrown away.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from talkinghead_lab.models.dit.sequence_parallel import SequenceParallelGroup
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.pipeline.pipeline import Pipeline
from talkinghead_lab.runs.generate import GenerationResult, generate


def is_parallel() -> bool:
    """Whether torchrun started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def generate_in_parallel(params: GenerationParams, run_dir: Path | None) -> GenerationResult | None:
    """Generate with all processes that torchrun started; the first returns the result, the others None.

    Args:
        run_dir: the run's folder; an unfinished run is continued. Unset: a new one, named by the first.
    """
    with _processes(params) as (share, own):
        pipeline = Pipeline.load(own)
        pipeline.dit.group = share
        if share.rank == 0:
            dist.barrier()  # until the others have copied what is finished
            return generate(params, run_dir, pipeline=pipeline)
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "run"
            if run_dir is not None and run_dir.is_dir():
                shutil.copytree(run_dir, copy)
            dist.barrier()
            generate(params, copy, pipeline=pipeline, show_progress=False)
    return None


@contextmanager
def _processes(params: GenerationParams) -> Iterator[tuple[SequenceParallelGroup, GenerationParams]]:
    """Join the other processes; gives this one's share, and the request on its own GPU."""
    on_gpus = params.device != "cpu" and torch.cuda.is_available()
    if on_gpus:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
        params = params.replace(device=device)
    dist.init_process_group("nccl" if on_gpus else "gloo")
    try:
        yield SequenceParallelGroup.of_all_processes(), params
    finally:
        dist.destroy_process_group()
