"""Forward passes and decoding shared by all GPUs of the host, compared with one GPU.

Two processes stand in on a CPU.
"""

import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from talkinghead_lab.bench.forwards import ForwardPass, relative_error, use_fp8, velocity
from talkinghead_lab.bench.roofline import fastest_attention
from talkinghead_lab.bench.rows import Results, Row, seconds_of
from talkinghead_lab.bench.sizes import Size, random_conditions, random_vae
from talkinghead_lab.foundation.devices import decode_type
from talkinghead_lab.models.dit.sequence_parallel import SequenceParallelGroup
from talkinghead_lab.sampling.chunk_sampling import sample_chunk
from talkinghead_lab.sampling.config import SamplingConfig
from talkinghead_lab.sampling.decoding import decode_chunk
from talkinghead_lab.weights.quantization import has_fp8

STEPS = {
    "a step of two forwards": SamplingConfig(1, shift=7.0, text_scale=1.0, audio_scale=2.0),
    "a step of three forwards": SamplingConfig(1, shift=7.0, text_scale=5.0, audio_scale=4.0),
}
# Seconds and what came out, by name.
Outcomes = dict[str, tuple[float, Tensor]]


def measure_several_gpus(size: Size, device: torch.device, results: Results) -> None:
    """Measure bf16 and fp8, compiled; the roofline is one GPU's time divided by the number of GPUs."""
    count = torch.cuda.device_count() if device.type == "cuda" else 2
    if count < 2:
        return
    with tempfile.TemporaryDirectory() as folder:
        measured = Path(folder) / "measured.json"
        arguments = count, size, device.type, fastest_attention(results, True, device), measured
        spawn(_measure, arguments, nprocs=count)
        for name, (alone, shared, error, exchange) in json.loads(measured.read_text()).items():
            results.add(Row(f"several GPUs: {name} by one", alone))
            conditions = {"speed_up": alone / shared, "relative_error": error, "exchange": exchange}
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
    dtype = torch.bfloat16 if kind == "cuda" else torch.float32
    measuring = _Measuring(size, device, dtype, attention)
    alone = measuring.outcomes(SequenceParallelGroup())
    group = SequenceParallelGroup.of_all_processes(device)
    shared = measuring.outcomes(group)
    if kind == "cpu" or has_fp8(device):
        use_fp8(measuring.forward.dit)
        name = "a forward, fp8"
        alone[name] = measuring.forward_pass(SequenceParallelGroup())
        shared[name] = measuring.forward_pass(group)
    if rank == 0:
        assert group.exchange
        rows = {
            name: [alone[name][0], seconds, relative_error(outcome, alone[name][1]), group.exchange.name]
            for name, (seconds, outcome) in shared.items()
        }
        measured.write_text(json.dumps(rows))
    dist.destroy_process_group()


class _Measuring:
    """The networks of one process."""

    def __init__(self, size: Size, device: torch.device, dtype: torch.dtype, attention: str) -> None:
        self.device = device
        self.forward = ForwardPass(size, device, dtype)
        self.forward.dit.use_attention(attention, device)
        self.forward.dit.compile_blocks()
        self.two_speakers = random_conditions(self.forward.dit, size.grid, device, speakers=2)
        self.vae = random_vae(size.vae, device).set_decoder_dtype(decode_type(dtype, device))

    @torch.inference_mode()
    def outcomes(self, group: SequenceParallelGroup) -> Outcomes:
        """Forward passes, one step per guidance mode, and decoding, on all processes of a group."""
        dit, latent, conditions = self.forward.dit, self.forward.latent, self.forward.conditions
        self.vae.group = group
        measured = {"a forward": self.forward_pass(group)}
        works: dict[str, Callable[[], Tensor]] = {
            "a forward for two speakers": partial(velocity, dit, latent, self.two_speakers),
            "decoding": partial(decode_chunk, self.vae, latent),
        }
        measured |= {name: self._timed(work) for name, work in works.items()}
        for name, config in STEPS.items():
            step = partial(sample_chunk, dit, latent, conditions, config)
            measured[name] = self._timed(step, warm_up=False)  # its forward passes are warm
        return measured

    def forward_pass(self, group: SequenceParallelGroup) -> tuple[float, Tensor]:
        """One forward pass for one speaker, on all processes of a group."""
        self.forward.dit.group = group
        return self._timed(self.forward)

    def _timed(self, work: Callable[[], Tensor], warm_up: bool = True) -> tuple[float, Tensor]:
        outcomes: list[Tensor] = []
        repeats, warm_ups = (2, 1) if warm_up else (1, 0)
        seconds = seconds_of(lambda: outcomes.append(work()), self.device, repeats, warm_ups)
        return seconds, outcomes[-1]
