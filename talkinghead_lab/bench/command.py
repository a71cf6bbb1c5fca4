"""Measure how fast this machine runs the networks, and how close that is to its roofline."""

import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch.multiprocessing.spawn import ProcessException

from talkinghead_lab.bench.decode import measure_decode
from talkinghead_lab.bench.forwards import measure_forward_passes, measure_steps
from talkinghead_lab.bench.gguf import measure_gguf
from talkinghead_lab.bench.jobs import add_jobs
from talkinghead_lab.bench.load import measure_load
from talkinghead_lab.bench.memory import measure_memory
from talkinghead_lab.bench.offload import measure_offload, measure_small_host
from talkinghead_lab.bench.peers.measure import measure_peers
from talkinghead_lab.bench.roofline import measure_attention, measure_copies, measure_matmuls
from talkinghead_lab.bench.rows import Results, machine_description
from talkinghead_lab.bench.several_gpus import measure_several_gpus
from talkinghead_lab.bench.sizes import SIZES, Size
from talkinghead_lab.bench.table import markdown, read_rows
from talkinghead_lab.bench.two_speakers import measure_two_speakers
from talkinghead_lab.bench.videos import measure_videos
from talkinghead_lab.foundation.command_line import CommandParser

PARTS: dict[str, Callable[[Size, torch.device, Results], None]] = {
    "products": measure_matmuls,
    "attention": measure_attention,
    "copies": measure_copies,
    "forward": measure_forward_passes,
    "two-speakers": measure_two_speakers,
    "gguf": measure_gguf,
    "step": measure_steps,
    "decode": measure_decode,
    "several-gpus": measure_several_gpus,
    "peers": measure_peers,
    "memory": measure_memory,
    "jobs": add_jobs,
}
# These parts load a checkpoint of random weights from disk.
FROM_FILES: dict[str, Callable[[Size, torch.device, Results, Path], None]] = {
    "load": measure_load,
    "offload": measure_offload,
    "small-host": measure_small_host,
    "videos": measure_videos,
}

# Out of memory, an incompatible library, a full disk; and any of these in a child process.
FAILURES = (RuntimeError, ImportError, OSError, ProcessException)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the requested parts; a part that fails is reported and the rest still run."""
    names = [*PARTS, *FROM_FILES]
    parser = CommandParser(prog="python -m talkinghead_lab.bench", description=__doc__)
    parser.add_argument(
        "--only", nargs="+", choices=names, default=names, help="parts to measure; default: all"
    )
    parser.add_argument(
        "--size", choices=SIZES, help="sizes of the networks; default: released on a GPU, tiny on a CPU"
    )
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda or cpu"
    )
    parser.add_argument("--out", type=Path, help="JSON file of results; its existing rows are kept")
    parser.add_argument(
        "--weights",
        type=Path,
        help="folder of the random checkpoint, created if missing (51 GB at released sizes) and kept; "
        "default: a temporary folder",
    )
    parser.add_argument("--table", type=Path, help="print this JSON file of results as Markdown and exit")
    options = parser.parse_args(arguments)
    if options.table is not None:
        print(markdown(read_rows(options.table)))
        return 0
    device = torch.device(options.device)
    size = SIZES[options.size or ("released" if device.type == "cuda" else "tiny")]
    results = Results(options.out, machine_description(device))
    failed = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.weights or Path(temporary) / "weights"
        parts: dict[str, Callable[[Size, torch.device, Results], None]] = dict(PARTS)
        parts |= {name: partial(part, folder=folder) for name, part in FROM_FILES.items()}  # type: ignore[call-arg]
        for name in options.only:
            try:
                parts[name](size, device, results)
            except FAILURES as error:
                failed.append(name)
                print(f"{name}: {type(error).__name__}: {str(error)[:500]}", file=sys.stderr, flush=True)
            if device.type == "cuda":
                torch.cuda.empty_cache()
    return 1 if failed else 0
