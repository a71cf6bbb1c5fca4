"""Totals of whole jobs, from measured seconds of their parts."""

from dataclasses import dataclass

import torch

from talkinghead_lab.bench.decode import DECODE
from talkinghead_lab.bench.forwards import ALL, COMPILED, OUTSIDE, SKIPPED
from talkinghead_lab.bench.rows import Results, Row
from talkinghead_lab.bench.sizes import Size
from talkinghead_lab.streaming import plan_chunks

CACHE_SHARES = (0.0, 0.3, 0.5, 0.6)
MOTION_FRAMES = 9


@dataclass(frozen=True)
class Job:
    """A recording's length in video frames, steps of a chunk, and forwards of a step."""

    frames: int
    steps: int
    forwards: int


JOBS = {
    "job: 8 seconds, 40 steps": Job(200, 40, 3),
    "job: 8 seconds, 8 steps, text 1.0, audio 2.0": Job(200, 8, 2),
    "job: 8 seconds, 4 steps without guidance": Job(200, 4, 1),
}


def total(job: Job, chunks: int, share: float, parts: dict[str, float]) -> float:
    """Seconds: chunks × (steps × (forwards × (computed and skipped ones) + rest of the step) + decode)."""
    forward = (1 - share) * parts["forward"] + share * parts["skipped"]
    return chunks * (job.steps * (job.forwards * forward + parts["outside"]) + parts["decode"])


def add_jobs(size: Size, device: torch.device, results: Results) -> None:
    """A row for each job, way of computing and share of skipped forwards, where the parts were measured.

    Loading and encoding are left out, and decoding where it was not measured. The share that a step cache
    skips depends on trained weights.
    """
    outside, skipped, decode = (results.seconds(name) for name in (OUTSIDE, SKIPPED, DECODE))
    if outside is None or skipped is None:
        return
    for way in (COMPILED, ALL):
        forward = results.seconds(way)
        if forward is None:
            continue
        parts = {"forward": forward, "skipped": skipped, "outside": outside, "decode": decode or 0.0}
        for name, job in JOBS.items():
            chunks = len(plan_chunks(job.frames, size.grid.frames, MOTION_FRAMES))
            for share in CACHE_SHARES:
                seconds = total(job, chunks, share, parts)
                said = {
                    "job": name.removeprefix("job: "),
                    "way": way.removeprefix("forward: "),
                    "share": share,
                }
                label = f"{name}, {share:.0%} skipped, {said['way']}"
                results.add(Row(label, seconds, conditions=said | {"chunks": chunks} | parts))
