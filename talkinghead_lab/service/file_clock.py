"""The time of a file system, and how far its clock has jumped.

Ages are differences of file times. A clock that jumps ahead by a year makes every file look a year old. Files
are compared with a folder that is touched now, which also holds for a file server with a clock of its own.
"""

import os
import time
from pathlib import Path

JUMP_SECONDS = 3600.0  # more than any correction of a clock that runs
PAUSE_SECONDS = 86_400.0  # time without a reading, by another process before, that counts as a jump


class FileClock:
    """Tells the time of a folder's file system by touching the folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._last: tuple[float, float] | None = None  # time of the folder, seconds since the machine's start

    def read(self) -> tuple[float, float]:
        """Touch the folder.

        Returns:
            The time now, and the seconds by which the clock has jumped since the folder was last touched:
            negative if it was set back, 0 for less than an hour. A day or more between two processes counts
            as a jump, because nothing tells them apart.

        Raises:
            OSError: there is no folder that can be touched.
        """
        before = self._folder.stat().st_mtime
        os.utime(self._folder)
        now, uptime = self._folder.stat().st_mtime, time.clock_gettime(time.CLOCK_BOOTTIME)
        if self._last is not None:
            jump = (now - self._last[0]) - (uptime - self._last[1])
            tolerance = JUMP_SECONDS
        else:
            jump = now - before
            tolerance = PAUSE_SECONDS if jump > 0 else JUMP_SECONDS
        self._last = now, uptime
        return now, jump if abs(jump) > tolerance else 0.0
