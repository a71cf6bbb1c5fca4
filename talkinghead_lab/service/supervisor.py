"""`python -m talkinghead_lab.service.supervisor`: run the service, and start it again when it dies.

For machines where nothing else does so, such as a container's restart policy or systemd. The service ends
with status 70 when it no longer serves jobs; it may also crash, or be killed when memory runs out.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType

from talkinghead_lab.errors import InvalidRequest
from talkinghead_lab.foundation.parent_process import end_with_parent

COMMAND = (sys.executable, "-m", "talkinghead_lab.service")
LONGEST_PAUSE = 60.0
ENDING_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
STARTUP_FAILURE = 3  # uvicorn's, of an address that is in use
STEADY_SECONDS = 60.0  # life after which the pause is the first one again


class Supervisor:
    """Runs one command until it ends by itself, or a signal ends both.

    Args:
        command: the service.
        pause: seconds before a start; doubled, up to a minute, while the service dies at once.
    """

    def __init__(self, command: Sequence[str] = COMMAND, pause: float = 1.0) -> None:
        self.command, self.pause = command, pause
        self._process: subprocess.Popen[bytes] | None = None
        self._signalled: int | None = None

    def run(self) -> int:
        """Run the command; returns the exit status of its last run, 0 after a signal."""
        for number in ENDING_SIGNALS:
            signal.signal(number, self._pass_on)
        pause = self.pause
        while True:
            started = time.monotonic()
            status = self._run_once()
            if self._signalled is None and not is_death(status):
                return status
            if time.monotonic() - started > STEADY_SECONDS:
                pause = self.pause
            until = time.monotonic() + pause
            while self._signalled is None and time.monotonic() < until:
                time.sleep(0.05)
            if self._signalled is not None:
                return 0
            print(f"the service died (status {status}) and starts again", file=sys.stderr, flush=True)
            pause = min(pause * 2, LONGEST_PAUSE)

    def _run_once(self) -> int:
        parent = os.getpid()

        def end_with_supervisor() -> None:
            end_with_parent()
            if os.getppid() != parent:
                os._exit(1)

        # In a session of its own, so that Ctrl-C reaches it once: the server takes a second one for haste.
        self._process = subprocess.Popen(self.command, preexec_fn=end_with_supervisor, start_new_session=True)
        if self._signalled is not None:
            self._process.send_signal(self._signalled)
        return self._process.wait()

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._signalled = number
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)


def is_death(status: int) -> bool:
    """Whether a service of this exit status is to be started again.

    Not after an end in order, an invalid setting, or a port that is taken; nor if a signal asked it to end.
    """
    return status not in {
        0,
        InvalidRequest.exit_code,
        STARTUP_FAILURE,
        *(-number for number in ENDING_SIGNALS),
    }


if __name__ == "__main__":
    sys.exit(Supervisor().run())
