"""Threads: as many as the container allows, settings in place before PyTorch loads, the user's own kept."""

import json
import os
import subprocess
import sys

import psutil
import pytest

from talkinghead_lab.foundation import threads

SHOW = "import json, os, torch; print(json.dumps([dict(os.environ), torch.get_num_threads()]))"
NAMES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Eight logical and four physical cores, without control groups."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: 8 if logical else 4)
    monkeypatch.setattr(threads, "CGROUPS", tmp_path)
    monkeypatch.setattr(threads, "OWN_CGROUP", tmp_path / "own")
    return tmp_path


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


def test_physical_cores_within_the_affinity_count(machine, monkeypatch):
    assert threads.usable_cores() == 4
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {2, 5, 6})
    assert threads.usable_cores() == 3


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 4), ("250000 100000", 2), ("50000 100000", 1), ("900000 100000", 4)]
)
def test_the_quota_of_version_2_is_an_upper_bound(machine, quota, cores):
    write(machine, own="0::/app/job", cpu__max=quota)
    assert threads.usable_cores() == cores


def test_a_quota_of_any_level_counts(machine):
    write(machine, own="0::/slice/job")
    write(machine / "slice", cpu__max="300000 100000")
    write(machine / "slice" / "job", cpu__max="max 100000")
    assert threads.usable_cores() == 3


@pytest.mark.parametrize(("quota", "cores"), [(-1, 4), (200_000, 2)])
def test_the_quota_of_version_1_is_an_upper_bound(machine, quota, cores):
    write(machine, own="5:memory:/x\n3:cpu,cpuacct:/docker/7f\n0::/")
    write(machine / "cpu", cpu__cfs_quota_us=quota, cpu__cfs_period_us=100_000)
    assert threads.usable_cores() == cores


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({}, (str(threads.usable_cores()), None, str(threads.SPIN_COUNT))),
        ({"OMP_NUM_THREADS": "1"}, ("1", None, str(threads.SPIN_COUNT))),
        ({"OMP_WAIT_POLICY": "active"}, (str(threads.usable_cores()), "active", None)),
        ({"GOMP_SPINCOUNT": "7"}, (str(threads.usable_cores()), None, "7")),
    ],
)
def test_a_program_gets_the_settings_before_it_loads_pytorch(own, expected):
    environment = {name: value for name, value in os.environ.items() if name not in NAMES} | own
    command = [sys.executable, "-m", "talkinghead_lab.foundation.threads", sys.executable, "-c", SHOW]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    seen, count = json.loads(done.stdout)
    assert tuple(seen.get(name) for name in NAMES) == expected
    assert str(count) == expected[0]


@pytest.mark.parametrize("program", ["talkinghead_lab.__main__", "talkinghead_lab.service.__main__"])
def test_the_shell_and_the_service_prepare_threads_first(program):
    """Before anything imports PyTorch; a stand-in tells when that is."""
    script = f"""
import sys
from {program} import main
from talkinghead_lab.foundation import threads
def prepare():
    print("torch" in sys.modules)
    sys.exit(0)
threads.prepare_threads = prepare
sys.argv = ["program", "plan", "missing.yaml"]
main()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


def test_nothing_changes_once_pytorch_is_loaded(monkeypatch):
    import torch  # noqa: F401

    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    threads.prepare_threads()
    assert not any(name in os.environ for name in NAMES)


ARENAS = """
import ctypes, re, tempfile, threading
from talkinghead_lab.foundation.threads import share_malloc_arenas

{call}
together = threading.Barrier(8)

def allocate():
    together.wait()
    kept = [bytearray(5000) for _ in range(100)]
    together.wait()

workers = [threading.Thread(target=allocate) for _ in range(8)]
for worker in workers: worker.start()
for worker in workers: worker.join()
c = ctypes.CDLL(None)
c.fopen.restype = ctypes.c_void_p
with tempfile.NamedTemporaryFile() as file:
    stream = ctypes.c_void_p(c.fopen(file.name.encode(), b"w"))
    c.malloc_info(0, stream)
    c.fclose(stream)
    print(len(re.findall(b"<heap ", file.read())))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
@pytest.mark.parametrize(
    ("call", "own", "most"),
    [("share_malloc_arenas()", "", 2), ("", "", 9), ("share_malloc_arenas()", "4", 4)],
)
def test_threads_share_the_arenas_of_malloc(call, own, most):
    environment = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"}
    environment |= {"MALLOC_ARENA_MAX": own} if own else {}
    done = subprocess.run(
        [sys.executable, "-c", ARENAS.format(call=call)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert (2 < int(done.stdout) <= most) if most > 2 else int(done.stdout) == 2
