"""Eight seconds of video end to end, from the request to the mp4: all but loading and judging."""

from pathlib import Path
from typing import Any

import torch

from talkinghead_lab.bench.jobs import FAST, FOUR_STEPS, JOBS
from talkinghead_lab.bench.offload import stages
from talkinghead_lab.bench.roofline import fastest_attention
from talkinghead_lab.bench.rows import Results, Row
from talkinghead_lab.bench.sizes import Size
from talkinghead_lab.bench.whole_job import request_of, run_in_process

# Forward passes per step → guidance scales that need them.
GUIDANCE: dict[int, dict[str, Any]] = {
    1: {"text_guide_scale": 1.0, "audio_guide_scale": 1.0},
    2: {"text_guide_scale": 1.0, "audio_guide_scale": 2.0},
}
# The first is discarded: it includes compilation.
VIDEOS = (FOUR_STEPS, FAST, FOUR_STEPS)


def measure_videos(size: Size, device: torch.device, results: Results, folder: Path) -> None:
    """Run the two short jobs with fp8 and eight-bit attention in their own process."""
    kind = fastest_attention(results, False, device)
    request = request_of(size, device, folder) | {"precision": "fp8", "attention": kind}
    frame_size = f"{size.grid.width}x{size.grid.height}"
    runs = [
        {
            **{"frame_size": frame_size, "max_frames": JOBS[name].frames, "trim_last_chunk": True},
            **{"diffusion_steps": JOBS[name].steps, **GUIDANCE[JOBS[name].forward_passes]},
        }
        for name in VIDEOS
    ]
    made = run_in_process(request, runs)
    next(made), next(made)
    for name, job in zip(VIDEOS[1:], made, strict=True):
        if job["error"]:
            raise RuntimeError(job["error"])
        first = {"time_to_first_frame": job["first_frame"]["after_loading"]}
        conditions = first | {"stages": stages(job), "driver_gib": job["driver_gib"], "attention": kind}
        results.add(Row(name.replace("job", "video"), job["seconds"], conditions=conditions))
