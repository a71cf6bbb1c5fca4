"""talkinghead_lab: audio-driven talking-head video from one portrait and one recording, reproducibly."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from talkinghead_lab.params import GenerationParams
    from talkinghead_lab.runs.generate import generate
    from talkinghead_lab.runs.result import GenerationResult

__version__ = "0.1.0"
__all__ = ["GenerationParams", "GenerationResult", "__version__", "generate"]

_HOME = {
    "GenerationParams": "talkinghead_lab.params",
    "GenerationResult": "talkinghead_lab.runs.result",
    "generate": "talkinghead_lab.runs.generate",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use: torch and transformers take seconds to import."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with import_module("talkinghead_lab.foundation.imports").gc_disabled():
        return getattr(import_module(_HOME[name]), name)
