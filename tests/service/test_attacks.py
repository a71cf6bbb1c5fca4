"""Attacks on connections, headers, methods and ranges, and a shutdown while clients wait."""

import json
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import pytest

from tests.service.conftest import ENDLESS, GENERATE, Server

HALF_A_HEADER = b"GET /api/health HTTP/1.1\r\nHost: localhost\r\nX-Slow: "
PROBLEM = "application/problem+json"


def answer(connection: socket.socket, seconds: float = 10) -> bytes:
    """All that arrives until the connection is closed."""
    connection.settimeout(seconds)
    received = b""
    while part := connection.recv(65536):
        received += part
    return received


def exchange(server: Server, sent: bytes, seconds: float = 10) -> bytes:
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(sent)
        return answer(connection, seconds)


def assert_problem(response: httpx.Response, status: int) -> None:
    assert (response.status_code, response.headers["Content-Type"]) == (status, PROBLEM), response.text
    assert response.json()["status"] == status
    assert len(response.json()["detail"]) > 5


@pytest.fixture(scope="module")
def crowded(launch) -> Server:
    """A service that may open 256 files, and gives a header a second."""
    command = ["sh", "-c", f"ulimit -n 256; exec {Server.command[0]} -m talkinghead_lab.service"]
    return launch(command, BODY_SECONDS="1")


@pytest.mark.parametrize("sent", [HALF_A_HEADER, b"", b"P", b"POST /api/generate-video HTTP/1.1\r\n"])
def test_half_open_connections_neither_silence_health_nor_fill_the_log(crowded, sent):
    lines = len(crowded.log)
    slowest = 0.0
    with ExitStack() as stack:
        for _ in range(400):
            connection = stack.enter_context(socket.socket())
            connection.setblocking(False)
            connection.connect_ex(("127.0.0.1", crowded.port))
            connection.setblocking(True)
            connection.settimeout(5)
            try:
                connection.sendall(sent)
            except OSError:  # closed already: there are too many
                continue
        for _ in range(10):
            started = time.perf_counter()
            with httpx.Client() as client:  # a new connection each time
                assert client.get(f"{crowded.url}/api/health").status_code == 200
            slowest = max(slowest, time.perf_counter() - started)
    assert slowest < 1
    assert sum(map(len, crowded.log[lines:])) < 20_000
    assert crowded.generate().status_code == 200


def test_a_header_that_drips_is_closed(crowded):
    with socket.create_connection(("127.0.0.1", crowded.port)) as connection:
        connection.sendall(HALF_A_HEADER)
        started = time.monotonic()
        connection.settimeout(0.1)
        while time.monotonic() < started + 10:
            try:
                connection.sendall(b"x")
                received = connection.recv(1000)
                break
            except TimeoutError:
                continue
        assert received.startswith(b"HTTP/1.1 408 ")
        assert PROBLEM.encode() in received
    assert time.monotonic() - started < 5


def test_a_second_header_that_drips_on_a_used_connection_is_closed(crowded):
    whole = b"GET /api/health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with socket.create_connection(("127.0.0.1", crowded.port)) as connection:
        connection.sendall(whole)
        assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")
        connection.sendall(HALF_A_HEADER)
        assert b"HTTP/1.1 408 " in answer(connection)


def test_requests_beyond_the_cap_are_refused_and_health_is_not(crowded):
    head = b"POST /api/generate-video HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"
    with ExitStack() as stack:
        connections = [
            stack.enter_context(socket.create_connection(("127.0.0.1", crowded.port))) for _ in range(150)
        ]
        for connection in connections:
            connection.settimeout(5)
            try:
                connection.sendall(head)
            except OSError:
                continue
        assert httpx.get(f"{crowded.url}/api/health").status_code == 200


@pytest.mark.parametrize("cut", ["length", "chunked", "nothing"])
def test_a_body_that_is_cut_off_is_refused(server, cut):
    body = json.dumps(server.request(prompt=f"cut: {cut}")).encode()
    heads = {
        "length": b"Content-Length: %d\r\n\r\n%s" % (len(body) + 10, body),
        "chunked": b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (len(body), body),
        "nothing": b"Content-Length: %d\r\n\r\n" % len(body),
    }
    jobs = len(server.client.get("/api/jobs").json())
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        head = f"POST {GENERATE} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode()
        connection.sendall(head + heads[cut])
        connection.shutdown(socket.SHUT_WR)
        received = answer(connection)
    assert received.startswith(b"HTTP/1.1 400 ")
    assert PROBLEM.encode() in received
    assert len(server.client.get("/api/jobs").json()) == jobs


