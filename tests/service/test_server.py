"""Limits of connections, on a server in this process."""

import resource
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from talkinghead_lab.service import server as module
from talkinghead_lab.service.server import ConnectionLimits, Server, make_server, max_connections

ENDLESS = 64


async def app(scope, receive, send) -> None:
    """Sends 64 MiB, more than any buffer holds."""
    if scope["type"] != "http":
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for number in range(ENDLESS):
        part = {"type": "http.response.body", "body": bytes(2**20), "more_body": number < ENDLESS - 1}
        await send(part)


@pytest.fixture
def running(monkeypatch) -> Iterator[tuple[Server, ConnectionLimits, int]]:
    """A server for 4 connections that gives clients half a second."""
    monkeypatch.setattr(module, "STALLED_SECONDS", 0.5)
    limits = ConnectionLimits(header_seconds=0.5, connections=4)
    server = make_server(app, "127.0.0.1", 0, limits, lambda: None)
    server.config.lifespan = "off"
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield server, limits, server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join(20)
    assert not thread.is_alive()


def until(condition, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_client_that_does_not_read_is_disconnected(running):
    _, limits, port = running
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        until(lambda: len(limits.opened) == 1)
        until(lambda: not limits.opened)


def test_a_client_that_reads_slowly_gets_everything(running):
    _, _, port = running
    received = 0
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        for number in range(10_000):
            part = client.recv(2**20)
            if not part:
                break
            received += len(part)
            time.sleep(0.1 if number < 10 else 0)
    assert received > ENDLESS * 2**20


def test_the_oldest_connection_that_waits_makes_room(running):
    _, limits, port = running
    clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(6)]
    until(lambda: len(limits.opened) <= 4)
    for client in clients:
        client.settimeout(5)
    for client in clients[:2]:
        assert client.recv(10) == b""
    assert clients[5].recv(12) == b"HTTP/1.1 408"
    for client in clients:
        client.close()


@pytest.mark.parametrize(("files", "expected"), [(256, 96), (1024, 512), (100, 16)])
def test_the_number_of_connections_follows_the_limit_of_open_files(monkeypatch, files, expected):
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (files, files))
    assert max_connections() == expected
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY,) * 2)
    assert max_connections() == 512
