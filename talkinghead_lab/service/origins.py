"""Which hosts a request may name, and from which pages it may come.

A page of another site can make a browser send requests to a service on the same machine. It names its own
host if it has its name resolve to a loopback address (DNS rebinding); otherwise the browser names its origin.
"""

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from talkinghead_lab.service.problems import Problem

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
DEFAULT_PORTS = {"http": 80, "https": 443}


class OriginMiddleware:
    """ASGI middleware that refuses requests of pages of other origins; it does not look at the host.

    Args:
        app: the application.
        allowed_hosts: whose pages may send requests, at any port; `*`: any page.
    """

    def __init__(self, app: ASGIApp, allowed_hosts: tuple[str, ...]) -> None:
        self.app, self.allowed_hosts = app, allowed_hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on.

        Raises:
            Problem: 403, it comes from a page of another origin.
        """
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            host = headers.get("host", "")
            if not all(self._allows(origin, host) for origin in headers.getlist("origin")):
                raise Problem(403, "Requests from pages of other origins are refused. See ALLOWED_HOSTS.")
        await self.app(scope, receive, send)

    def _allows(self, origin: str, host: str) -> bool:
        if "*" in self.allowed_hosts:
            return True
        try:
            given = urlsplit(origin)
            own = urlsplit(f"{given.scheme}://{host}")
            port, own_port = (part.port or DEFAULT_PORTS.get(part.scheme) for part in (given, own))
        except ValueError:
            return False
        if given.hostname is None:  # "null": a sandboxed page or a file
            return False
        if (given.hostname, port) == (own.hostname, own_port):
            return True
        return any(
            given.hostname == name or (name.startswith("*.") and given.hostname.endswith(name[1:]))
            for name in self.allowed_hosts
        )
