"""Writes the log in a thread of its own: whoever stops reading it holds up nothing but the log."""

import logging
import threading
from contextlib import suppress
from typing import TextIO

MOST_LINES = 10_000  # that wait to be written; about 3 MB
FLUSH_SECONDS = 2.0


class LogWriter(logging.Handler):
    """Formats each record at once and leaves the writing to a thread.

    A pipe that nobody reads, of a pager or a busy container runtime, blocks whoever writes to it. When too
    many lines wait, further ones are left out, and a line says how many.
    """

    def __init__(self, stream: TextIO, most: int = MOST_LINES) -> None:
        super().__init__()
        self._stream, self._most = stream, most
        self._lines: list[str] = []
        self._left_out = 0
        self._idle = True
        self._changed = threading.Condition()
        threading.Thread(target=self._write, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the line of a record."""
        try:
            line = self.format(record)
        except Exception:
            self.handleError(record)
            return
        with self._changed:
            if len(self._lines) < self._most:
                self._lines.append(line + "\n")
            else:
                self._left_out += 1
            self._idle = False
            self._changed.notify_all()

    def flush(self) -> None:
        """Wait until all lines are written, or give up after two seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._idle, FLUSH_SECONDS)

    def _write(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines)
                lines, self._lines = self._lines, []
                left_out, self._left_out = self._left_out, 0
            if left_out:
                lines.append(self.format(_left_out_record(left_out)) + "\n")
            with suppress(OSError, ValueError):  # the reader has gone, or the stream is closed
                self._stream.write("".join(lines))
                self._stream.flush()
            with self._changed:
                self._idle = not self._lines
                self._changed.notify_all()


def _left_out_record(number: int) -> logging.LogRecord:
    message = "lines were left out: nobody read the log"
    record = logging.LogRecord(__name__, logging.WARNING, __file__, 0, message, (), None)
    record.lines = number
    return record
