"""Nothing waits for whoever reads the log."""

import logging
import os
import signal
import time

from talkinghead_lab.service.log_writer import LogWriter
from tests.service.conftest import Server

PIPE_BYTES = 65_536  # of Linux


class Unread(Server):
    """A service whose log is read until it has started."""

    def _read_log(self, address) -> None:
        for line in self.process.stderr:
            if "running on http" in line:
                address.put(line.split("running on ")[1].split(" ")[0].strip('",'))
                return


def test_a_service_whose_log_nobody_reads_answers_and_ends(launch):
    server = Unread(launch().environment).start()
    try:
        for _ in range(PIPE_BYTES // 100):  # a line is longer than that
            server.health()
        assert server.generate().status_code == 200
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == -signal.SIGTERM
    finally:
        server.process.kill()


def test_lines_beyond_the_limit_are_counted():
    reader, writer = os.pipe()
    handler = LogWriter(os.fdopen(writer, "w"), most=5)
    handler.setFormatter(logging.Formatter("%(message)s %(lines)s", defaults={"lines": ""}))

    def emit(message: str) -> None:
        handler.emit(logging.LogRecord("a", logging.INFO, "file.py", 1, message, (), None))

    emit("x" * 2 * PIPE_BYTES)  # blocks the writer
    while handler._lines:
        time.sleep(0.01)
    for number in range(8):
        emit(str(number))
    with os.fdopen(reader) as log:
        log.readline()
        assert [log.readline().split()[0] for _ in range(5)] == list("01234")
        assert log.readline() == "lines were left out: nobody read the log 3\n"
        emit("read again")
        handler.flush()
        assert log.readline() == "read again \n"


def test_lines_are_written_before_the_service_ends(launch):
    server = launch()
    assert server.generate().status_code == 200
    assert server.stop() == -signal.SIGTERM
    until = time.monotonic() + 10
    while "Finished server process" not in server.log[-1]:
        assert time.monotonic() < until, server.log[-3:]
        time.sleep(0.05)
