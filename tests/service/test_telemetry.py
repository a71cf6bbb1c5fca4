"""Log records become lines of JSON with stable field names."""

import json
import logging
from contextvars import copy_context
from pathlib import Path

import pytest

from talkinghead_lab.service.telemetry import (
    REQUEST_ID,
    JsonLines,
    Redaction,
    RepeatFilter,
    RequestIdFilter,
    TextLines,
)


def formatted(
    level: int = logging.INFO, message: str = "job ended", error=None, formatter=None, **extra
) -> str:
    record = logging.LogRecord(
        "a.logger", level, "file.py", 1, message, (), error and (type(error), error, None)
    )
    record.created, record.msecs = 1_700_000_000.0625, 62.5
    vars(record).update(extra)
    return (formatter or JsonLines()).format(record)


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


def test_text_lines():
    text = TextLines()
    line = formatted(formatter=text, state="finished", color_message="\x1b[1m", job="a\nb")
    assert line == "2023-11-14 22:13:20,062 INFO     a.logger: job ended state=finished job=a\\nb"
    assert formatted(formatter=text, error=ValueError("x")).splitlines()[1:] == ["ValueError: x"]


@pytest.mark.parametrize("formatter", [JsonLines, TextLines])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("GET /api/jobs?token=abc&x=1 failed", "GET /api/jobs?*** failed"),
        ("https://hooks.example.com/a?sig=abc%2F", "https://hooks.example.com/a?***"),
        ("https://user:abc@example.com/x", "https://user:***@example.com/x"),
        ("Authorization: Bearer abc.d-e", "Authorization: Bearer ***"),
        ("the token s3cret is wrong", "the token *** is wrong"),
        ("is it right? yes=no", "is it right? yes=no"),
    ],
)
def test_no_line_has_a_secret(formatter, text, expected):
    redacting = formatter(Redaction(["s3cret"]))
    error = ValueError(text)
    line = formatted(message=text, formatter=redacting, url=text, parts=[text], error=error)
    assert line.count(expected) == 4
    assert text == expected or text not in line


def test_records_carry_the_id_of_their_request():
    record = logging.LogRecord("a", logging.INFO, "file.py", 1, "x", (), None)
    context = copy_context()
    context.run(REQUEST_ID.set, "abc")
    assert context.run(RequestIdFilter().filter, record)
    assert record.request_id == "abc"


def test_repeated_warnings_are_counted_instead_of_logged(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    repeats = RepeatFilter()

    def passed(level: int, message: str = "socket.accept() out of system resource"):
        record = logging.LogRecord("asyncio", level, "file.py", 1, message, (), None)
        return repeats.filter(record), getattr(record, "repeated", None)

    assert [passed(logging.ERROR)[0] for _ in range(500)] == [True] * 10 + [False] * 490
    assert passed(logging.ERROR, "another one") == (True, None)
    assert all(passed(logging.INFO)[0] for _ in range(50))
    now[0] = 11
    assert passed(logging.ERROR) == (True, 490)
    assert passed(logging.ERROR) == (True, None)
