"""How many threads compute on the CPU, how they wait for each other, and from where they allocate.

PyTorch's OpenMP library reads its settings from the environment when it is loaded, so a program sets them
first. `python -m talkinghead_lab.foundation.threads COMMAND` runs another program with them, such as Jupyter.
"""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

CGROUPS, OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
# Looks for work before a waiting thread sleeps, 20 to 50 µs. With the default, 300,000, waiting threads
# burn the time slices that the others need on a busy machine. Sleeping at once makes an idle machine slower.
SPIN_COUNT = 1000
M_ARENA_MAX, ARENAS = -8, 2  # of mallopt(3)


def prepare_threads() -> None:
    """Set up this process and its children: one thread per usable core, and short waits.

    Variables that the user has set win. Once PyTorch is loaded it is too late, and nothing is changed.
    """
    if "torch" in sys.modules:
        return
    os.environ.setdefault("OMP_NUM_THREADS", str(usable_cores()))
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPIN_COUNT))


def share_malloc_arenas() -> None:
    """Let all threads allocate from two arenas of glibc, before the first thread starts.

    With an arena each, what a thread has freed is of no use to the others: a service with many threads would
    grow by some MiB for each of them. The user's MALLOC_ARENA_MAX wins; other C libraries have no arenas.
    """
    if "MALLOC_ARENA_MAX" not in os.environ:
        with suppress(OSError, TypeError, AttributeError):
            ctypes.CDLL(None).mallopt(M_ARENA_MAX, ARENAS)


def usable_cores() -> int:
    """Physical cores that this process may use, within its affinity and the CPU quota of its container."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed, *map(int, _quotas())))


def _quotas() -> Iterator[float]:
    """CPU quotas of the process's control groups, in CPUs; version 2 of cgroups, and version 1."""
    try:
        groups = [line.split(":", 2) for line in OWN_CGROUP.read_text().splitlines()]
    except OSError:  # not Linux
        return
    for _, controllers, path in groups:
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = CGROUPS / "cpu" if controllers else CGROUPS
        own = root / path.strip("/")
        for folder in (own, *own.parents):
            yield from _quota(folder)
            if folder == root:  # in a container, the container's own group
                break


def _quota(folder: Path) -> Iterator[float]:
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        if int(quota) > 0:
            yield int(quota) / int(period)
    except (OSError, ValueError):  # no quota at this level: no file, or "max"
        return


if __name__ == "__main__":
    prepare_threads()
    os.execvp(sys.argv[1], sys.argv[1:])
