"""Kernels that not every machine runs: what each needs, and whether it passed its self-check.

The first time one of them is wanted, a child process compares all that this machine could run with PyTorch's
own path on small inputs (`self_checks`): a kernel that crashes or hangs cannot be stopped inside a process.
The results are kept in the user's cache, by GPU, driver, versions and the sources of the kernels.
"""

import hashlib
import importlib.util
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import Pipe
from pathlib import Path
from typing import Any, BinaryIO, Literal

import torch
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from talkinghead_lab.errors import OutputError
from talkinghead_lab.foundation.devices import capability
from talkinghead_lab.foundation.digests import combined
from talkinghead_lab.foundation.environment import driver_version
from talkinghead_lab.foundation.files import atomic_path
from talkinghead_lab.foundation.paths import user_cache_folder

logger = logging.getLogger(__name__)
SELF_CHECKS = "talkinghead_lab.models.kernels.self_checks"
# Importing PyTorch from a slow disk and compiling a kernel on a busy machine take up to a minute.
START_SECONDS, KERNEL_SECONDS = 300.0, 120.0
EXIT_SECONDS = 10.0


@dataclass(frozen=True)
class OptionalKernel:
    """What a kernel needs.

    Args:
        capability: the lowest compute capability that it is tried on.
        modules: packages to import, and the names of their distributions.
        one_architecture: whether it uses instructions that later architectures lack.
    """

    capability: tuple[int, int]
    modules: Mapping[str, str]
    one_architecture: bool = False

    def lacks(self, device: torch.device, present: tuple[int, int]) -> str | None:
        """What a device of compute capability `present` lacks, in words; None: nothing."""
        if device.type != "cuda" or present < self.capability:
            return "needs a GPU of compute capability {}.{} or higher".format(*self.capability)
        if self.one_architecture and present[0] > self.capability[0]:
            return f"needs a GPU of compute capability {self.capability[0]}.x"
        missing = [name for module, name in self.modules.items() if importlib.util.find_spec(module) is None]
        return f"needs the package {missing[0]}" if missing else None


TRITON = {"triton": "triton"}
FLASH3 = {"fa3_fwd_interface": "fa3-fwd"}
# Triton supports compute capability 8.0 and higher, and converts to fp8 from 8.9. fa3-fwd is built for 9.0.
OPTIONAL_KERNELS: dict[str, OptionalKernel] = {
    "flash3": OptionalKernel((9, 0), FLASH3),
    "flash3_fp8": OptionalKernel((9, 0), FLASH3 | TRITON),
    "triton_hopper": OptionalKernel((9, 0), TRITON, one_architecture=True),
    "triton": OptionalKernel((8, 0), TRITON),
    "sage": OptionalKernel((8, 0), TRITON | {"sageattention": "sageattention"}),
    "text_image": OptionalKernel((8, 0), TRITON),
    "two_speakers": OptionalKernel((8, 0), TRITON),
    "fused_layers": OptionalKernel((8, 0), TRITON),
    "fused_fp8_layers": OptionalKernel((8, 9), TRITON),
    "dequantize": OptionalKernel((8, 0), TRITON),
    "vae_blocks": OptionalKernel((8, 0), TRITON),
}


@dataclass(frozen=True)
class Status:
    """Whether a kernel may run on a device, and why.

    Args:
        state: `passed` or `failed` its self-check; `not available`: it was not tried.
        reason: the error that was found, or what is lacking.
        lasting: whether the next process would find the same; not so if memory was short, for instance.
    """

    state: Literal["passed", "failed", "not available"]
    reason: str
    lasting: bool = True

    @property
    def passed(self) -> bool:
        """Whether the kernel may run."""
        return self.state == "passed"

    def __str__(self) -> str:
        return f"{self.state}: {self.reason}"


