"""A server on this machine that answers the hub's calls for a download."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

LARGE = 1_000  # bytes from which a file is not stored by git itself


def git_blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Hub(ThreadingHTTPServer):
    """Repositories with files, and what can go wrong with them.

    Large files are redirected to another host, as the hub does.

    Args:
        files: content by name, by (repository, commit).
    """

    daemon_threads = True

    def __init__(self, files: dict[tuple[str, str], dict[str, bytes]]):
        super().__init__(("127.0.0.1", 0), Call)
        self.files = files
        self.branches: dict[tuple[str, str], str] = {}  # commits by (repository, branch)
        self.gated: set[str] = set()
        self.cuts: dict[str, list[int]] = {}  # bytes after which answers with a file break off
        self.damaged: dict[str, int] = {}  # how many more times a file is sent with a wrong byte
        self.busy: dict[str, int] = {}  # how many more times the hub is too busy to send a file
        self.held = threading.Event()  # set: answers that are cut are not ended
        self.sent: list[tuple[str, int]] = []  # names and first bytes of files that were sent
        self.tokens: dict[str, set[str | None]] = {"hub": set(), "other host": set()}

    def handle_error(self, request, client_address):
        """A client that has stopped is no error."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def names_sent(self) -> set[str]:
        return {name for name, _ in self.sent}


class Call(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Hub

    def do_GET(self):
        path = unquote(urlsplit(self.path).path).strip("/")
        host = "other host" if path.startswith("large/") else "hub"
        self.server.tokens[host].add(self.headers["Authorization"])
        if path.startswith("large/"):
            return self.send_file(*path.removeprefix("large/").split("/", 1))
        if path.startswith("api/models/"):
            return self.describe(path.removeprefix("api/models/"))
        repository, _, rest = path.partition("/resolve/")
        commit, _, name = rest.partition("/")
        if repository in self.server.gated:
            return self.refuse(403, "GatedRepo")
        if self.server.busy.get(name, 0):
            self.server.busy[name] -= 1
            return self.refuse(503, "Busy")
        content = self.server.files.get((repository, commit), {}).get(name)
        if content is None:
            return self.refuse(404, "EntryNotFound")
        if len(content) < LARGE:
            return self.send_file(hashlib.sha256(content).hexdigest(), name)
        location = f"http://localhost:{self.server.server_address[1]}/large"
        return self.reply(302, b"", {"Location": f"{location}/{hashlib.sha256(content).hexdigest()}/{name}"})

    def describe(self, path: str):
        """A revision: its commit, or its files with sizes and digests."""
        kind = "/revision/" if "/revision/" in path else "/tree/"
        repository, _, revision = path.partition(kind)
        if not any(name == repository for name, _ in self.server.files):
            return self.refuse(404, "RepoNotFound")
        commit = self.server.branches.get((repository, revision), revision)
        files = self.server.files.get((repository, commit))
        if files is None:
            return self.refuse(404, "RevisionNotFound")
        if kind == "/revision/":
            return self.reply(200, json.dumps({"id": repository, "sha": commit}).encode())
        return self.reply(200, json.dumps([entry(name, content) for name, content in files.items()]).encode())

    def send_file(self, sha256: str, name: str):
        contents = [files[name] for files in self.server.files.values() if name in files]
        (content,) = {data for data in contents if hashlib.sha256(data).hexdigest() == sha256}
        if self.server.damaged.get(name, 0):
            self.server.damaged[name] -= 1
            content = bytes([content[0] ^ 1]) + content[1:]
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        self.server.sent.append((name, start))
        headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        cuts = self.server.cuts.get(name)
        self.reply(206 if start else 200, content[start:], headers, cuts.pop(0) if cuts else None)

    def refuse(self, status: int, code: str):
        self.reply(status, b"{}", {"X-Error-Code": code})

    def reply(
        self, status: int, content: bytes, headers: dict[str, str] | None = None, cut: int | None = None
    ):
        self.send_response(status)
        for name, value in ((headers or {}) | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content[:cut])
        if cut is not None:
            self.wfile.flush()
            while self.server.held.is_set():
                threading.Event().wait(0.05)
            self.close_connection = True

    def log_message(self, *arguments):
        pass


def entry(name: str, content: bytes) -> dict:
    """A file in the hub's listing."""
    fields = {"type": "file", "path": name, "size": len(content), "oid": git_blob(content)}
    if len(content) >= LARGE:
        sha256 = hashlib.sha256(content).hexdigest()
        pointer = b"version https://git-lfs.github.com/spec/v1\n"
        fields |= {"oid": git_blob(pointer), "lfs": {"oid": sha256, "size": len(content), "pointerSize": 134}}
    return fields


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    with hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield hub
        finally:
            hub.held.clear()
            hub.shutdown()
            thread.join()
