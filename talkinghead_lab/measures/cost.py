"""Time and memory that a run took."""

from collections.abc import Mapping

from talkinghead_lab.measures.measure import Measure


def cost(
    stages: Mapping[str, Mapping[str, float]],
    seconds: float,
    frames: int,
    first_frame: Mapping[str, float] | None,
) -> list[Measure]:
    """Seconds to the first and per frame, and the largest memory of any stage (unit: GiB); lower is better.

    Memory is that of the process on the host, and of PyTorch on the GPU.

    Args:
        stages: of a `StageClock`.
        seconds: of all chunks together, sampling and decoding.
        frames: of the video.
        first_frame: of a `StageClock`.
    """
    peaks = [
        ("peak_host_gib", "the kernel of this machine does not report peak memory"),
        ("peak_gpu_gib", "the run used no GPU"),
    ]
    first, earlier = (first_frame or {}).get("after_loading"), "an earlier call made the first frames"
    found = [
        Measure.of("time_to_first_frame", first, earlier if first is None else None),
        Measure.of("seconds_per_frame", seconds / frames),
    ]
    for name, why_not in peaks:
        value = max((stage[name] for stage in stages.values() if name in stage), default=None)
        found.append(Measure.of(name, value, why_not if value is None else None))
    return found
