"""Named stages of a run, for clocks and memory meters."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

# Gives a context that lasts as long as the named stage of the work: for clocks and memory meters.
Stage = Callable[[str], AbstractContextManager[object]]


def no_stage(name: str) -> AbstractContextManager[object]:
    """Measure nothing."""
    return nullcontext()
