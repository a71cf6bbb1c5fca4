"""Ends the process when it no longer serves jobs, to be restarted: Docker does not restart for bad health."""

import logging
import os
import threading
import time
from collections.abc import Callable

LOG = logging.getLogger(__name__)
EXIT_STATUS = os.EX_SOFTWARE
POLL_SECONDS = 1.0
ANSWER_SECONDS = 1.0  # time to answer clients whose requests have been given up


def watch(
    trouble: Callable[[], str | None],
    give_up: Callable[[], object],
    poll_seconds: float = POLL_SECONDS,
    answer_seconds: float = ANSWER_SECONDS,
) -> None:
    """Start a thread that gives up and ends the process once `trouble` gives a reason.

    The thread that is in trouble cannot be stopped, so it is not waited for.
    """

    def poll() -> None:
        while True:
            time.sleep(poll_seconds)
            if reason := trouble():
                LOG.critical("the process ends, to be restarted", extra={"reason": reason})
                give_up()
                time.sleep(answer_seconds)
                logging.shutdown()
                os._exit(EXIT_STATUS)

    threading.Thread(target=poll, name="watchdog", daemon=True).start()
