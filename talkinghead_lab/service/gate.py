"""What every call passes first: the token, a body that is small and prompt, a line in the log and a count."""

import asyncio
import logging
import secrets
import time

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from talkinghead_lab.service.problems import MEDIA_TYPE, Problem
from talkinghead_lab.service.settings import Settings
from talkinghead_lab.service.telemetry import Figures

LOG = logging.getLogger(__name__)
OPEN_PATHS = {"/api/health"}
LARGEST_BODY = 64 * 1024  # bytes; the longest valid request has a third of it
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"}


def problem_response(problem: Problem) -> JSONResponse:
    """A problem as an answer."""
    return JSONResponse(problem.to_json(), problem.status, problem.headers, MEDIA_TYPE)


class Gate:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, settings: Settings, figures: Figures):
        self.app, self.settings, self.figures = app, settings, figures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a call through, or answer what is wrong with it."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started, status = time.perf_counter(), 500

        async def noting_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            self._check_token(scope)
            body = await self._read_body(scope, receive)
            await self.app(scope, _replaying(body, receive), noting_status)
        except Problem as problem:
            await problem_response(problem)(scope, receive, noting_status)
        finally:
            self._note(scope, status, time.perf_counter() - started)

    def _check_token(self, scope: Scope) -> None:
        token = self.settings.token
        if token is None or scope["path"] in OPEN_PATHS:
            return
        given = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, value = given.partition(b" ")
        right = secrets.compare_digest(value.strip(), token.get_secret_value().encode())
        if scheme.lower() != b"bearer" or not right:
            raise Problem(401, "A valid bearer token is needed.", {"WWW-Authenticate": "Bearer"})

    async def _read_body(self, scope: Scope, receive: Receive) -> bytes:
        """The whole body, within its limits of size and time.

        Raises:
            Problem: 408 too slow, 413 too large.
        """
        body = b""
        try:
            async with asyncio.timeout(self.settings.body_seconds):
                while True:
                    message = await receive()
                    body += message.get("body", b"")
                    if len(body) > LARGEST_BODY:
                        raise Problem(413, f"The body is larger than {LARGEST_BODY} bytes.", CLOSE)
                    if not message.get("more_body"):
                        return body
        except TimeoutError:
            seconds = f"{self.settings.body_seconds:g}"
            raise Problem(408, f"The body did not arrive within {seconds} seconds.", CLOSE) from None

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        # A route's pattern, not what was called: names of metrics must not grow with the callers' ideas.
        path = getattr(scope.get("route"), "path", "other")
        method = scope["method"] if scope["method"] in METHODS else "other"
        self.figures.requests.labels(method, path, str(status)).inc()
        facts = {"method": method, "path": path, "status": status, "seconds": round(seconds, 3)}
        LOG.info("answered", extra=facts)


CLOSE = {"Connection": "close"}


def _replaying(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body that was read already, then whatever comes."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
