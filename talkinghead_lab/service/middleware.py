"""Middleware for every request: its id, its place, token, limits of the body, log and metrics."""

import asyncio
import logging
import re
import secrets
import time

from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from talkinghead_lab.service.metrics import Metrics
from talkinghead_lab.service.problems import RESTARTS, Problem, busy, problem_of
from talkinghead_lab.service.responses import problem_response
from talkinghead_lab.service.session import COOKIE, session_value
from talkinghead_lab.service.settings import ServiceSettings
from talkinghead_lab.service.telemetry import REQUEST_ID

LOG = logging.getLogger(__name__)
OPEN_PATHS = {"/api/health", "/"}
OPEN_FOLDER = "/page/"
# Only these take files: their bodies are passed on as they arrive.
UPLOAD_PATHS = {"/api/jobs", "/api/plan"}
MAX_UPLOADS = 3
MAX_BODY_BYTES = 64 * 1024  # three times the longest valid request
CLOSE = {"Connection": "close"}
CUT_OFF = "The connection was closed before the body was complete."
ENCODED = "The body is compressed. Send it without Content-Encoding."
UNCLOSED = "The form data is cut off: its closing boundary is missing."
TAIL_BYTES = 1024  # of a form, in which its closing boundary is looked for: some clients add a line or two
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"}
GIVEN_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)


def header(scope: Scope, name: str) -> str:
    """A header of a request; empty if there is none."""
    return str(Headers(scope=scope).get(name, ""))


class RequestMiddleware:
    """The outermost ASGI middleware: every request gets an id, an answer and a line of the log.

    Args:
        app: the application.
        metrics: where requests are counted.
        most: requests under way at once; health checks do not count.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, most: int) -> None:
        self.app, self.metrics, self.most = app, metrics, most
        self._under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; respond to what is raised with a problem."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = header(scope, "x-request-id")
        name = given if GIVEN_ID.fullmatch(given) else secrets.token_hex(8)
        REQUEST_ID.set(name)
        started, status = time.perf_counter(), 0

        async def record(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", name.encode())]
            await send(message)

        self._under_way += 1
        try:
            if self._under_way > self.most and scope["path"] not in OPEN_PATHS:
                raise busy("Too many requests at once. Try again later.", CLOSE)
            await self.app(scope, receive, record)
        except Problem as problem:
            await problem_response(problem)(scope, receive, record)
        except Exception as error:
            LOG.exception("a request failed")
            if status == 0:
                await problem_response(problem_of(error))(scope, receive, record)
        except asyncio.CancelledError:  # by the server, at its end
            if status == 0:
                await problem_response(busy(RESTARTS, CLOSE))(scope, receive, record)
        finally:
            self._under_way -= 1
            self._record(scope, status or 500, time.perf_counter() - started)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        # The route's pattern instead of the path, so that clients cannot create any number of label values.
        path = getattr(scope.get("route"), "path", "other")
        method = scope["method"] if scope["method"] in METHODS else "other"
        self.metrics.requests.labels(method, path, str(status)).inc()
        facts = {"method": method, "path": path, "status": status, "seconds": round(seconds, 3)}
        LOG.info("answered", extra=facts)


class GuardMiddleware:
    """ASGI middleware that checks the token, and reads the body within limits before any of it is used."""

    def __init__(self, app: ASGIApp, settings: ServiceSettings) -> None:
        self.app, self.settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a valid request on.

        Raises:
            Problem: 400 if the body is cut off, 401 without a valid token, 408 or 413 beyond a limit, 415 if
                the body is compressed.
        """
        if scope["type"] == "http":
            self._check_token(scope)
            if header(scope, "content-encoding").strip().lower() not in ("", "identity"):
                raise Problem(415, ENCODED, {"Accept-Encoding": "identity"} | CLOSE)
            if scope["path"] in UPLOAD_PATHS and header(scope, "content-type").startswith("multipart/"):
                receive = self._limited(scope, receive)
            else:
                receive = _replay(await self._read_body(receive), receive)
        await self.app(scope, receive, send)

    def _limited(self, scope: Scope, receive: Receive) -> Receive:
        """Wrap `receive`: a body that is cut off, too large or too slow raises a problem where it is read."""
        most = round(MAX_UPLOADS * self.settings.largest_mib * 2**20) + MAX_BODY_BYTES
        too_large = Problem(413, f"The body is larger than {most >> 20} MiB.", CLOSE)
        if (declared := header(scope, "content-length")).isdigit() and int(declared) > most:
            raise too_large
        until = time.monotonic() + self.settings.upload_seconds
        _, options = parse_options_header(header(scope, "content-type"))
        closing = b"--" + options.get(b"boundary", b"") + b"--"
        size, ended, tail = 0, False, b""

        async def limited() -> Message:
            nonlocal size, ended, tail
            if ended:
                return await receive()
            try:
                async with asyncio.timeout(until - time.monotonic()):
                    message = await receive()
            except TimeoutError:
                seconds = f"{self.settings.upload_seconds:g}"
                raise Problem(408, f"The files did not arrive within {seconds} seconds.", CLOSE) from None
            if message["type"] == "http.disconnect":
                raise Problem(400, CUT_OFF, CLOSE)
            size += len(message.get("body", b""))
            if size > most:
                raise too_large
            ended = not message.get("more_body")
            tail = (tail + message.get("body", b""))[-TAIL_BYTES:]
            if ended and closing not in tail:  # otherwise the last field would be left out without a word
                raise Problem(400, UNCLOSED, CLOSE)
            return message

        return limited

    def _check_token(self, scope: Scope) -> None:
        token = self.settings.token
        if token is None or scope["path"] in OPEN_PATHS or scope["path"].startswith(OPEN_FOLDER):
            return
        cookie = cookie_parser(header(scope, "cookie")).get(COOKIE, "")
        if secrets.compare_digest(cookie.encode(), session_value(token.get_secret_value()).encode()):
            return
        scheme, _, value = header(scope, "authorization").partition(" ")
        matches = secrets.compare_digest(value.strip().encode(), token.get_secret_value().encode())
        if scheme.lower() != "bearer" or not matches:
            raise Problem(401, "A valid bearer token is required.", {"WWW-Authenticate": "Bearer"})

    async def _read_body(self, receive: Receive) -> bytes:
        body = bytearray()
        try:
            async with asyncio.timeout(self.settings.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Problem(400, CUT_OFF, CLOSE)
                    body += message.get("body", b"")
                    if len(body) > MAX_BODY_BYTES:
                        raise Problem(413, f"The body is larger than {MAX_BODY_BYTES} bytes.", CLOSE)
                    if not message.get("more_body"):
                        return bytes(body)
        except TimeoutError:
            seconds = f"{self.settings.body_seconds:g}"
            raise Problem(408, f"The body did not arrive within {seconds} seconds.", CLOSE) from None


def _replay(body: bytes, receive: Receive) -> Receive:
    """Wrap `receive` so that it first returns the body that was already read."""
    replayed = False

    async def replay() -> Message:
        nonlocal replayed
        if replayed:
            return await receive()
        replayed = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
