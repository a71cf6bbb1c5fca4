"""Generate, verify, plan and sweep audio-driven talking-head videos from a shell."""

import atexit
import gc
import logging
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from talkinghead_lab.commands.parser import parse
from talkinghead_lab.errors import TalkingHeadError
from talkinghead_lab.foundation.imports import setup_required


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 0, 2 for invalid input, 1 for a failure, 130 if interrupted or terminated."""
    options = parse(arguments)
    atexit.register(gc.freeze)  # otherwise Python searches all of PyTorch for garbage when it ends: a second
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        with setup_required(), _terminated_like_ctrl_c():
            from talkinghead_lab.foundation.threads import prepare_threads

            prepare_threads()
            return options.run(options) or 0
    except TalkingHeadError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("Stopped; finished chunks stay in the run's folder.", file=sys.stderr)
        return 130


@contextmanager
def _terminated_like_ctrl_c() -> Iterator[None]:
    """While the block runs, a signal to end the process stops it like Ctrl-C, which removes partial files.

    A signal that is ignored, as under nohup, stays so.
    """
    endings = [
        number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL
    ]
    for number in endings:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in endings:
            signal.signal(number, signal.SIG_DFL)


if __name__ == "__main__":
    sys.exit(main())
