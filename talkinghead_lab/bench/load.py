"""Time from process start to the first forward pass, part by part, and a plain read of the same files."""

import time
from pathlib import Path

import torch

from talkinghead_lab.bench.offload import add_profile
from talkinghead_lab.bench.rows import Results, Row
from talkinghead_lab.bench.sizes import Size
from talkinghead_lab.bench.whole_job import request_of, run_in_process
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.pipeline.request import checkpoint_files
from talkinghead_lab.weights.locating import weight_files

READ, LOADED = "load: plain read of the files", "load: all networks on the device"
BEGUN, STEP = "load: process start to first forward", "load: a step of one forward, resident"
GIGA = 1e9
# The parts of the time from process start to the first velocity, each from the stamp before to its own.
PARTS = {
    "imports": "imported",
    "transformer read and placed": "transformer",
    "other networks read and placed": "loaded",
    "prompt, recording and picture encoded": "first_forward",
    "first forward pass": "first_velocity",
}
PIECE_BYTES = 2**26
MAX_READ_BYTES = 2**33  # enough to measure the rate


def measure_load(size: Size, device: torch.device, results: Results, folder: Path) -> None:
    """Load every network and generate one chunk in its own process, with the files in the page cache."""
    request = request_of(size, device, folder)
    params = GenerationParams(audio_path="none", image_path="none", **request)
    files = list(weight_files(checkpoint_files(params)).values())
    total, rate = sum(file.stat().st_size for file in files), _read_rate(files)
    results.add(Row(READ, rate / GIGA, "GB/s"))
    loaded, made = run_in_process(request, [{"frame_size": f"{size.grid.width}x{size.grid.height}"}])
    if made["error"]:
        raise RuntimeError(made["error"])
    start_times = made["begun"]
    seconds = start_times["loaded"] - start_times["imported"]
    conditions = {
        **{"gb": total / GIGA, "gbps": total / seconds / GIGA},
        **{key: loaded[key] for key in ("anonymous_host_gib", "resident_host_gib", "driver_gib")},
    }
    results.add(Row(LOADED, seconds, floor=total / rate, conditions=conditions))
    results.add(Row(BEGUN, start_times["first_forward"], conditions=start_times))
    before = 0.0
    for part, stamp in PARTS.items():
        results.add(Row(f"load: start, {part}", start_times[stamp] - before))
        before = start_times[stamp]
    conditions = {"driver_gib": made["driver_gib"], "job": made["seconds"]}
    results.add(Row(STEP, min(made["steps"]), peak_gib=made["peak_gpu_gib"], conditions=conditions))
    add_profile(results, device, f"load: {size.grid.width}x{size.grid.height}, resident", made)


def _read_rate(files: list[Path]) -> float:
    """Bytes per second when reading the files one after another into one buffer."""
    buffer, read, started = memoryview(bytearray(PIECE_BYTES)), 0, time.perf_counter()
    for file in files:
        with file.open("rb", buffering=0) as opened:
            while read < MAX_READ_BYTES and (count := opened.readinto(buffer)):
                read += count
    return read / (time.perf_counter() - started)
