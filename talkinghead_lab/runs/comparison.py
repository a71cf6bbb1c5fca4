"""In what runs differ, and by which measures they can be ranked: like is compared with like."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

from talkinghead_lab.params import GenerationParams
from talkinghead_lab.runs.history import PastRun

TOTAL_SECONDS = "seconds"  # of generating a video; the other figures of a run are measures
TIMES = ("time_to_first_frame", "seconds_per_frame", TOTAL_SECONDS)
COSTS = (*TIMES, "peak_host_gib", "peak_gpu_gib")
# Taken by networks or readers that the bundled model and the released weights do not share.
READER_DEPENDENT = (
    "active_speaker_own", "active_speaker_other", "active_speaker_silent",
    "lip_correlation", "lip_error", "mouth_follows_sound", "silent_lip_motion", "identity", "identity_drift",
    "head_motion",
)  # fmt: skip
SEEN_FIELDS = ("image_path", "continue_video", "lips_mask")
FOLLOW_THE_SIZE = ("sharpness", *COSTS)  # depend on the number of pixels


def differing_fields(runs: Sequence[PastRun]) -> list[str]:
    """Fields of the request in which the runs are not all the same."""
    return [
        name
        for name in GenerationParams.model_fields
        if len({repr(getattr(run.params, name)) for run in runs}) > 1
    ]


def why_unlike(runs: Sequence[PastRun], measure: str) -> str | None:
    """Why finished runs cannot be ranked by a measure; None: they can.

    A value depends on what is said, on who is seen and on how long the video is at least as much as on the
    settings, so runs that differ in these are not ranked by anything.

    Args:
        runs: those that have a value.
        measure: its name, or `TOTAL_SECONDS`.
    """
    reasons: list[tuple[str, Callable[[PastRun], Hashable]]] = [
        ("different recordings", _sound),
        (
            "different portraits or videos",
            lambda run: tuple(
                part for part in run.record["inputs"].items() if part[0].startswith(SEEN_FIELDS)
            ),
        ),
        ("different lengths: {} frames", lambda run: run.result.frame_count),
    ]
    if measure in READER_DEPENDENT:
        reasons.append(("measured by different networks: {}", lambda run: run.params.checkpoint))
    if measure in FOLLOW_THE_SIZE:
        reasons.append(("different frame sizes: {}", lambda run: run.result.resolution))
    if measure in COSTS:
        reasons.append(("different machines: {}", machine))
    for reason, key in reasons:
        found = list(dict.fromkeys(key(run) for run in runs))
        if len(found) > 1:
            return reason.format(" and ".join(str(value) for value in found))
    if measure in TIMES and any(run.chunks_of_earlier_calls for run in runs):
        return "a run was resumed, and its time leaves out what earlier calls did"
    return None


def _sound(run: PastRun) -> Hashable:
    """What is heard: the content of the recordings, and the part of them that is used."""
    digests, request = run.record["inputs"], run.params
    mixed = request.audio_mix if request.second_audio_path else None
    recordings = tuple(map(digests.get, request.recordings))
    times = tuple((part.speaker, part.start, part.end) for part in request.segments or ())
    return recordings, request.audio_track, request.audio_start, mixed, times, request.speaker_loudness


def machine(run: PastRun) -> str:
    """The hardware that a finished run used, in words."""
    found: dict[str, Any] = run.record["environment"]
    if run.record["resolved"].get("device", "cpu") != "cpu" and found.get("gpu"):
        processes = run.record.get("kernels", {}).get("processes", 1)
        return f"{processes} × {found['gpu']}" if processes != 1 else str(found["gpu"])
    cores = found.get("cpu_cores")
    return f"{found.get('cpu') or 'unknown processor'}{f' with {cores} cores' if cores else ''}"


def changed_contents(runs: Sequence[PastRun]) -> dict[str, list[str]]:
    """Digests of files that differ although the requests name the same files, for each of the runs.

    Returns:
        By field of the request for media (as in `GenerationParams.media`) and LoRAs, and under `checkpoint`
        for weights; `unknown` for a file that a run did not read.
    """
    same = set(GenerationParams.model_fields) - set(differing_fields(runs))
    media = dict.fromkeys(name for run in runs for name in run.params.media)
    found = {
        name: [str(run.record["inputs"].get(name, "unknown")) for run in runs]
        for name in media
        if name.partition(".")[0] in same
    }
    if "loras" in same:
        found["loras"] = [", ".join(str(lora.get("sha256")) for lora in run.record["loras"]) for run in runs]
    if "checkpoint" in same:
        found["checkpoint"] = [str(sorted(run.record["weights"].items())) for run in runs]
    return {name: digests for name, digests in found.items() if len(set(digests)) > 1}
