"""Middleware for every request: bearer token, limits of the body, access log and request metrics."""

import asyncio
import logging
import secrets
import time

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from talkinghead_lab.service.problems import MEDIA_TYPE, Problem
from talkinghead_lab.service.settings import ServiceSettings
from talkinghead_lab.service.telemetry import Metrics

LOG = logging.getLogger(__name__)
OPEN_PATHS = {"/api/health"}
MAX_BODY_BYTES = 64 * 1024  # three times the longest valid request
CLOSE = {"Connection": "close"}
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"}


def problem_response(problem: Problem) -> JSONResponse:
    """Convert a problem to an HTTP response."""
    return JSONResponse(problem.to_json(), problem.status, problem.headers, MEDIA_TYPE)


class RequestMiddleware:
    """ASGI middleware around all routes of the application."""

    def __init__(self, app: ASGIApp, settings: ServiceSettings, metrics: Metrics) -> None:
        self.app, self.settings, self.metrics = app, settings, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a valid request on; respond to any other with a problem."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started, status = time.perf_counter(), 500

        async def record_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            self._check_token(scope)
            body = await self._read_body(scope, receive)
            await self.app(scope, _replay(body, receive), record_status)
        except Problem as problem:
            await problem_response(problem)(scope, receive, record_status)
        finally:
            self._record(scope, status, time.perf_counter() - started)

    def _check_token(self, scope: Scope) -> None:
        token = self.settings.token
        if token is None or scope["path"] in OPEN_PATHS:
            return
        given = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, value = given.partition(b" ")
        matches = secrets.compare_digest(value.strip(), token.get_secret_value().encode())
        if scheme.lower() != b"bearer" or not matches:
            raise Problem(401, "A valid bearer token is required.", {"WWW-Authenticate": "Bearer"})

    async def _read_body(self, scope: Scope, receive: Receive) -> bytes:
        """Read the complete body within the limits of size and time.

        Raises:
            Problem: 408 if it arrives too slowly, 413 if it is too large.
        """
        body = bytearray()
        try:
            async with asyncio.timeout(self.settings.body_seconds):
                while True:
                    message = await receive()
                    body += message.get("body", b"")
                    if len(body) > MAX_BODY_BYTES:
                        raise Problem(413, f"The body is larger than {MAX_BODY_BYTES} bytes.", CLOSE)
                    if not message.get("more_body"):
                        return bytes(body)
        except TimeoutError:
            seconds = f"{self.settings.body_seconds:g}"
            raise Problem(408, f"The body did not arrive within {seconds} seconds.", CLOSE) from None

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        # The route's pattern instead of the path, so that clients cannot create any number of label values.
        path = getattr(scope.get("route"), "path", "other")
        method = scope["method"] if scope["method"] in METHODS else "other"
        self.metrics.requests.labels(method, path, str(status)).inc()
        facts = {"method": method, "path": path, "status": status, "seconds": round(seconds, 3)}
        LOG.info("answered", extra=facts)


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
