"""The Triton kernels without a GPU: interpreted against the plain path, and compiled for smaller GPUs.

`make test` installs Triton, which the CPU build of PyTorch lacks.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.models.kernels.triton_checks import CHECKS

ROOT = Path(__file__).parents[3]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("triton") is None, reason="needs Triton: make test installs it"
    ),
]
# The interpreter does not round to fp8 but cuts bits off, which doubles the error.
FP8_ERROR = 2
# Bytes of shared memory that one program may use (CUDA C++ Programming Guide, technical specifications).
SHARED_BYTES = {"8.0": 163 * 1024, "8.6": 99 * 1024, "8.9": 99 * 1024, "9.0": 227 * 1024, "12.0": 99 * 1024}
REGISTERS = 255
# Of a thread, outside the loops; Triton 3.7 spills this much at the end of `triton_hopper`.
SPILLED_BYTES = 56


def output_of(module: str, *arguments: str, **variables: str):
    """What a module of the tests prints, run by itself: Triton decides on import whether to interpret."""
    done = subprocess.run(
        [sys.executable, "-m", f"tests.models.kernels.{module}", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))} | variables,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("check", CHECKS)
def test_a_kernel_computes_what_the_plain_path_does(check):
    (comparisons,) = output_of("triton_interpreted", check, TRITON_INTERPRET="1").values()
    factor = FP8_ERROR if "fp8" in check else 1
    assert comparisons
    assert {what: error for what, error, bound in comparisons if not error <= factor * bound} == {}
    assert check == "dequantize" or all(error > 0 for what, error, _ in comparisons if "mean" not in what)


@pytest.mark.parametrize("capability", SHARED_BYTES)
def test_the_kernels_fit_a_gpu_and_hardly_spill_registers(capability, tmp_path):
    found = output_of("triton_resources", capability, TRITON_CACHE_DIR=str(tmp_path))
    kernels = {name.split(":")[0] for name in found}
    writes_fp8 = float(capability) >= 8.9
    hopper = {"triton_hopper"} if capability == "9.0" else set()
    assert kernels == hopper | {check for check in CHECKS if writes_fp8 or "fp8" not in check}
    for name, (shared, registers, spilled) in found.items():
        assert shared <= SHARED_BYTES[capability], name
        assert 0 < registers <= REGISTERS, name
        assert spilled <= SPILLED_BYTES, name
