"""Logs: one line per record, as JSON or text, with the request's id and without secrets."""

import logging
import re
import sys
import time
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any, Literal

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

from talkinghead_lab.service.log_writer import LogWriter

REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)
UVICORN_COLOURS = "color_message"
QUERY = re.compile(r"\?[\w.~%-]+=[^\s\"'<>]*")
BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]+")
PASSWORD = re.compile(r"(://[^\s/:@]*):[^\s/@]+@")
MOST_REPEATED, REPEATED_SECONDS = 10, 10.0


class Redaction:
    """Removes from text what gives access: query strings, credentials in URLs and headers, the token."""

    def __init__(self, secrets: Sequence[str] = ()) -> None:
        exact = "|".join(re.escape(secret) for secret in secrets if secret)
        self._secrets = re.compile(rf"(?<!\w)(?:{exact})(?!\w)") if exact else None

    def __call__(self, text: str) -> str:
        """The text without secrets."""
        text = PASSWORD.sub(r"\1:***@", BEARER.sub(r"\1 ***", QUERY.sub("?***", text)))
        return self._secrets.sub("***", text) if self._secrets else text

    def all(self, value: Any) -> Any:
        """The same for all text in lists and dictionaries."""
        if isinstance(value, str):
            return self(value)
        if isinstance(value, dict):
            return {name: self.all(part) for name, part in value.items()}
        if isinstance(value, list | tuple):
            return [self.all(part) for part in value]
        return value if isinstance(value, int | float | None) else self(str(value))


class RequestIdFilter(logging.Filter):
    """Adds the id of the request that a record belongs to."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record pass."""
        if name := REQUEST_ID.get():
            record.request_id = name
        return True


class RepeatFilter(logging.Filter):
    """Lets a warning or an error pass ten times in ten seconds; the next one to pass counts the others.

    What a client can provoke must not fill the disk.
    """

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[tuple[str, str], list[float]] = {}  # start of the time, number in it

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is logged."""
        if record.levelno < logging.WARNING:
            return True
        now, key = time.monotonic(), (record.name, str(record.msg)[:80])
        if len(self._seen) > 1000:
            self._seen.clear()
        start, number = self._seen.setdefault(key, [now, 0])
        if now - start > REPEATED_SECONDS:
            if number > MOST_REPEATED:
                record.repeated = int(number) - MOST_REPEATED
            start, number = now, 0
        self._seen[key] = [start, number + 1]
        return number < MOST_REPEATED


class JsonLines(JsonFormatter):
    """One JSON object per line: time in UTC, level, logger, message, the fields of `extra`, exception."""

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self, redaction: Redaction | None = None) -> None:
        super().__init__(
            "%(asctime)s %(levelname)s %(name)s %(message)s",
            rename_fields={
                "asctime": "time",
                "levelname": "level",
                "name": "logger",
                "exc_info": "exception",
            },
            reserved_attrs=[*RESERVED_ATTRS, UVICORN_COLOURS],
            json_default=str,
        )
        self._redaction = redaction or Redaction()

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        """Level names are lower case; secrets are removed."""
        redacted: dict[str, Any] = self._redaction.all(log_data)
        return redacted | {"level": log_data["level"].lower()}


class TextLines(logging.Formatter):
    """The same as text: time, level, logger and message, then `name=value` of the other fields."""

    converter = staticmethod(time.gmtime)

    def __init__(self, redaction: Redaction | None = None) -> None:
        super().__init__("%(asctime)s %(levelname)-8s %(name)s: %(message)s")
        self._redaction = redaction or Redaction()

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line without exception; no value can forge another line."""
        own = {*RESERVED_ATTRS, UVICORN_COLOURS, "message", "asctime"}
        extra = "".join(f" {name}={value}" for name, value in vars(record).items() if name not in own)
        return (super().formatMessage(record) + extra).replace("\r", "\\r").replace("\n", "\\n")

    def format(self, record: logging.LogRecord) -> str:
        """The line, and the exception below it, without secrets."""
        return self._redaction(super().format(record))


def log_to_stderr(form: Literal["json", "text"], secrets: Sequence[str]) -> None:
    """Log every record of this process to stderr.

    Args:
        form: of the lines.
        secrets: text that must not be logged.
    """
    handler = LogWriter(sys.stderr)
    handler.setFormatter((JsonLines if form == "json" else TextLines)(Redaction(secrets)))
    handler.addFilter(RequestIdFilter())
    handler.addFilter(RepeatFilter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
