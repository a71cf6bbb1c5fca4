"""Processes that make runs."""

import multiprocessing


def forking() -> multiprocessing.context.ForkServerContext:
    """Processes that begin with all imports done, so that little but the run itself takes time."""
    processes = multiprocessing.get_context("forkserver")
    libraries = ["umt5.modeling_umt5", "wav2vec2.modeling_wav2vec2"]
    processes.set_forkserver_preload(
        ["talkinghead_lab.runs.generate", *(f"transformers.models.{name}" for name in libraries)]
    )
    return processes
