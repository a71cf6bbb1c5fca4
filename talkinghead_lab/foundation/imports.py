"""Imports of large libraries: faster, and with a word on what to do where they are missing."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from talkinghead_lab.foundation.process_wide import process_wide


@process_wide
@contextmanager
def gc_disabled() -> Iterator[None]:
    """Disable the cyclic garbage collector: it takes a third of import time and frees nothing here."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def setup_required() -> Iterator[None]:
    """End a command with exit status 1 and one line that says what to do if a package is missing.

    The usual cause: the checkout's package found by a Python that `make setup` did not prepare.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        print(
            f"talkinghead_lab: the package {error.name!r} is not installed in this Python. "
            "Run `make setup`, then `source .venv/bin/activate`.",
            file=sys.stderr,
        )
        raise SystemExit(1) from None
