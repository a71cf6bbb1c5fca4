"""talkinghead_lab: a person in a picture speaks a recording, with figures that can be made again."""

from typing import TYPE_CHECKING, Any

from talkinghead_lab.imports import without_collection
from talkinghead_lab.params import GenerationParams

if TYPE_CHECKING:
    from talkinghead_lab.runs import GenerationResult, generate

__version__ = "0.1.0"
__all__ = ["GenerationParams", "GenerationResult", "__version__", "generate"]


def __getattr__(name: str) -> Any:
    """Import the pipeline when it is first asked for: torch and transformers take seconds."""
    if name in ("generate", "GenerationResult"):
        with without_collection():
            from talkinghead_lab import runs
        return getattr(runs, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
