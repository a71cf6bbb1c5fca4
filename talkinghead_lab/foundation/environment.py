"""The hardware and software of a run, which can explain different bytes on two machines."""

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

from talkinghead_lab import __version__
from talkinghead_lab.foundation.threads import usable_cores

PACKAGE_FOLDER = Path(__file__).parents[1]
LIBRARIES = (
    "torch",
    "transformers",
    "numpy",
    "av",
    "soxr",
    "pyloudnorm",
    "pillow",
    "safetensors",
    "diffusers",
)
GPU_LIBRARIES = ("triton", "fa3-fwd")
GIB = 2**30


def describe() -> dict[str, Any]:
    """Versions, hardware and determinism settings as plain values; None if the machine lacks something.

    Memory is in GiB. Initialises CUDA if there is a GPU.
    """
    return {
        "talkinghead_lab": __version__,
        "git": git_state(PACKAGE_FOLDER),
        "python": platform.python_version(),
        **{library: _version(library) for library in (*LIBRARIES, *GPU_LIBRARIES)},
        "platform": platform.platform(),
        "cpu": _processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu_cores": usable_cores(),
        "torch_threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / GIB, 1),
        **_gpu(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "cublas_workspace_config": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    }


def free_space(folder: str | Path = ".") -> dict[str, float]:
    """Free GiB of host memory, of the disk that holds `folder` and of the current GPU, if there is one."""
    free = {
        "memory_free_gib": psutil.virtual_memory().available / GIB,
        "disk_free_gib": shutil.disk_usage(folder).free / GIB,
    }
    if torch.cuda.is_available():
        free["gpu_free_gib"] = torch.cuda.mem_get_info()[0] / GIB
    return {name: round(gib, 1) for name, gib in free.items()}


def git_state(folder: Path) -> str | None:
    """Commit of the checkout that tracks `folder`, with `-dirty` if files in it differ; None: there is none.

    Files outside the folder do not count: a saved notebook does not change what a run computes.
    """
    git = ("git", "-C", str(folder))
    if not _output(*git, "ls-files", "."):
        return None  # not in a checkout, or installed inside somebody else's
    commit = _output(*git, "rev-parse", "HEAD")
    changed = _output(*git, "status", "--porcelain", "--untracked-files=no", ".")
    return f"{commit}-dirty" if commit and changed else commit


def driver_version() -> str | None:
    """Version of NVIDIA's driver; None if there is none."""
    found = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return found.splitlines()[0] if found else None


def _gpu() -> dict[str, Any]:
    """Name, memory, driver and CUDA libraries of the current GPU."""
    if not torch.cuda.is_available():
        return dict.fromkeys(("gpu", "gpu_count", "gpu_memory_gib", "driver", "cuda", "cudnn"))
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "gpu": properties.name,
        "gpu_count": torch.cuda.device_count(),
        "gpu_memory_gib": round(properties.total_memory / GIB, 1),
        "driver": driver_version(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def _processor() -> str:
    """The processor's model; CPU kernels choose the order of floating-point sums by it."""
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.exists():
        for line in cpu_info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _output(*command: str) -> str | None:
    """The output of a command, stripped; None if it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
