"""Changes of process-wide state that may overlap."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import wraps
from typing import TypeVar

Value = TypeVar("Value")


def process_wide(
    change: Callable[[], AbstractContextManager[Value]],
) -> Callable[[], AbstractContextManager[Value]]:
    """Decorate a context manager that changes process-wide state, so that several uses may overlap.

    The first use enters the context manager and the last one exits it; all of them get the value it yields.
    If each use saved and restored the state itself, the last to finish could restore a changed state.
    """
    lock, entered, users = threading.Lock(), ExitStack(), 0
    value: Value

    @wraps(change)
    @contextmanager
    def shared() -> Iterator[Value]:
        nonlocal users, value
        with lock:
            if users == 0:
                value = entered.enter_context(change())
            users += 1
        try:
            yield value
        finally:
            with lock:
                users -= 1
                if users == 0:
                    entered.close()

    return shared
