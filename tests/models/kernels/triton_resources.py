"""Compiles the Triton kernels for a GPU that is not there and prints what each needs, as JSON.

    python -m tests.models.kernels.triton_resources 8.9

Triton gets a driver that launches nothing, so the self-checks compile all kernels in the released widths and
compare tensors that nothing has written.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.driver import CudaDriver
from triton.runtime import driver

from talkinghead_lab.models.kernels import triton_text_image_attention
from talkinghead_lab.models.kernels.optional_kernels import OPTIONAL_KERNELS
from tests.models.kernels.triton_checks import COMPILED


class Recorder(CudaDriver):
    """Compiles for one target; in place of launching a kernel it notes the resources."""

    def __init__(self, capability: tuple[int, int]) -> None:
        self.capability, self.check, self.found = capability, "", {}
        self.utils, self.launcher_cls = self, lambda source, metadata: lambda *arguments: None

    def get_current_target(self):
        return GPUTarget("cuda", 10 * self.capability[0] + self.capability[1], 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_device_properties(self, device):
        return {"max_shared_mem": 2**20}

    def load_binary(self, name, binary, shared, device):
        registers, spilled = resources(binary)
        key = f"{self.check}: {name}"
        known = self.found.get(key, (0, 0, 0))
        self.found[key] = tuple(map(max, known, (shared, registers, spilled)))
        return 0, 0, registers, spilled, 1024


def resources(binary: bytes) -> tuple[int, int]:
    """Registers of a thread and bytes that it spills to local memory."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(binary)
        text = subprocess.run(
            [tool, "--dump-resource-usage", file.name], capture_output=True, text=True
        ).stdout
    numbers = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    return numbers["REG"], numbers["STACK"] + numbers["LOCAL"]


def main(text: str) -> None:
    """Print {"check: kernel": [bytes of shared memory, registers of a thread, spilled bytes]}."""
    major, minor = map(int, text.split("."))
    recorder = Recorder((major, minor))
    driver.set_active(recorder)
    triton_text_image_attention.capability = lambda device: (major, minor)
    for recorder.check, check in COMPILED.items():
        if not OPTIONAL_KERNELS[recorder.check].lacks(torch.device("cuda"), (major, minor)):
            list(check(torch.device("cpu")))
    print(json.dumps(recorder.found))


if __name__ == "__main__":
    main(sys.argv[1])
