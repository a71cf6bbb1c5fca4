"""One forward that all GPUs of the host share, beside one GPU's; without GPUs, two processes share it."""

import json
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from talkinghead_lab.bench.ceilings import best_kind
from talkinghead_lab.bench.forwards import Forward, relative_error
from talkinghead_lab.bench.rows import Results, Row, seconds_of
from talkinghead_lab.bench.sizes import Size
from talkinghead_lab.models.sequence_parallel import TokenShare

ALONE = "several GPUs: a forward by one"


def measure_several_gpus(size: Size, device: torch.device, results: Results) -> None:
    """bf16 and compiled; the floor is an even share of what one GPU takes."""
    count = torch.cuda.device_count() if device.type == "cuda" else 2
    if count < 2:
        return
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "told.json"
        arguments = count, size, device.type, best_kind(results, True, device), told
        spawn(_measure, arguments, nprocs=count)
        alone, shared, error = json.loads(told.read_text())
    results.add(Row(ALONE, alone))
    conditions = {"relative_error": error}
    results.add(Row(f"several GPUs: shared by {count}", shared, floor=alone / count, conditions=conditions))


def _measure(rank: int, count: int, size: Size, kind: str, attention: str, told: Path) -> None:
    """What one of the processes does."""
    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if kind == "cuda" else "gloo"
    dist.init_process_group(backend, f"file://{told.with_suffix('.meeting')}", rank=rank, world_size=count)
    forward = Forward(size, device, torch.bfloat16 if kind == "cuda" else torch.float32)
    forward.dit.use_attention(attention, device)
    forward.dit.compile_blocks()
    expected, alone = forward(), seconds_of(forward, device)
    forward.dit.share_tokens(TokenShare.of_all_processes())
    error, shared = relative_error(forward(), expected), seconds_of(forward, device)
    if rank == 0:
        told.write_text(json.dumps([alone, shared, error]))
    dist.destroy_process_group()
