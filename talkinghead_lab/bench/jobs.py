"""Seconds of complete jobs, computed from the measured seconds of their parts."""

import itertools
from dataclasses import dataclass

import torch

from talkinghead_lab.bench.decode import DECODE
from talkinghead_lab.bench.forwards import ALL, COMPILED, OUTSIDE, SKIPPED
from talkinghead_lab.bench.roofline import attention_name
from talkinghead_lab.bench.rows import Results, Row
from talkinghead_lab.bench.sizes import Size
from talkinghead_lab.foundation.latent_grid import LatentGrid, latent_frames
from talkinghead_lab.sampling.chunks import Chunk, plan_chunks

CACHE_SHARES = (0.0, 0.3, 0.5, 0.6)
OVERLAP_FRAMES = 9


@dataclass(frozen=True)
class Workload:
    """Length of a job in video frames, steps per chunk, and forward passes per step."""

    frames: int
    steps: int
    forward_passes: int


FAST = "job: 8 seconds, 8 steps, text 1.0, audio 2.0"
FOUR_STEPS = "job: 8 seconds, 4 steps without guidance"
JOBS = {
    "job: 8 seconds, 40 steps": Workload(200, 40, 3),
    FAST: Workload(200, 8, 2),
    FOUR_STEPS: Workload(200, 4, 1),
}


def total(
    job: Workload, chunks: list[Chunk], share: float, parts: dict[str, float], grid: LatentGrid
) -> float:
    """Seconds of a job: for each chunk, steps × (forward passes + rest of the step) + decoding.

    A shorter chunk has a share of the tokens: attention scales with the square of that share, everything
    else linearly.

    Args:
        share: of forward passes that a step cache skips.
        parts: seconds of each part at the full chunk length.
    """
    seconds = 0.0
    for chunk in chunks:
        part = latent_frames(chunk.frames) / grid.latent_frames
        computed = part * (parts["forward"] - parts["attention"]) + part**2 * parts["attention"]
        forward = (1 - share) * computed + share * part * parts["skipped"]
        seconds += (
            job.steps * (job.forward_passes * forward + part * parts["outside"]) + part * parts["decode"]
        )
    return seconds


def add_jobs(size: Size, device: torch.device, results: Results) -> None:
    """Add a row for each job, way of computing and share of skipped forward passes, if measured.

    Each is computed with a full-length and with a trimmed last chunk (`trim_last_chunk`). Loading and
    encoding are excluded, as is decoding if it was not measured. The share that a step cache really skips
    depends on the trained weights.
    """
    outside, skipped, decode = (results.seconds(name) for name in (OUTSIDE, SKIPPED, DECODE))
    if outside is None or skipped is None:
        return
    for way in (COMPILED, ALL):
        forward = results.seconds(way)
        if forward is None:
            continue
        # Without a measured kernel, the forward pass is taken as linear in the number of tokens.
        attending = results.seconds(attention_name(results.rows[way].conditions.get("attention", ""))) or 0.0
        parts = {"forward": forward, "skipped": skipped, "outside": outside, "decode": decode or 0.0}
        parts["attention"] = size.dit.num_layers * attending
        for name, trim in itertools.product(JOBS, (False, True)):
            chunks = plan_chunks(JOBS[name].frames, size.grid.frames, OVERLAP_FRAMES, trim)
            labels = {"job": name.removeprefix("job: "), "way": way.removeprefix("forward: ")}
            labels["job"] += ", last chunk trimmed" if trim else ""
            for share in CACHE_SHARES:
                seconds = total(JOBS[name], chunks, share, parts, size.grid)
                label = f"job: {labels['job']}, {share:.0%} skipped, {labels['way']}"
                conditions = labels | {"share": share, "computed": True, "chunks": len(chunks)} | parts
                results.add(Row(label, seconds, conditions=conditions))
