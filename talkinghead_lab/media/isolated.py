"""Calls functions in processes of their own: what goes wrong in a codec there is an error here.

A damaged or hostile file can crash FFmpeg, keep it busy for ever, or make it allocate without end. This
protects the caller from all three. It is no sandbox: the process has the caller's rights.
"""

import logging
import multiprocessing
import os
import pickle
import random
import resource
import signal
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, BinaryIO, ParamSpec, Protocol, TypeVar

import numpy as np

from talkinghead_lab.errors import MediaError, TalkingHeadError

LOG = logging.getLogger(__name__)
# Imported once, in the process that all others are forked from; none of them may import torch.
PRELOADED = ["talkinghead_lab.media.acceptance", "pyloudnorm"]
MAX_PROCESSORS = 4  # decoders start a thread for each processor, and every thread holds frames
MAX_OPEN_FILES = 64
START_PAUSES = (0.05, 0.5)  # seconds until the death of a killed process is known, on a busy machine
MIB = 2**20
P = ParamSpec("P")
T = TypeVar("T")


class Call(Protocol):
    """Calls a function; where, is up to the implementation."""

    def __call__(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what the function returns."""
        ...


def call_here(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function in this process."""
    return function(*args, **kwargs)


@dataclass(frozen=True)
class IsolatedCall:
    """Calls functions in new processes within limits.

    Functions, arguments and results must be picklable. Large arrays are passed on without a copy.

    Args:
        seconds: time limit of a call.
        mib: memory that a call may allocate.
    """

    seconds: float
    mib: float

    def __call__(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function in a process of its own.

        Raises:
            TalkingHeadError: the function raised it.
            MediaError: it crashed, exceeded a limit, or raised anything else.
        """
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        reader, writer = context.Pipe(duplex=False)
        with reader:
            with writer:
                process = _started(context, (writer, self, function, args, kwargs))
            overdue = threading.Event()

            def stop() -> None:
                overdue.set()
                process.kill()

            timer = threading.Timer(self.seconds, stop)
            timer.start()
            try:
                result, error, details = _receive(reader)
            except (EOFError, pickle.UnpicklingError):
                process.join()
                raise self._failure(process, overdue.is_set()) from None
            finally:
                timer.cancel()
                _end(process)
        if details:
            LOG.error("a file cannot be read", extra={"details": details})
        if error is not None:
            raise error
        return result  # type: ignore[no-any-return]  # of the process

    def _failure(self, process: BaseProcess, overdue: bool) -> MediaError:
        code = process.exitcode or 0
        if overdue or code == -signal.SIGXCPU:
            return MediaError(
                "the file takes too long to read",
                allowed=f"{self.seconds:g} s",
                remedy="Convert it to mp4, wav or png.",
            )
        name = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        LOG.error("a process that read a file has crashed", extra={"reason": name})
        return MediaError(
            f"the file cannot be read: decoding it crashed ({name})",
            remedy="It may be damaged. Convert it to mp4, wav or png.",
        )


def _started(context: ForkServerContext, given: tuple[Any, ...]) -> BaseProcess:
    """Start a process; if the one that it is forked from has just been killed, from a new one.

    Raises:
        OSError, EOFError: it cannot be started.
    """
    for pause in (*START_PAUSES, None):
        process = context.Process(target=_serve, args=given, daemon=True)
        try:
            process.start()
        except (ConnectionError, EOFError):
            if pause is None:
                raise
            time.sleep(pause)
        else:
            break
    return process


def _end(process: BaseProcess) -> None:
    process.join(1)
    if process.exitcode is None:
        process.kill()
        process.join()
    process.close()


def _receive(reader: Connection) -> Any:
    """Read a pickled value and the buffers that it refers to.

    Raises:
        EOFError, UnpicklingError: the process ended before it had written all of it.
    """
    with os.fdopen(os.dup(reader.fileno()), "rb") as stream:
        # Not a bytearray: filling it with zeros would hold all threads for seconds on a busy machine.
        parts = [np.empty(size, np.uint8) for size in pickle.load(stream)]
        for part in parts:
            if stream.readinto(part.data) < len(part):
                raise EOFError
    return pickle.loads(parts[0].data, buffers=parts[1:])


def _serve(
    writer: Connection,
    limits: IsolatedCall,
    function: Callable[..., object],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    """What the process does: call the function and write the result, or the error that it raised."""
    _set_limits(limits)
    with os.fdopen(os.dup(writer.fileno()), "wb") as stream:
        try:
            _send(stream, (function(*args, **kwargs), None, ""))
        except TalkingHeadError as error:
            _send(stream, (None, error, ""))
        except MemoryError:
            _send(stream, (None, _too_much_memory(limits), ""))
        except Exception as error:
            _send(stream, (None, _unexpected(error), traceback.format_exc()))


def _send(stream: BinaryIO, value: object) -> None:
    buffers: list[pickle.PickleBuffer] = []
    parts = [memoryview(pickle.dumps(value, protocol=5, buffer_callback=buffers.append))]
    parts += [buffer.raw() for buffer in buffers]
    pickle.dump([part.nbytes for part in parts], stream)
    for part in parts:
        stream.write(part)


def _set_limits(limits: IsolatedCall) -> None:
    processors = os.sched_getaffinity(0)
    chosen = random.sample(sorted(processors), min(MAX_PROCESSORS, len(processors)))
    with suppress(OSError):
        os.sched_setaffinity(0, chosen)
    with suppress(OSError):  # the first to go, if the machine runs out of memory
        Path("/proc/self/oom_score_adj").write_text("1000")
    # The caller kills this process after the time limit. If the caller is gone, this limit ends it.
    cpu_seconds = int(limits.seconds * len(chosen)) + 1
    for kind, most in (
        (resource.RLIMIT_DATA, _allocated() + int(limits.mib * MIB)),
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, MAX_OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))


def _allocated() -> int:
    """Bytes of private memory that this process has mapped."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmData:")[2].split()[0]) * 1024


def _too_much_memory(limits: IsolatedCall) -> MediaError:
    return MediaError(
        "the file takes too much memory to read",
        allowed=f"{limits.mib:g} MiB",
        remedy="Scale it down, shorten it, or convert it to mp4, wav or png.",
    )


def _unexpected(error: Exception) -> MediaError:
    return MediaError(
        f"the file cannot be read ({type(error).__name__})",
        remedy="It may be damaged. Convert it to mp4, wav or png.",
    )
