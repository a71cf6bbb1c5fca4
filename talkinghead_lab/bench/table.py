"""Benchmark files as Markdown tables."""

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from talkinghead_lab.bench.rows import Row

# Conditions shown in the last column, and their format.
NOTES = {
    "tflops": "{:.0f} TFLOP/s",
    "relative_error": "error {:.2%}",
    "float32_error": "{:.2%} in float32",
    "error_to_float32": "error {:.2%} against float32",
    "of_one_speaker": "{:.3f} of one speaker",
    "attention": "attention {}",
    "first call": "first call {:.1f} s",
    "gbps": "{:.1f} GB/s",
    "time_to_first_frame": "first frames after {:.1f} s",
    "imported": "{:.1f} s of it imports",
    "speed_up": "{:.3f} times as fast",
    "block_gib": "{:.3f} GiB a block",
    "slow_down": "{:.3f} of resident",
    "driver_gib": "driver {:.1f} GiB",
    "anonymous_host_gib": "host {:.1f} GiB",
    "left_by_pytorch_gib": "then {:.2f} GiB kept",
    "extra_gib": "{:.1f} GiB beside weights",
    "largest_difference": "differs by {:.1e}",
    "commit": "commit {}",
    "version": "version {}",
    "stand_ins": "{}",
}


def read_rows(file: Path) -> list[Row]:
    """Rows of a benchmark file."""
    return [Row.from_json(row) for row in json.loads(file.read_text())["rows"]]


def markdown(rows: Iterable[Row]) -> str:
    """Rows in order as a Markdown table; jobs as a second table with a column per share skipped."""
    totals: dict[tuple[str, str], dict[float, float]] = defaultdict(dict)
    lines = ["| figure | value | floor | of the limit | peak GiB | |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for row in rows:
        if "share" in row.conditions:
            totals[row.conditions["job"], row.conditions["way"]][row.conditions["share"]] = row.value
            continue
        floor = f"{row.floor:.3f}" if row.floor else ""
        ratio = f"{row.ratio:.1%}" if row.ratio else ""
        peak = f"{row.peak_gib:.1f}" if row.peak_gib else ""
        notes = [form.format(row.conditions[key]) for key, form in NOTES.items() if key in row.conditions]
        value = f"{row.value:.4g} {row.unit}"
        lines.append(f"| {row.name} | {value} | {floor} | {ratio} | {peak} | {', '.join(notes)} |")
    return "\n".join(lines + _jobs(totals))


def _jobs(totals: dict[tuple[str, str], dict[float, float]]) -> list[str]:
    if not totals:
        return []
    shares = sorted(next(iter(totals.values())))
    lines = ["", "| job, seconds | way | " + " | ".join(f"{share:.0%} skipped" for share in shares) + " |"]
    lines.append("| --- " * (2 + len(shares)) + "|")
    for (job, way), seconds in totals.items():
        lines.append(f"| {job} | {way} | " + " | ".join(f"{seconds[share]:.1f}" for share in shares) + " |")
    return lines
