"""What the record of a run says, and what a machine has, as tables in words."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from IPython.display import HTML

from talkinghead_lab.figures.comparison import NONE
from talkinghead_lab.figures.labels import capitalised, column_title, readable_name, value_label
from talkinghead_lab.figures.runs import table
from talkinghead_lab.foundation.environment import GPU_LIBRARIES, LIBRARIES
from talkinghead_lab.foundation.paths import project_folder
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.runs.comparison import machine
from talkinghead_lab.runs.history import PastRun, chunks, finished_run

# Facts of `environment.describe` whose names say too little.
FACTS = {
    "talkinghead_lab": "This package",
    "git": "Commit of the checkout",
    "python": "Python",
    "torch": "PyTorch",
    "platform": "Operating system",
    "cpu": "Processor",
    "cpu_capability": "Vector instructions",
    "cpu_cores": "Processor cores",
    "torch_threads": "Threads of PyTorch",
    "memory_gib": "Memory (GiB)",
    "gpu": "GPU",
    "gpu_count": "Number of GPUs",
    "gpu_memory_gib": "GPU memory (GiB)",
    "driver": "GPU driver",
    "cuda": "CUDA",
    "cudnn": "cuDNN",
    "float32_matmul_precision": "Precision of float32 matmuls",
    "deterministic_algorithms": "Deterministic algorithms",
    "cudnn_benchmark": "cuDNN benchmark",
    "cudnn_deterministic": "cuDNN deterministic",
    "cublas_workspace_config": "cuBLAS workspace",
}
OF_GPU = ("gpu_count", "gpu_memory_gib", "driver", "cuda", "cudnn")  # left out where there is none
MISSING = {
    "git": "no checkout",
    "gpu": "none found",
    "cublas_workspace_config": "not set",
    **dict.fromkeys((*LIBRARIES, *GPU_LIBRARIES), "not installed"),
}
MODELS = {"embedded": "bundled model", "released": "released weights"}
CHECKS = {  # as they appear after "failed: "
    "streams": "streams", "frame_count": "number of frames", "length": "length",
    "not_black": "black frames", "not_frozen": "still frames",
    "mouth_moves_with_speech": "mouth moves with the speech", "no_warnings": "warnings",
}  # fmt: skip
PASSES = ("forward_passes", "skipped_passes")
DIGEST_LENGTH = 16


def machine_facts(facts: Mapping[str, Any], only: Collection[str] | None = None) -> dict[str, str]:
    """What `environment.describe` found, in words; what the machine lacks says so.

    Args:
        facts: by name.
        only: names of the facts that are wanted; None: all.
    """
    return {
        FACTS.get(name, name): MISSING.get(name, "none") if value is None else value_label(value)
        for name, value in facts.items()
        if (only is None or name in only) and not (name in OF_GPU and facts.get("gpu") is None)
    }


def measures_table(run_dir: str | Path) -> HTML:
    """The measures of a finished run, with the better direction, or the reason why there is no value.

    Raises:
        OutputError: there is no finished run, or its record is damaged.
    """
    run = finished_run(project_folder() / run_dir)
    return table([_measure_row(measure) for measure in run.measures.values()])


def record_table(run_dir: str | Path) -> HTML:
    """What a finished run was made from, by what, and whether the checks passed.

    Raises:
        OutputError: there is no finished run, or its record is damaged.
    """
    run = finished_run(project_folder() / run_dir)
    return table({**_result_facts(run), **_request_facts(run), **_machine_facts(run), **_digests(run)})


def _measure_row(measure: Mapping[str, Any]) -> dict[str, str]:
    value, unit = measure["value"], "" if measure["unit"] == "1" else f" {measure['unit']}"
    direction = "" if measure["better"] == "neither" else f"{measure['better']} is better"
    return {
        "measure": capitalised(readable_name(measure["name"])),
        "value": NONE if value is None else f"{value:.3g}{unit}",
        "": direction if value is not None else str(measure["why_not"] or "no reason was recorded"),
    }


def _result_facts(run: PastRun) -> dict[str, str]:
    result, record, earlier = run.result, run.record, run.chunks_of_earlier_calls
    size = result.resolution.replace("x", " × ")
    seconds = f"{run.seconds:.1f} s"
    found = {
        "Video": f"{result.duration_seconds:.2f} s, {result.frame_count} frames of {size} pixels",
        "Generation time": f"{seconds}, without {chunks(earlier)} of earlier calls" if earlier else seconds,
    }
    if "time_to_first_frame" in record:  # not in 0.1.0
        first = record["time_to_first_frame"]
        found["First frames"] = f"after {first['seconds']:.1f} s" if first else "made by an earlier call"
    parts = record.get("chunks", [])
    if parts and all("skipped_passes" in part for part in parts):  # not in 0.1.0
        computed, skipped = (sum(part[name] for part in parts) for name in PASSES)
        skips = f" computed, {skipped} skipped by the step cache" if skipped else ""
        found["Forward passes"] = f"{computed}{skips}"
    if record.get("checks"):
        found["Checks"] = _checks(record["checks"])
    if warnings := record["resolved"].get("warnings"):
        found["Warnings"] = " ".join(warnings)
    return found


def _checks(checks: Mapping[str, Any]) -> str:
    failed = [
        f"{CHECKS.get(name, name.replace('_', ' '))} ({check.get('measured', 'no value')})"
        for name, check in checks.items()
        if isinstance(check, Mapping) and check.get("passed") is False
    ]
    return f"failed: {', '.join(failed)}" if failed else "all passed"


def _request_facts(run: PastRun) -> dict[str, str]:
    """The model, and every field of the request that is not at its default."""
    defaults = GenerationParams.defaults_of(run.params.checkpoint)
    changed = {
        column_title(name): value_label(value, name)
        for name, value in run.params
        if name not in defaults or defaults[name] != value
    }
    model = MODELS.get(run.params.checkpoint, run.params.checkpoint)
    return {"Model": model, **changed, "Seed": value_label(run.params.seed)}


def _machine_facts(run: PastRun) -> dict[str, str]:
    resolved, found = run.record["resolved"], run.record["environment"]
    commit = found.get("git")
    recorded = {
        "Device": resolved.get("device"),
        "Computed in": resolved.get("compute_type"),
        "Attention kernel": resolved.get("attention"),
    }
    return {
        **{name: str(value) for name, value in recorded.items() if value is not None},
        "Machine": machine(run),
        "Version": f"{found.get('talkinghead_lab', 'unknown')}{f', commit {commit[:12]}' if commit else ''}",
        "Libraries": f"PyTorch {found.get('torch', 'unknown')}, Python {found.get('python', 'unknown')}",
    }


def _digests(run: PastRun) -> dict[str, str]:
    files = {"video": run.record["video_sha256"]} | run.record["inputs"]
    return {
        f"SHA-256 of the {readable_name(name)}": f"{digest[:DIGEST_LENGTH]}…"
        for name, digest in files.items()
    }
