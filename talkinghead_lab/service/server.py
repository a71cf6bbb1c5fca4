"""uvicorn with what it leaves to a proxy: deadlines, a cap on connections, problem responses."""

import asyncio
import json
import logging
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from socket import socket
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from talkinghead_lab.service.problems import MEDIA_TYPE, Problem

MAX_CONNECTIONS = 512
BACKLOG = 32  # connections that the event loop accepts in one go, before it can refuse any
OWN_FILES = 160  # for files, pipes to processes that decode, and three times the backlog
STALLED_SECONDS = 60.0  # time in which a client must read what is buffered for it, 64 KiB


def max_connections() -> int:
    """Most connections at once: 512, or what the limit of open files (`ulimit -n`) has room for."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return max(16, min(MAX_CONNECTIONS, files - OWN_FILES))


@dataclass(frozen=True)
class ConnectionLimits:
    """Limits of a server's connections.

    Args:
        header_seconds: time for a request's header to arrive.
        connections: most at once; beyond it, the oldest that waits for a request is closed.
        opened: those that are open, oldest first.
    """

    header_seconds: float
    connections: int
    opened: "dict[BoundedProtocol, None]" = field(default_factory=dict)


class BoundedProtocol(H11Protocol):
    """One connection within limits."""

    def __init__(self, *args: Any, limits: ConnectionLimits, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.limits = limits
        self._header_timer: asyncio.TimerHandle | None = None
        self._stalled_timer: asyncio.TimerHandle | None = None

    @property
    def is_waiting(self) -> bool:
        """Whether no request is under way."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the deadline of the header, and make room."""
        super().connection_made(transport)
        opened = self.limits.opened
        opened[self] = None
        self._watch_header()
        if len(opened) > self.limits.connections:
            surplus = next((other for other in opened if other.is_waiting), self)
            del opened[surplus]
            surplus.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection and its deadlines."""
        self.limits.opened.pop(self, None)
        for timer in (self._header_timer, self._stalled_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on; bytes that do not complete a header do not extend its deadline."""
        super().data_received(data)
        self._watch_header()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._watch_header()

    def eof_received(self) -> None:
        """Refuse a request whose body is cut off."""
        if not self.is_waiting and self.cycle.more_body and not self.cycle.response_started:
            self._refuse(Problem(400, "The connection was closed before the body was complete."))

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP."""
        self._refuse(Problem(400, msg))

    def pause_writing(self) -> None:
        """Give the client time to read."""
        super().pause_writing()
        self._stalled_timer = self.loop.call_later(STALLED_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has read."""
        super().resume_writing()
        if self._stalled_timer is not None:
            self._stalled_timer.cancel()

    def _watch_header(self) -> None:
        # Between requests, uvicorn's own deadline runs until the first bytes arrive.
        awaited = self.is_waiting and self.timeout_keep_alive_task is None
        if awaited and self._header_timer is None:
            self._header_timer = self.loop.call_later(self.limits.header_seconds, self._header_overdue)
        elif not awaited and self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _header_overdue(self) -> None:
        seconds = f"{self.limits.header_seconds:g}"
        self._refuse(Problem(408, f"The header did not arrive within {seconds} seconds."))

    def _refuse(self, problem: Problem) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps(problem.to_json()).encode()
            headers = {"Content-Type": MEDIA_TYPE, "Content-Length": str(len(body)), "Connection": "close"}
            reason = HTTPStatus(problem.status).phrase
            head = h11.Response(status_code=problem.status, headers=list(headers.items()), reason=reason)
            for event in (head, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


class Server(uvicorn.Server):
    """A server that tells its application of a shutdown before it waits for requests under way."""

    def __init__(self, config: uvicorn.Config, closing: Callable[[], None]) -> None:
        super().__init__(config)
        self._closing = closing

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals that end the server end the process in the end: first, the log is written.

        SIGHUP, of a terminal that closes, is one of them, unless it is ignored, as under nohup.
        """
        is_main = threading.current_thread() is threading.main_thread()  # signals reach no other thread
        hangs_up = is_main and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
        with super().capture_signals():
            try:
                if hangs_up:
                    signal.signal(signal.SIGHUP, self.handle_exit)
                yield
            finally:
                if hangs_up:
                    signal.signal(signal.SIGHUP, signal.SIG_DFL)
                for handler in logging.getLogger().handlers:
                    handler.flush()

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        """Shut down; requests that still run after `timeout_graceful_shutdown` are cancelled."""
        self._closing()
        await super().shutdown(sockets)


def make_server(
    app: Any, host: str, port: int, limits: ConnectionLimits, closing: Callable[[], None]
) -> Server:
    """Configure a server for an ASGI application; `closing` is called when a shutdown begins."""
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=partial(BoundedProtocol, limits=limits),  # type: ignore[arg-type]  # called as a class would be
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=5,
    )
    return Server(config, closing)