@pytest.mark.parametrize(
    ("ending", "status"),
    [
        *((cut, 400) for cut in (b"", b"\r\n", b"\r\n--x", b"\r\n--y--\r\n")),
        *((whole, 202) for whole in (b"\r\n--x--", b"\r\n--x--\r\n", b"\r\n--x--\r\nan epilogue\r\n")),
    ],
)
def test_form_data_without_its_closing_boundary_is_refused(server, ending, status):
    """Its last field, here the prompt, would be left out without a word."""
    fields = {"image_path": b"portrait.png", "audio_path": b"recording.wav", "prompt": b"a calm presenter"}
    parts = [
        b'--x\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s' % (name.encode(), value)
        for name, value in fields.items()
    ]
    headers = {"Content-Type": 'multipart/form-data; boundary="x"'}
    response = server.client.post("/api/jobs", content=b"\r\n".join(parts) + ending, headers=headers)
    if status == 400:
        assert_problem(response, status)
        assert "closing boundary" in response.json()["detail"]
    else:
        assert response.status_code == status, response.text
        server.client.delete(f"/api/jobs/{response.json()['id']}")


def test_details_are_sentences(server):
    headers = {"Content-Type": "multipart/form-data"}
    response = server.client.post("/api/jobs", content=b"--x--", headers=headers)
    assert_problem(response, 400)
    assert response.json()["detail"] == "Missing boundary in multipart."


def test_what_is_not_http_gets_a_problem(server):
    received = exchange(server, b"HELO example.com\r\n\r\n")
    assert received.startswith(b"HTTP/1.1 400 ")
    assert PROBLEM.encode() in received


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example.com", "Origin": "http://evil.example.com"}, 400),
        ({"Host": "evil.example.com:8200"}, 400),
        ({"Host": "localhost.evil.example.com"}, 400),
        ({"Host": "127.0.0.1.nip.io"}, 400),
        ({"Host": "192.0.2.1"}, 400),
        ({"Host": "["}, 400),
        ({"Origin": "http://evil.example.com"}, 403),
        ({"Origin": "https://localhost.evil.example.com"}, 403),
        ({"Origin": "http://localhost:1"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://localhost:99999999"}, 403),
    ],
    ids=str,
)
@pytest.mark.parametrize("path", ["/api/health", "/api/jobs", "/openapi.json"])
def test_foreign_hosts_and_origins_are_refused(server, headers, status, path):
    assert_problem(server.client.get(path, headers=headers), status)
    assert_problem(server.client.post(GENERATE, json=server.request(), headers=headers), status)


@pytest.mark.parametrize("host", ["localhost:{port}", "127.0.0.1", "[::1]:{port}", "LOCALHOST"])
def test_loopback_hosts_and_their_own_pages_are_served(server, host):
    host = host.format(port=server.port)
    for headers in ({"Host": host}, {"Host": host, "Origin": f"http://{host}"}):
        assert server.client.get("/api/jobs", headers=headers).status_code == 200


def test_further_hosts_can_be_allowed(launch):
    server = launch(ALLOWED_HOSTS="infinitetalk-api, *.example.com")
    for host in ("infinitetalk-api:8200", "video.example.com"):
        headers = {"Host": host, "Origin": "https://video.example.com"}
        assert server.client.get("/api/jobs", headers=headers).status_code == 200
    refused = server.client.get("/api/jobs", headers={"Host": "example.org"})
    assert_problem(refused, 400)
    assert "ALLOWED_HOSTS" in refused.json()["detail"]
    assert_problem(server.client.get("/api/jobs", headers={"Origin": "http://example.org"}), 403)


@pytest.fixture(scope="module")
def video(server) -> str:
    return "/api/videos/" + "/".join(server.generate().json()["video_path"].split("/")[-2:])


