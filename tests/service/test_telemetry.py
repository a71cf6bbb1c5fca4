"""Log records become lines of JSON with stable field names."""

import json
import logging
from pathlib import Path

from talkinghead_lab.service.telemetry import JsonLines


def formatted(level: int = logging.INFO, message: str = "job ended", error=None, **extra) -> str:
    record = logging.LogRecord(
        "a.logger", level, "file.py", 1, message, (), error and (type(error), error, None)
    )
    record.created, record.msecs = 1_700_000_000.0625, 62.5
    vars(record).update(extra)
    return JsonLines().format(record)


def test_time_level_logger_and_message_come_first():
    line = json.loads(formatted(logging.WARNING))
    assert list(line.items()) == [
        ("time", "2023-11-14T22:13:20.062Z"), ("level", "warning"), ("logger", "a.logger"),
        ("message", "job ended"),
    ]  # fmt: skip


def test_extra_fields_are_logged_and_uvicorns_colours_are_not():
    line = json.loads(
        formatted(state="finished", seconds=1.5, folder=Path("/output"), color_message="\x1b[1m")
    )
    assert (line["state"], line["seconds"], line["folder"]) == ("finished", 1.5, "/output")
    assert len(line) == 7


def test_an_exception_is_logged_under_its_own_field():
    assert json.loads(formatted(error=ValueError("x")))["exception"] == "ValueError: x"


def test_line_breaks_are_escaped_so_that_no_line_can_be_forged():
    assert "\n" not in formatted(message='a\n{"level": "info"}', job='b\n{"level": "info"}')
