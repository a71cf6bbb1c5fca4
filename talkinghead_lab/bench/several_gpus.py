"""Forward passes shared by all GPUs of the host, compared with one GPU; two processes stand in on a CPU."""

import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from talkinghead_lab.bench.forwards import ForwardPass, relative_error, velocity
from talkinghead_lab.bench.roofline import fastest_attention
from talkinghead_lab.bench.rows import Results, Row, seconds_of
from talkinghead_lab.bench.sizes import Size, random_conditions
from talkinghead_lab.models.dit.sequence_parallel import SequenceParallelGroup
from talkinghead_lab.sampling.config import SamplingConfig
from talkinghead_lab.sampling.euler import sample_chunk

STEPS = {
    "a step of two forwards": SamplingConfig(1, shift=7.0, text_scale=1.0, audio_scale=2.0),
    "a step of three forwards": SamplingConfig(1, shift=7.0, text_scale=5.0, audio_scale=4.0),
}


def measure_several_gpus(size: Size, device: torch.device, results: Results) -> None:
    """Measure bf16, compiled; the roofline is one GPU's time divided by the number of GPUs."""
    count = torch.cuda.device_count() if device.type == "cuda" else 2
    if count < 2:
        return
    with tempfile.TemporaryDirectory() as folder:
        measured = Path(folder) / "measured.json"
        arguments = count, size, device.type, fastest_attention(results, True, device), measured
        spawn(_measure, arguments, nprocs=count)
        for name, (alone, shared, error) in json.loads(measured.read_text()).items():
            results.add(Row(f"several GPUs: {name} by one", alone))
            conditions = {"speed_up": alone / shared, "relative_error": error}
            name = f"several GPUs: {name} shared by {count}"
            results.add(Row(name, shared, floor=alone / count, conditions=conditions))


def _measure(rank: int, count: int, size: Size, kind: str, attention: str, measured: Path) -> None:
    """Measure in one of the processes; rank 0 writes the results."""
    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if kind == "cuda" else "gloo"
    dist.init_process_group(
        backend, f"file://{measured.with_suffix('.meeting')}", rank=rank, world_size=count
    )
    forward = ForwardPass(size, device, torch.bfloat16 if kind == "cuda" else torch.float32)
    forward.dit.use_attention(attention, device)
    forward.dit.compile_blocks()
    alone = _seconds_and_outcomes(forward)
    forward.dit.group = SequenceParallelGroup.of_all_processes(device)
    shared = _seconds_and_outcomes(forward)
    if rank == 0:
        rows = {
            name: [alone[name][0], seconds, relative_error(outcome, alone[name][1])]
            for name, (seconds, outcome) in shared.items()
        }
        measured.write_text(json.dumps(rows))
    dist.destroy_process_group()


@torch.inference_mode()
def _seconds_and_outcomes(forward: ForwardPass) -> dict[str, tuple[float, Tensor]]:
    """Seconds and output of forward passes for one and two speakers, and of a step per guidance mode."""
    two = random_conditions(forward.dit, forward.size.grid, forward.device, speakers=2)
    works: dict[str, Callable[[], Tensor]] = {"a forward": forward}
    works["a forward for two speakers"] = partial(velocity, forward.dit, forward.latent, two)
    works |= {
        name: partial(sample_chunk, forward.dit, forward.latent, forward.conditions, config)
        for name, config in STEPS.items()
    }
    outcomes = {name: work() for name, work in works.items()}
    return {
        name: (seconds_of(work, forward.device, repeats=2, warm_up=0), outcomes[name])
        for name, work in works.items()
    }
