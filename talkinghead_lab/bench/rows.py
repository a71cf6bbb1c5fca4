"""The figures of a benchmark: rows that are kept in a JSON file, and how a row is measured."""

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
    """One figure.

    Args:
        name: what was measured.
        value: the figure, in `unit`.
        floor: the seconds that the machine's own ceilings allow, for figures in seconds.
        peak_gib: most device memory that PyTorch held at once.
        conditions: what else decides the figure.
    """

    name: str
    value: float
    unit: str = "s"
    floor: float | None = None
    peak_gib: float | None = None
    conditions: dict[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        """Floor over figure: 1 is the hardware's limit."""
        return self.floor / self.value if self.floor else None

    def to_json(self) -> dict[str, Any]:
        """Plain values; a figure in seconds is called so."""
        fields = asdict(self)
        value = fields.pop("value")
        return {"name": fields.pop("name"), "seconds" if self.unit == "s" else "value": value} | (
            fields | {"ratio": self.ratio}
        )

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Row":
        """A row as `to_json` wrote it."""
        fields = {name: value for name, value in fields.items() if name != "ratio"}
        value = fields.pop("seconds") if "seconds" in fields else fields.pop("value")
        return cls(value=value, **fields)


class Results:
    """Rows by name, written to a file after each one, so that a run which breaks off keeps what it has.

    Rows that the file holds already are read: parts of a benchmark can be run one after another.
    """

    def __init__(self, path: Path | None, machine: dict[str, str]):
        self.path, self.machine = path, machine
        self.rows: dict[str, Row] = {}
        if path is not None and path.exists():
            known = json.loads(path.read_text())
            if known["machine"] == machine:
                self.rows = {row["name"]: Row.from_json(row) for row in known["rows"]}

    def add(self, row: Row) -> Row:
        """Keep and print a row; one of the same name is replaced."""
        self.rows[row.name] = row
        print(line(row), flush=True)
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(self.path, overwrite=True) as unfinished:
                unfinished.write_text(self.to_json() + "\n")
        return row

    def seconds(self, name: str) -> float | None:
        """A figure that was measured before, None where it was not."""
        return self.rows[name].value if name in self.rows else None

    def to_json(self) -> str:
        """The file's text; the command is the last that added to it."""
        rows = [row.to_json() for row in self.rows.values()]
        command = " ".join(["python -m talkinghead_lab.bench", *sys.argv[1:]])
        return json.dumps({"machine": self.machine, "command": command, "rows": rows}, indent=1)


def line(row: Row) -> str:
    """A row for a reader."""
    text = f"{row.name:58} {row.value:12.4f} {row.unit:8}"
    if row.ratio is not None:
        text += f" floor {row.floor:8.4f}  {row.ratio:6.1%} of the limit"
    return text + (f"  {row.peak_gib:6.2f} GiB" if row.peak_gib is not None else "")


def machine_of(device: torch.device) -> dict[str, str]:
    """Names and versions that figures depend on."""
    name = platform.processor() or platform.machine()
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    return {"device": name, "torch": torch.__version__, "python": platform.python_version()}


def seconds_of(work: Callable[[], object], device: torch.device, repeats: int = 3, warm_up: int = 1) -> float:
    """Median seconds of some work, device work included."""
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
    """Seconds of some work in a row of the same without a gap: a GPU that is busy for long clocks lower."""
    once = seconds_of(work, device, repeats=1)
    repeats = max(3, round(at_least / once)) if device.type == "cuda" else 3

    def in_a_row() -> None:
        for _ in range(repeats):
            work()

    return seconds_of(in_a_row, device, repeats=1, warm_up=0) / repeats


def measure(
    work: Callable[[], object], device: torch.device, repeats: int = 3, warm_up: int = 1
) -> tuple[float, float | None]:
    """Median seconds, and the peak of device memory in GiB on a GPU."""
    if device.type != "cuda":
        return seconds_of(work, device, repeats, warm_up), None
    torch.cuda.reset_peak_memory_stats(device)
    seconds = seconds_of(work, device, repeats, warm_up)
    return seconds, torch.cuda.max_memory_allocated(device) / GIB


def synchronize(device: torch.device) -> None:
    """Wait until a device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
