"""Benchmark results as rows in a JSON file, and the timing of one row."""

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from talkinghead_lab.foundation.files import atomic_path

GIB = 2**30


@dataclass(frozen=True)
class Row:
    """One result.

    Args:
        name: what was measured.
        value: the result, in `unit`.
        floor: roofline in seconds, for results in seconds.
        peak_gib: peak device memory allocated by PyTorch.
        conditions: whatever else determines the result, and further results.
    """

    name: str
    value: float
    unit: str = "s"
    floor: float | None = None
    peak_gib: float | None = None
    conditions: dict[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        """Roofline over measured seconds: 1.0 is the hardware limit."""
        return self.floor / self.value if self.floor else None

    def to_json(self) -> dict[str, Any]:
        """The row as JSON values; a value in seconds is stored under `seconds`."""
        fields = asdict(self)
        value = fields.pop("value")
        return {"name": fields.pop("name"), "seconds" if self.unit == "s" else "value": value} | (
            fields | {"ratio": self.ratio}
        )

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Row":
        """The row that `to_json` wrote."""
        fields = {name: value for name, value in fields.items() if name != "ratio"}
        value = fields.pop("seconds") if "seconds" in fields else fields.pop("value")
        return cls(value=value, **fields)


class Results:
    """Rows by name, written to a file after each addition so that an aborted run keeps its results.

    Existing rows of the same machine are read, so parts of the benchmark can run one after another.
    """

    def __init__(self, path: Path | None, machine: dict[str, str]) -> None:
        self.path, self.machine = path, machine
        self.rows: dict[str, Row] = {}
        if path is not None and path.exists():
            known = json.loads(path.read_text())
            if known["machine"] == machine:
                self.rows = {row["name"]: Row.from_json(row) for row in known["rows"]}

    def add(self, row: Row) -> Row:
        """Store and print a row, replacing one of the same name; return it."""
        self.rows[row.name] = row
        print(format_row(row), flush=True)
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(self.path, overwrite=True) as unfinished:
                unfinished.write_text(self.to_json() + "\n")
        return row

    def seconds(self, name: str) -> float | None:
        """The value of a row measured earlier, or None."""
        return self.rows[name].value if name in self.rows else None

    def to_json(self) -> str:
        """Text of the file; `command` is the last one that added rows."""
        rows = [row.to_json() for row in self.rows.values()]
        command = " ".join(["python -m talkinghead_lab.bench", *sys.argv[1:]])
        return json.dumps({"machine": self.machine, "command": command, "rows": rows}, indent=1)


def format_row(row: Row) -> str:
    """One line of text for a row."""
    text = f"{row.name:58} {row.value:12.4f} {row.unit:8}"
    if row.ratio is not None:
        text += f" floor {row.floor:8.4f}  {row.ratio:6.1%} of the limit"
    return text + (f"  {row.peak_gib:6.2f} GiB" if row.peak_gib is not None else "")


def machine_description(device: torch.device) -> dict[str, str]:
    """Device name and versions that results depend on."""
    name = platform.processor() or platform.machine()
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    return {"device": name, "torch": torch.__version__, "python": platform.python_version()}


def seconds_of(work: Callable[[], object], device: torch.device, repeats: int = 3, warm_up: int = 1) -> float:
    """Median seconds per call, device work included."""
    for _ in range(warm_up):
        work()
    times = []
    for _ in range(repeats):
        synchronize(device)
        started = time.perf_counter()
        work()
        synchronize(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def sustained_seconds_of(work: Callable[[], object], device: torch.device, at_least: float = 1.0) -> float:
    """Seconds per call under sustained load: a GPU that stays busy clocks down."""
    once = seconds_of(work, device, repeats=1)
    repeats = max(3, round(at_least / once)) if device.type == "cuda" else 3

    def back_to_back() -> None:
        for _ in range(repeats):
            work()

    return seconds_of(back_to_back, device, repeats=1, warm_up=0) / repeats


def measure(
    work: Callable[[], object], device: torch.device, repeats: int = 3, warm_up: int = 1
) -> tuple[float, float | None]:
    """Median seconds per call, and on a GPU the peak of device memory in GiB."""
    if device.type != "cuda":
        return seconds_of(work, device, repeats, warm_up), None
    torch.cuda.reset_peak_memory_stats(device)
    seconds = seconds_of(work, device, repeats, warm_up)
    return seconds, torch.cuda.max_memory_allocated(device) / GIB


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
