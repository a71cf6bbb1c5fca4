"""Optional kernels: what they need, and self-checks in real child processes."""

import json
import logging

import pytest
import torch

from talkinghead_lab.errors import InvalidRequest
from talkinghead_lab.foundation.devices import CAPABILITY_VARIABLE, capability
from talkinghead_lab.foundation.paths import user_cache_folder
from talkinghead_lab.models.kernels import attention, optional_kernels
from talkinghead_lab.models.kernels.optional_kernels import (
    OPTIONAL_KERNELS,
    DeviceKernels,
    OptionalKernel,
    Status,
    check_in_child,
    kernels_of,
)
from talkinghead_lab.models.kernels.self_checks import CHECKS, run_check

CPU, GPU = torch.device("cpu"), torch.device("cuda")
# A module with checks that end in every way, and notes each start.
MODULE = """
import os, sys, time
from pathlib import Path
from talkinghead_lab.models.kernels.self_checks import main

def hanging(device):
    time.sleep(600)
    yield "", 0.0, 0.0

def crashing(device):
    os.kill(os.getpid(), 11)
    yield "", 0.0, 0.0

def failing(device):
    raise RuntimeError("no kernel image is available")
    yield "", 0.0, 0.0

def running_out(device):
    raise RuntimeError("CUDA out of memory")
    yield "", 0.0, 0.0

CHECKS = {
    "right": lambda device: iter([("one", 0.001, 0.01), ("other", 0.002, 0.01)]),
    "wrong": lambda device: iter([("one", 0.001, 0.01), ("other", 0.02, 0.01)]),
    "nan": lambda device: iter([("all", float("nan"), 0.01)]),
    "hanging": hanging, "crashing": crashing, "failing": failing, "running out": running_out,
}
if __name__ == "__main__":
    with Path(__file__).with_suffix(".starts").open("a") as starts:
        print(*sys.argv[3:], sep=",", file=starts)
    main(sys.argv[1:], CHECKS)
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Name of a module like `self_checks`; the file of its starts is next to it."""
    (tmp_path / "checks_of_a_test.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return "checks_of_a_test"


@pytest.fixture
def starts(tmp_path, module):
    file = tmp_path / f"{module}.starts"
    return lambda: file.read_text().splitlines() if file.exists() else []


def as_kernels(monkeypatch, *names: str) -> None:
    """Replace the optional kernels by such that need nothing."""
    monkeypatch.setattr(OptionalKernel, "lacks", lambda self, device, present: None)
    monkeypatch.setattr(
        optional_kernels, "OPTIONAL_KERNELS", dict.fromkeys(names, OptionalKernel((8, 0), {}))
    )


def test_every_optional_kernel_has_a_check():
    assert CHECKS.keys() == OPTIONAL_KERNELS.keys()
    assert {name for name, kernel in attention.KERNELS.items() if kernel.optional} < CHECKS.keys()


@pytest.mark.parametrize(
    ("present", "lacking"),
    [
        ((7, 5), {*OPTIONAL_KERNELS}),
        ((8, 6), {"flash3", "flash3_fp8", "triton_hopper", "fused_fp8_layers"}),
        ((8, 9), {"flash3", "flash3_fp8", "triton_hopper"}),
        ((9, 0), set()),
        ((12, 0), {"triton_hopper"}),
    ],
)
def test_kernels_state_the_compute_capability_that_they_need(monkeypatch, present, lacking):
    monkeypatch.setattr(optional_kernels.importlib.util, "find_spec", lambda name: name)
    found = {name for name, kernel in OPTIONAL_KERNELS.items() if kernel.lacks(GPU, present)}
    assert found == lacking


def test_kernels_state_the_package_that_they_need(monkeypatch):
    monkeypatch.setattr(optional_kernels.importlib.util, "find_spec", lambda name: None)
    assert OPTIONAL_KERNELS["flash3"].lacks(GPU, (9, 0)) == "needs the package fa3-fwd"
    assert OPTIONAL_KERNELS["text_image"].lacks(GPU, (8, 6)) == "needs the package triton"
    assert OPTIONAL_KERNELS["triton_hopper"].lacks(GPU, (12, 0)) == "needs a GPU of compute capability 9.x"


def test_a_cpu_runs_none_and_checks_none():
    states = {name: kernels_of(CPU).status(name).state for name in OPTIONAL_KERNELS}
    assert set(states.values()) == {"not available"}


def test_a_variable_makes_the_code_believe_in_another_capability(monkeypatch):
    monkeypatch.setenv(CAPABILITY_VARIABLE, "8.9")
    assert capability(GPU) == (8, 9)
    assert capability(CPU) == (0, 0)
    monkeypatch.setenv(CAPABILITY_VARIABLE, "Ada")
    with pytest.raises(InvalidRequest, match=r"TALKINGHEAD_CAPABILITY is no compute.*received Ada"):
        capability(GPU)


@pytest.mark.parametrize(
    ("comparisons", "state", "reason"),
    [
        ([("one", 0.001, 0.01), ("other", 0.002, 0.01)], "passed", "relative error 0.002"),
        ([("one", 0.0, 0.0)], "passed", "relative error 0"),
        ([("one", 0.02, 0.01)], "failed", "one: relative error 0.02, allowed 0.01"),
        ([("one", float("nan"), 0.01)], "failed", "one: relative error nan, allowed 0.01"),
    ],
)
def test_a_check_compares_every_error_with_its_bound(comparisons, state, reason):
    assert run_check(lambda device: iter(comparisons), CPU) == Status(state, reason)


@pytest.mark.slow
def test_a_kernel_that_crashes_hangs_or_errs_leaves_the_others_alone(module, starts):
    names = ["right", "crashing", "failing", "hanging", "running out", "wrong", "nan"]
    found = dict(check_in_child(module, CPU, names, kernel_seconds=2))
    assert found == {
        "right": Status("passed", "relative error 0.002"),
        "crashing": Status("failed", "its process ended by signal 11"),
        "failing": Status("failed", "RuntimeError: no kernel image is available"),
        "hanging": Status("failed", "no result within 2 s"),
        "running out": Status("failed", "RuntimeError: CUDA out of memory", lasting=False),
        "wrong": Status("failed", "other: relative error 0.02, allowed 0.01"),
        "nan": Status("failed", "all: relative error nan, allowed 0.01"),
    }
    assert [line.count(",") + 1 for line in starts()] == [7, 5, 4, 3, 2, 1]


@pytest.mark.slow
def test_results_are_kept_for_the_machine_and_warned_of_once(module, starts, monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("TALKINGHEAD_CACHE", str(tmp_path / "cache"))
    as_kernels(monkeypatch, "right", "wrong")
    for _ in range(2):
        caplog.clear()
        kernels = DeviceKernels(CPU, (8, 9), module)
        assert [kernels.runs(name) for name in ("right", "wrong", "wrong")] == [True, False, False]
        (warning,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert "replaces the kernel wrong" in warning.getMessage()
        assert "other: relative error 0.02, allowed 0.01" in warning.getMessage()
    assert starts() == ["right,wrong"], "the second time, nothing was checked"
    (file,) = (user_cache_folder() / "kernels").glob("*.json")
    kept = json.loads(file.read_text())
    assert kept["capability"] == [8, 9]
    assert kept["versions"]["torch"] == torch.__version__
    assert kept["kernels"]["right"] == {"state": "passed", "reason": "relative error 0.002"}
    DeviceKernels(CPU, (12, 0), module).status("right")
    assert len(starts()) == 2, "another device is another machine"


@pytest.mark.slow
def test_what_another_time_may_pass_is_not_kept(module, starts, monkeypatch, tmp_path):
    monkeypatch.setenv("TALKINGHEAD_CACHE", str(tmp_path / "cache"))
    as_kernels(monkeypatch, "running out")
    for count in (1, 2):
        kernels = DeviceKernels(CPU, (8, 9), module)
        assert [kernels.runs("running out") for _ in range(2)] == [False, False]
        assert len(starts()) == count


def test_a_check_that_cannot_start_says_why(monkeypatch, tmp_path):
    monkeypatch.setenv("TALKINGHEAD_CACHE", str(tmp_path / ("no folder" * 50)))
    as_kernels(monkeypatch, "right")
    status = DeviceKernels(CPU, (8, 9), "no_such_module").status("right")
    assert status.state == "failed"
    assert not status.lasting
    assert "did not start: its process ended with status 1" in status.reason
    assert "No module named no_such_module" in status.reason


@pytest.mark.slow
def test_a_kernel_asked_for_by_name_is_refused_if_it_failed(module, monkeypatch, tmp_path):
    monkeypatch.setenv("TALKINGHEAD_CACHE", str(tmp_path))
    as_kernels(monkeypatch, "flash3", "sage")
    kernels = DeviceKernels(CPU, (9, 0), module)
    monkeypatch.setattr(attention, "kernels_of", lambda device: kernels)
    assert attention.choose_attention("auto", CPU) == "sdpa"
    with pytest.raises(InvalidRequest, match=r"flash3 failed its self-check here: .*KeyError.*auto, sdpa"):
        attention.choose_attention("flash3", CPU)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_kernels_of_this_gpu_pass(tmp_path, monkeypatch):
    monkeypatch.setenv("TALKINGHEAD_CACHE", str(tmp_path))
    kernels = DeviceKernels(GPU, capability(GPU))
    states = {name: str(kernels.status(name)) for name in OPTIONAL_KERNELS}
    assert not [name for name, state in states.items() if state.startswith("failed")], states
    assert list((tmp_path / "kernels").glob("*.json"))
