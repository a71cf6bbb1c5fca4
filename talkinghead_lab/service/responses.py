"""What holds for every response: errors are problems, HEAD has no body, OPTIONS and 405 name all methods."""

import re
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Match, Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from talkinghead_lab.service.problems import MEDIA_TYPE, Problem

ROUTED_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
# Of starlette's TrustedHostMiddleware.
CLEARER = {
    "Invalid host header": "The request names a host that is not allowed. Set ALLOWED_HOSTS on the service."
}
EMPTY: Message = {"type": "http.response.body", "body": b""}
BYTES = re.compile(rb"\s*bytes\s*=[^_]*", re.IGNORECASE)  # int() would take 1_0 for 10


def problem_response(problem: Problem) -> JSONResponse:
    """Convert a problem to an HTTP response."""
    return JSONResponse(problem.to_json(), problem.status, problem.headers, MEDIA_TYPE)


def allowed_methods(scope: Scope) -> str:
    """All methods of a request's path, for the header `Allow`."""
    whole = dict(scope, root_path=scope.get("app_root_path", ""))  # within a mount, it is the mount's path

    def takes(route: BaseRoute, method: str) -> bool:
        # Mounted are files only; a mount itself matches every method.
        matches = route.matches(dict(whole, method=method))[0] is Match.FULL
        return matches and (method == "GET" or not isinstance(route, Mount))

    routes = scope["app"].routes
    found = [method for method in ROUTED_METHODS if any(takes(route, method) for route in routes)]
    return ", ".join([*found, *(["HEAD"] if "GET" in found else []), "OPTIONS"])


def method_not_allowed(scope: Scope) -> Response:
    """The response to OPTIONS, and to a method that the path does not have."""
    headers = {"Allow": allowed_methods(scope)}
    if scope["method"] == "OPTIONS":
        return Response(status_code=204, headers=headers)
    return problem_response(Problem(405, "The path does not have this method.", headers))


class ResponseMiddleware:
    """ASGI middleware: GET serves HEAD, unknown range units are ignored, plain errors become problems."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope["headers"] = [
            (name, value) for name, value in scope["headers"] if name != b"range" or BYTES.fullmatch(value)
        ]
        send = _problems_for_text(send)
        if scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return
        # Once the response is complete, `receive` says that the client has gone: streams end.
        inner, answered = dict(scope, method="GET"), False

        async def send_head(message: Message) -> None:
            nonlocal answered
            if not answered:
                await send(message if message["type"] == "http.response.start" else EMPTY)
                answered = message["type"] == "http.response.body"

        await self.app(inner, receive, send_head)
        scope["route"] = inner.get("route")


def _problems_for_text(send: Send) -> Send:
    """Wrap `send` so that errors in plain text, as libraries make them, become problems."""
    error: Problem | None = None

    async def send_problem(message: Message) -> None:
        nonlocal error
        headers = Headers(raw=message.get("headers", []))
        if message.get("status", 0) >= 400 and headers.get("content-type", "").startswith("text/plain"):
            kept = {name: value for name, value in headers.items() if not name.startswith("content-")}
            if "content-range" in headers:
                kept["content-range"] = headers["content-range"]
            error = Problem(message["status"], "", kept)
        elif error is None:
            await send(message)
        else:
            error.detail += message.get("body", b"").decode(errors="replace")
            if not message.get("more_body"):
                text = error.detail or HTTPStatus(error.status).phrase
                error.detail = CLEARER.get(text, text.rstrip(".") + ".")
                response = problem_response(error)
                start = {
                    "type": "http.response.start",
                    "status": error.status,
                    "headers": response.raw_headers,
                }
                await send(start)
                await send({"type": "http.response.body", "body": response.body})

    return send_problem
