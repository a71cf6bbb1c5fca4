"""Totals of whole jobs, computed from measured seconds of their parts."""

import itertools
from dataclasses import dataclass

import torch

from talkinghead_lab.bench.ceilings import attention_name
from talkinghead_lab.bench.decode import DECODE
from talkinghead_lab.bench.forwards import ALL, COMPILED, OUTSIDE, SKIPPED
from talkinghead_lab.bench.rows import Results, Row
from talkinghead_lab.bench.sizes import Size
from talkinghead_lab.foundation.latent_grid import LatentGrid, latent_frames
from talkinghead_lab.sampling.chunks import Chunk, plan_chunks

CACHE_SHARES = (0.0, 0.3, 0.5, 0.6)
MOTION_FRAMES = 9


@dataclass(frozen=True)
class Job:
    """A recording's length in video frames, steps of a chunk, and forwards of a step."""

    frames: int
    steps: int
    forwards: int


FAST = "job: 8 seconds, 8 steps, text 1.0, audio 2.0"
FOUR_STEPS = "job: 8 seconds, 4 steps without guidance"
JOBS = {
    "job: 8 seconds, 40 steps": Job(200, 40, 3),
    FAST: Job(200, 8, 2),
    FOUR_STEPS: Job(200, 4, 1),
}


def total(job: Job, chunks: list[Chunk], share: float, parts: dict[str, float], grid: LatentGrid) -> float:
    """Seconds: for each chunk, steps × (forwards, computed and skipped, + rest of the step) + decoding.

    Of a shorter chunk attention takes the square of its share of the tokens; all else takes that share.
    """
    seconds = 0.0
    for chunk in chunks:
        part = latent_frames(chunk.frames) / grid.latent_frames
        computed = part * (parts["forward"] - parts["attention"]) + part**2 * parts["attention"]
        forward = (1 - share) * computed + share * part * parts["skipped"]
        seconds += job.steps * (job.forwards * forward + part * parts["outside"]) + part * parts["decode"]
    return seconds


def add_jobs(size: Size, device: torch.device, results: Results) -> None:
    """A row for each job, way of computing and share of skipped forwards, where the parts were measured.

    With the last chunk whole, and no longer than it is needed (`trim_last_chunk`). Loading and encoding are
    left out, and decoding where it was not measured. The share that a step cache skips depends on trained
    weights.
    """
    outside, skipped, decode = (results.seconds(name) for name in (OUTSIDE, SKIPPED, DECODE))
    if outside is None or skipped is None:
        return
    for way in (COMPILED, ALL):
        forward = results.seconds(way)
        if forward is None:
            continue
        # Where the kernel was not measured, all of a forward is taken to be in proportion to its tokens.
        attending = results.seconds(attention_name(results.rows[way].conditions.get("attention", ""))) or 0.0
        parts = {"forward": forward, "skipped": skipped, "outside": outside, "decode": decode or 0.0}
        parts["attention"] = size.dit.num_layers * attending
        for name, trim in itertools.product(JOBS, (False, True)):
            chunks = plan_chunks(JOBS[name].frames, size.grid.frames, MOTION_FRAMES, trim)
            said = {"job": name.removeprefix("job: "), "way": way.removeprefix("forward: ")}
            said["job"] += ", last chunk trimmed" if trim else ""
            for share in CACHE_SHARES:
                seconds = total(JOBS[name], chunks, share, parts, size.grid)
                label = f"job: {said['job']}, {share:.0%} skipped, {said['way']}"
                conditions = said | {"share": share, "computed": True, "chunks": len(chunks)} | parts
                results.add(Row(label, seconds, conditions=conditions))
