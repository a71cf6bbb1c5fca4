"""What a run costs: seconds and peak memory of every stage, measured, and memory planned ahead."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from talkinghead_lab import checkpoints
from talkinghead_lab.models.vae import VAE
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.pipeline import STORED_TYPES, compute_type, pick_device, read_inputs

GIB = 2**30
PROCESS = Path("/proc/self")

# Least squares on the host peaks of seven runs on a CPU, each in a process of its own, from 160x160 to
# 320x320 pixels and of 41 and 81 frames. The largest error was 3.8 %; an eighth run, of 384x256 pixels and 61
# frames, was foreseen within 1 %. Decoding is the peak, so pixels count for as many channels as the
# autoencoder is wide; that it scales so was not measured.
LIBRARIES_GIB = 0.46
GIB_PER_PIXEL = 6.26e-6
GIB_PER_PIXEL_AND_FRAME = 1.85e-8
FITTED_WIDTH = 16


class StageClock:
    """Seconds and peak memory of every named stage; a stage that comes again adds up.

    `stages` maps a name to `seconds`, `peak_host_gib` (resident memory of the whole process, mapped weight
    files included, as Linux counts it) and, once CUDA is in use, `peak_gpu_gib` (allocated by PyTorch on the
    current device) and `reserved_gpu_gib`. What this machine cannot tell is absent. Stages must not overlap.
    """

    def __init__(self) -> None:
        self.stages: dict[str, dict[str, float]] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        gpu = _gpu_in_use()
        if gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        host = _forget_host_peak()
        started = time.perf_counter()
        try:
            yield
        finally:
            gpu = _gpu_in_use()
            if gpu:
                torch.cuda.synchronize()
            stage = self.stages.setdefault(name, {"seconds": 0.0})
            stage["seconds"] += time.perf_counter() - started
            peaks = {"peak_host_gib": host_peak_gib()} if host else {}
            if gpu:
                peaks["peak_gpu_gib"] = torch.cuda.max_memory_allocated() / GIB
                peaks["reserved_gpu_gib"] = torch.cuda.max_memory_reserved() / GIB
            for measure, gib in peaks.items():
                stage[measure] = max(gib, stage.get(measure, 0.0))


def host_peak_gib() -> float:
    """The largest resident memory of this process since its peak was last forgotten, in GiB."""
    for line in (PROCESS / "status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / GIB
    raise OSError("/proc/self/status has no VmHWM")


def _forget_host_peak() -> bool:
    """Start a new peak of resident memory (proc(5), clear_refs 5); False where the kernel tells none."""
    try:
        (PROCESS / "clear_refs").write_text("5")
        host_peak_gib()
    except OSError:
        return False
    return True


def _gpu_in_use() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_initialized()


@dataclass(frozen=True)
class Plan:
    """The memory that a request will need, in GiB.

    Args:
        device: what it is to run on.
        weights_gib: of each network, as loaded.
        work_gib: what encoding, sampling and decoding take besides, libraries included; None on a GPU, where
            it was not measured.
        needed_gib: weights and work; on a GPU the weights alone, so at least this.
        free_gib: what the device has free now.
        fits: None where it is not known.
    """

    device: str
    weights_gib: dict[str, float]
    work_gib: float | None
    needed_gib: float
    free_gib: float
    fits: bool | None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def __str__(self) -> str:
        verdict = {True: "fits", False: "does not fit", None: "may fit: only the weights are known on a GPU"}
        rows: dict[str, float | None] = {f"weights, {name}": size for name, size in self.weights_gib.items()}
        rows |= {"work": self.work_gib, "needed": self.needed_gib, f"free on {self.device}": self.free_gib}
        lines = [f"{name}: {size:.2f} GiB" for name, size in rows.items() if size is not None]
        return "\n".join([verdict[self.fits], *lines])


def plan(params: GenerationParams) -> Plan:
    """Predict the memory of a request before it runs; no weight is read.

    Raises:
        InvalidRequest: there is no such GPU.
        MediaError, CheckpointError: what the request names is missing or cannot be used.
    """
    device = pick_device(params.device)
    (width, height), networks = read_inputs(params).frame_size, _networks(params, device)
    weights = {name: _size(network) / GIB for name, network in networks.items()}
    if params.precision in STORED_TYPES:
        weights["transformer"] -= _saved_by_storing_in_bytes(networks["transformer"]) / GIB
    needed = sum(weights.values())
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0] / GIB
        return Plan(str(device), weights, None, needed, free, None if needed < free else False)
    decoder = networks["video autoencoder"]
    assert isinstance(decoder, VAE)
    pixels = width * height * decoder.config.dim / FITTED_WIDTH
    work = LIBRARIES_GIB + pixels * (GIB_PER_PIXEL + GIB_PER_PIXEL_AND_FRAME * params.chunk_frames)
    free = psutil.virtual_memory().available / GIB
    return Plan(str(device), weights, work, needed + work, free, needed + work < free)


def _networks(params: GenerationParams, device: torch.device) -> dict[str, nn.Module]:
    """The networks as they would be loaded, without their weights."""
    files, compute = checkpoints.locate(params), compute_type(params.precision, device)
    return {
        "transformer": checkpoints.load_dit(files, compute, "meta"),
        "video autoencoder": checkpoints.load_vae(files, torch.float32, "meta"),
        "text encoder": checkpoints.load_text_encoder(files, compute, "meta"),
        "image encoder": checkpoints.load_image_encoder(files, compute, "meta"),
        "speech encoder": checkpoints.load_speech_encoder(files, torch.float32, "meta"),
    }


def _size(network: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())


def _saved_by_storing_in_bytes(transformer: nn.Module) -> int:
    """What quantising saves of the blocks' linear weights; nothing where they are stored so already."""
    layers = transformer.get_submodule("blocks").modules()
    linears = [layer.weight for layer in layers if isinstance(layer, nn.Linear)]
    return sum(weight.numel() * (weight.element_size() - 1) for weight in linears)