class DeviceKernels:
    """The optional kernels of one device.

    Args:
        device: the device.
        capability: its compute capability.
        checks: the module that a child process runs to check kernels; see `self_checks.main`.
    """

    def __init__(self, device: torch.device, capability: tuple[int, int], checks: str = SELF_CHECKS) -> None:
        self._device, self._capability, self._checks = device, capability, checks
        lacking = {name: each.lacks(device, capability) for name, each in OPTIONAL_KERNELS.items()}
        self._statuses = {name: Status("not available", lack) for name, lack in lacking.items() if lack}
        self._lock, self._reported = threading.Lock(), set[str]()

    def status(self, name: str) -> Status:
        """The status of a kernel; the first call for one that could run checks all that could."""
        with self._lock:
            if name not in self._statuses:
                self._check([each for each in OPTIONAL_KERNELS if each not in self._statuses])
            return self._statuses[name]

    def runs(self, name: str) -> bool:
        """Whether a kernel may run; the first time that one may not because it failed, a warning says why."""
        status = self.status(name)
        if status.state == "failed" and name not in self._reported:
            self._reported.add(name)
            logger.warning(
                "PyTorch's own path replaces the kernel %s, which failed its self-check here (%.300s); "
                "it is checked again after an update, or without %s",
                *(name, status.reason, self._file()),
            )
        return status.passed

    def _check(self, names: Sequence[str]) -> None:
        """Read the results of earlier processes, or check: one process at a time, the others read."""
        file = self._file()
        with ExitStack() as stack:
            with suppress(OSError, Timeout):
                file.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(FileLock(f"{file}.lock", timeout=START_SECONDS + KERNEL_SECONDS))
            known = _read(file)
            self._statuses |= {name: known[name] for name in names if name in known}
            if not (missing := [name for name in names if name not in known]):
                return
            logger.info("Comparing %s with PyTorch's own path, once on this machine", ", ".join(missing))
            found = check_in_child(self._checks, self._device, missing)
            for name, status in tqdm(
                found, "checking kernels", len(missing), unit="kernel", disable=None, leave=False
            ):
                logger.info("%s %s", name, status)
                self._statuses[name] = status
                if status.lasting:
                    known[name] = status
            with suppress(OSError, OutputError), atomic_path(file, overwrite=True) as temporary:
                kept = {name: {"state": each.state, "reason": each.reason} for name, each in known.items()}
                temporary.write_text(json.dumps(self._machine() | {"kernels": kept}, indent=1))

    def _file(self) -> Path:
        return user_cache_folder() / "kernels" / f"{combined([self._machine()])[:16]}.json"

    def _machine(self) -> dict[str, Any]:
        """All that the results depend on."""
        packages = {name for kernel in OPTIONAL_KERNELS.values() for name in kernel.modules.values()}
        return {
            "gpu": torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else "cpu",
            "capability": list(self._capability),
            "driver": driver_version(),
            "versions": {name: _version(name) for name in sorted(packages | {"torch"})},
            "cuda": torch.version.cuda,
            "sources": _sources(),
        }


def kernels_of(device: torch.device) -> DeviceKernels:
    """The optional kernels of a device, the same object in every call."""
    return _kernels_of(device, capability(device))


@cache
def _kernels_of(device: torch.device, capability: tuple[int, int]) -> DeviceKernels:
    return DeviceKernels(device, capability)


def check_in_child(
    module: str,
    device: torch.device,
    names: Sequence[str],
    start_seconds: float = START_SECONDS,
    kernel_seconds: float = KERNEL_SECONDS,
) -> Iterator[tuple[str, Status]]:
    """Check kernels in a child process; one that hangs or ends early is replaced for those that remain.

    Args:
        module: what the child runs; see `self_checks.main`.
        device: where the kernels run.
        names: of the kernels.
        start_seconds, kernel_seconds: time limits of the child's start and of every kernel.
    """
    waiting = list(names)
    while waiting:
        with tempfile.TemporaryFile() as errors, _Child(module, device, waiting, errors) as child:
            started = child.receive(start_seconds)
            if not isinstance(started, str):
                problem = f"the self-check did not start: {child.problem(start_seconds)}"
                yield from ((name, Status("failed", problem, lasting=False)) for name in waiting)
                return
            while waiting:
                status = child.receive(kernel_seconds) or Status("failed", child.problem(kernel_seconds))
                yield waiting.pop(0), status
                if not status.passed:
                    break  # a failed kernel may leave the device unusable for its process


class _Child:
    """A process that checks kernels and reports through a pipe; killed when the block ends."""

    def __init__(self, module: str, device: torch.device, names: Sequence[str], errors: BinaryIO) -> None:
        self._errors = errors
        self._reports, writer = Pipe(duplex=False)
        # What this process can import, the child can, and nothing else: no file of the working directory.
        command = [sys.executable, "-P", "-m", module, str(writer.fileno()), str(device), *names]
        with writer:
            self._process = subprocess.Popen(
                command,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                pass_fds=[writer.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )

    def __enter__(self) -> "_Child":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(EXIT_SECONDS)
        self._reports.close()

    def receive(self, seconds: float) -> Any:
        """What the child reports next; None: nothing in this time, or it has ended."""
        try:
            return self._reports.recv() if self._reports.poll(seconds) else None
        except EOFError:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(EXIT_SECONDS)
            return None

    def problem(self, seconds: float) -> str:
        """Why the child reported nothing within its time."""
        if (status := self._process.poll()) is None:
            return f"no result within {seconds:g} s"
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        ended = f"ended by signal {-status}" if status < 0 else f"ended with status {status}"
        return ": ".join([f"its process {ended}", *lines[-1:]])


def _read(file: Path) -> dict[str, Status]:
    with suppress(OSError, ValueError, KeyError, TypeError):
        return {name: Status(**kept) for name, kept in json.loads(file.read_text())["kernels"].items()}
    return {}


@cache
def _sources() -> str:
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _version(distribution: str) -> str | None:
    with suppress(PackageNotFoundError):
        return version(distribution)
    return None
