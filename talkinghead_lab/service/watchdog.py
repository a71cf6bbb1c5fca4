"""Ends the process when it no longer serves jobs, to be restarted: Docker does not restart for bad health."""

import logging
import os
import threading
import time
from collections.abc import Callable

LOG = logging.getLogger(__name__)
EXIT_STATUS = os.EX_SOFTWARE
POLL_SECONDS = 1.0
PAUSE_SECONDS = 30.0  # a poll that is late by more: the process or its machine was paused
ANSWER_SECONDS = 1.0  # time to answer clients whose requests have been given up


def watch(
    trouble: Callable[[], str | None],
    give_up: Callable[[], object],
    poll_seconds: float = POLL_SECONDS,
    answer_seconds: float = ANSWER_SECONDS,
    resumed: Callable[[], object] = bool,
) -> None:
    """Start a thread that gives up and ends the process once `trouble` gives a reason.

    The thread that is in trouble cannot be stopped, so it is not waited for. Time for which the whole process
    was paused, by `docker pause` or with its virtual machine, is no sign of trouble: `resumed` is called.
    """

    def poll() -> None:
        while True:
            started = time.monotonic()
            time.sleep(poll_seconds)
            if time.monotonic() - started > poll_seconds + PAUSE_SECONDS:
                resumed()
            if reason := trouble():
                LOG.critical("the process ends, to be restarted", extra={"reason": reason})
                give_up()
                time.sleep(answer_seconds)
                logging.shutdown()
                os._exit(EXIT_STATUS)

    threading.Thread(target=poll, name="watchdog", daemon=True).start()
