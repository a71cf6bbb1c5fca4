"""One run on several GPUs of one host, started by torchrun: they share the forward passes of every step.

The first process encodes texts and recordings for all, and alone writes. All sample, and two decode together.
"""

import logging
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from talkinghead_lab.errors import InvalidRequest, MediaError
from talkinghead_lab.foundation.devices import pick_device
from talkinghead_lab.foundation.parent_process import end_with_parent
from talkinghead_lab.models.dit.sequence_parallel import SequenceParallelGroup
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.pipeline.chunk_generator import ChunkGenerator
from talkinghead_lab.pipeline.pipeline import Pipeline
from talkinghead_lab.pipeline.request import resolve
from talkinghead_lab.pipeline.request_media import read_inputs
from talkinghead_lab.runs.folder import with_drawn_seed
from talkinghead_lab.runs.generate import ResumePoint, generate
from talkinghead_lab.runs.origin import seen_files
from talkinghead_lab.runs.result import GenerationResult

# The first process saves chunks and judges the video while the others wait. If a process fails, torchrun ends
# all, so no shorter time is needed.
LONGEST_WAIT = timedelta(days=1)

# In which a process with an error reports it and ends.
LAST_SECONDS = 5

# Signals that torchrun, terminals and job schedulers send to end a process.
ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def is_parallel() -> bool:
    """Whether torchrun started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def generate_in_parallel(params: GenerationParams, run_dir: Path | None) -> GenerationResult | None:
    """Generate with all processes that torchrun started. The first returns the result, the others None.

    The first alone has the run's folder. It tells the others at which chunk the run goes on, and from which
    frames, so that all run the same forward passes.

    Args:
        run_dir: the run's folder; an unfinished run resumes. None: a new one, named by the first process.
    """
    with _process_group(params) as share:
        params = share.broadcast(with_drawn_seed(params, run_dir))
        pipeline = Pipeline.load(params, encodes=share.rank == 0)
        pipeline.dit.group = pipeline.vae.group = share
        _check_queries(pipeline.dit.kernels(), share)
        result = None
        if share.rank == 0:
            result = generate(params, run_dir, pipeline=pipeline)
        else:
            logging.getLogger("talkinghead_lab").setLevel(logging.ERROR)  # the first process warns
            _follow(params, pipeline)
        dist.barrier()  # the first still judges the video
    return result


def _check_queries(kernels: Mapping[str, Any], share: SequenceParallelGroup) -> None:
    """Check that all processes exchange queries of one type; GPUs of two kinds may run different kernels.

    Raises:
        InvalidRequest: they do not.
    """
    attention, first = kernels["self_attention"], share.broadcast(kernels)
    if any(kernels[name] != first[name] for name in ("self_attention", "fused_fp8_layers")) and (
        "flash3_fp8" in (attention, first["self_attention"])
    ):
        raise InvalidRequest(
            "the GPUs of the run cannot exchange queries, because only some quantise them",
            received=f"attention {attention} on GPU {share.rank}, {first['self_attention']} on the first",
            remedy="Set `attention: auto`, or use GPUs of one kind.",
        )


def _follow(params: GenerationParams, pipeline: Pipeline) -> None:
    """Generate the chunks that the first process generates, and keep nothing.

    Raises:
        MediaError: this process reads other files than the first.
    """
    inputs = read_inputs(params)
    resolved = resolve(params, inputs)
    pipeline = pipeline.serving(resolved)
    start: ResumePoint | None = pipeline.dit.group.broadcast(None)
    if start is None:
        return
    if start.seen_files != seen_files(inputs, resolved.networks):
        raise MediaError("the processes of the run read different files", remedy="Leave them as they are.")
    generator = ChunkGenerator(pipeline, pipeline.encode(inputs, resolved), resolved)
    previous, generator.fp16_overflowed = start.last_frames, start.fp16_overflowed
    for chunk in resolved.chunks[start.finished :]:
        previous = generator.generate(chunk, previous).frames[:, -params.motion_frame :].clone()


@contextmanager
def _process_group(params: GenerationParams) -> Iterator[SequenceParallelGroup]:
    """Join the other processes; each uses its own GPU."""
    end_with_parent()  # torchrun cannot pass on SIGKILL
    device = pick_device(params.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with _ended_by_signals(), _ended_after_errors():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=LONGEST_WAIT)
        yield SequenceParallelGroup.of_all_processes(device)
        dist.destroy_process_group()


@contextmanager
def _ended_after_errors() -> Iterator[None]:
    """After an error in the block, this process ends within seconds, whatever its GPU is waiting for.

    torchrun ends the others once it has ended. But libraries wait for the GPU before they free memory, and
    the GPU may wait for another process.
    """
    try:
        yield
    except BaseException:
        signal.alarm(LAST_SECONDS)  # ends the process, as Python has no handler for it
        raise


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """In the block, and after an error in it, a signal ends this process at once, without Python's handlers.

    Those run in the main thread only. If that waits on its GPU for a process that is gone, they never run,
    and torchrun kills the process only after 30 seconds. A file has its name only once it is complete, so
    the run resumes as after Ctrl-C.
    """
    handlers = {number: signal.getsignal(number) for number in ENDINGS}
    for number, handler in handlers.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