def test_head_is_answered_as_get_without_a_body(server, video):
    job = server.client.get("/api/jobs").json()[-1]["id"]
    paths = [video, "/api/health", "/api/jobs", f"/api/jobs/{job}", "/metrics", "/openapi.json"]
    for path in paths:
        whole, head = server.client.get(path), server.client.head(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["Content-Type"] == whole.headers["Content-Type"]
    assert head.headers["Content-Length"] == whole.headers["Content-Length"]
    assert server.client.head(video).headers["Content-Length"] == str(len(server.client.get(video).content))
    part = server.client.head(video, headers={"Range": "bytes=4-7"})
    assert (part.status_code, part.headers["Content-Length"], part.content) == (206, "4", b"")
    assert server.client.head(f"/api/jobs/{job}/events").status_code == 200
    assert server.client.head("/api/jobs/x").status_code == 404
    assert server.client.head(GENERATE).status_code == 405


def test_a_client_that_has_the_video_does_not_get_it_again(server, video):
    job = server.client.get("/api/jobs").json()[-1]["id"]
    for path in (video, f"/api/jobs/{job}/video"):
        whole = server.client.get(path)
        for name, value in (("If-None-Match", "ETag"), ("If-Modified-Since", "Last-Modified")):
            known = server.client.get(path, headers={name: whole.headers[value]})
            assert (known.status_code, known.content) == (304, b"")
            assert known.headers["ETag"] == whole.headers["ETag"]
        other = server.client.get(path, headers={"If-None-Match": '"other"'})
        assert (other.status_code, other.content) == (200, whole.content)


def test_options_and_405_name_all_methods(server, video):
    job = server.client.get("/api/jobs").json()[-1]["id"]
    expected = {
        f"/api/jobs/{job}": {"GET", "HEAD", "DELETE", "OPTIONS"},
        video: {"GET", "HEAD", "OPTIONS"},
        GENERATE: {"POST", "OPTIONS"},
        "/api/health": {"GET", "HEAD", "OPTIONS"},
        "/page/page.js": {"GET", "HEAD", "OPTIONS"},
        "/api/samples/portrait": {"GET", "HEAD", "OPTIONS"},
    }
    for path, methods in expected.items():
        options, refused = server.client.options(path), server.client.patch(path)
        assert options.status_code == 204
        assert_problem(refused, 405)
        for response in (options, refused):
            assert set(response.headers["Allow"].split(", ")) == methods
    assert_problem(server.client.options("/nothing"), 404)


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ("bytes=9-0", 400), ("bytes=x-y", 400), ("bytes=", 400), ("bytes=-", 400), ("bytes=0-1,9-0", 400),
        ("bytes=99999999-", 416), ("items=0-5", 200), ("none", 200), ("0-5", 200), ("BYTES=4-7", 206),
        ("bytes=-4", 206), ("bytes=0-1,4-7", 206), ("bytes=0-" + "9" * 4000, 206),
        ("bytes=1_0-20", 200),
    ],
)  # fmt: skip
def test_ranges(server, video, given, status):
    response = server.client.get(video, headers={"Range": given})
    assert response.status_code == status
    if status >= 400:
        assert_problem(response, status)
    if status == 416:
        assert response.headers["Content-Range"].startswith("bytes */")
    if status == 200:
        assert response.content[4:8] == b"ftyp"


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGHUP])
def test_waiting_clients_are_told_to_retry_when_the_service_ends(launch, ending):
    server = launch(BODY_SECONDS="60")
    head = b"POST /api/generate-video HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n"
    with ThreadPoolExecutor() as clients:
        requests = [clients.submit(server.generate, **ENDLESS) for _ in range(3)]
        slow = clients.submit(exchange, server, head, seconds=60)
        while len(jobs := server.client.get("/api/jobs").json()) < 3 or jobs[0]["state"] == "waiting":
            time.sleep(0.05)
        server.process.send_signal(ending)
        for request in requests:
            assert_problem(request.result(), 503)
            assert int(request.result().headers["Retry-After"]) > 0
        assert slow.result().startswith(b"HTTP/1.1 503 ")
        assert PROBLEM.encode() in slow.result()
    assert server.process.wait(30) == -ending
    assert [line for line in server.log if "Traceback" in line] == []


def test_health_is_never_silent_while_waiting_clients_leave(launch, tmp_path):
    """Tidying 3,000 kept runs for each of them used to keep the event loop for 13 seconds."""
    for number in range(3000):
        name = f"20260101_000000_{number:016x}"
        (tmp_path / name).mkdir()
        (tmp_path / name / "checks.json").touch()
        (tmp_path / ".runs").mkdir(exist_ok=True)
        (tmp_path / ".runs" / name).touch()
    server = launch(OUTPUT_DIR=str(tmp_path))
    running = server.submit(**ENDLESS).json()["id"]
    server.wait_for(running, "running", step=1)
    waiting = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(8)]
    body = json.dumps(server.request()).encode()
    head = f"POST {GENERATE} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    for connection in waiting:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    while len(jobs := server.client.get("/api/jobs").json()) < 9:
        time.sleep(0.05)
    for connection in waiting:
        connection.close()
    slowest = 0.0
    while [job["state"] for job in jobs].count("stopped") < 8:
        started = time.perf_counter()
        server.health()
        slowest = max(slowest, time.perf_counter() - started)
        jobs = server.client.get("/api/jobs").json()
    assert slowest < 0.5, "0.2 s and what a busy machine adds"
    server.client.delete(f"/api/jobs/{running}")


def test_the_request_id_is_in_the_response_and_in_every_line_of_the_job(server):
    given = "n8n-42"
    response = server.client.post(GENERATE, json=server.request(), headers={"X-Request-Id": given})
    assert response.headers["X-Request-Id"] == given
    until, found = time.monotonic() + 10, set()
    while not {"job accepted", "job ended", "answered"} <= found:
        found = {event["message"] for event in server.events() if event.get("request_id") == given}
        assert time.monotonic() < until, found
    other = server.client.get("/api/jobs?token=geheim", headers={"X-Request-Id": "a b\tc" * 30})
    assert len(other.headers["X-Request-Id"]) == 16
    assert "geheim" not in "".join(server.log)
