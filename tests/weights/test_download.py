"""Downloading takes only the files that the loaders read, at their revisions, from a hub on this machine."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch
from safetensors.torch import load_file

from talkinghead_lab.weights import checkpoints
from talkinghead_lab.weights.download import PARTS
from talkinghead_lab.weights.inventory import inventory


class Hub(ThreadingHTTPServer):
    """The calls of the Hugging Face hub that a download makes; files by (repository, revision)."""

    def __init__(self, files: dict[tuple[str, str], dict[str, bytes]]):
        super().__init__(("127.0.0.1", 0), Call)
        self.files, self.sent = files, []
        self.commits = {hashlib.sha1(str(key).encode()).hexdigest(): key for key in files}


class Call(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_GET(self):
        self.answer(body=True)

    def do_HEAD(self):
        self.answer(body=False)

    def answer(self, body: bool):
        path = unquote(self.path).partition("?")[0].strip("/")
        if path.startswith("api/models/"):
            return self.listing(path.removeprefix("api/models/"), body)
        repository, _, rest = path.partition("/resolve/")
        commit, _, name = rest.partition("/")
        content = self.server.files.get(self.server.commits.get(commit), {}).get(name)
        if content is None:
            return self.reply(404, b"", {"X-Error-Code": "EntryNotFound"}, body)
        if body:
            self.server.sent.append((repository, name))
        digest = hashlib.sha256(content).hexdigest()
        return self.reply(200, content, {"X-Repo-Commit": commit, "ETag": f'"{digest}"'}, body)

    def listing(self, path: str, body: bool):
        """The files of a revision: a summary, or a tree with their sizes."""
        repository, _, rest = path.partition("/revision/" if "/revision/" in path else "/tree/")
        commits = {key: commit for commit, key in self.server.commits.items()}
        key = self.server.commits.get(rest, (repository, rest))
        files = self.server.files.get(key)
        if files is None:
            return self.reply(404, b"{}", {}, body)
        content = {"id": repository, "sha": commits[key], "siblings": [{"rfilename": name} for name in files]}
        if "/tree/" in path:
            content = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in files.items()
            ]
        return self.reply(200, json.dumps(content).encode(), {"Content-Type": "application/json"}, body)

    def reply(self, status: int, content: bytes, headers: dict[str, str], body: bool):
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub(checkpoint) -> Iterator[Hub]:
    """The released layout: the speech encoder's main branch has a pickle, a pull request its safetensors."""
    wan, speech, talk = checkpoints.RELEASED_REPOSITORIES.values()

    def of(name: str) -> dict[str, bytes]:
        folder = checkpoint / name
        paths = [path for path in folder.rglob("*") if path.is_file()]
        return {str(path.relative_to(folder)): path.read_bytes() for path in paths}

    speech_files = of("wav2vec_dir")
    weights = speech_files.pop("model.safetensors")
    adapter = of("infinitetalk_dir").popitem()[1]
    files = {
        (wan, "main"): of("ckpt_dir") | {"README.md": b"unused", "examples/a.jpg": b"unused"},
        (speech, "main"): speech_files | {"pytorch_model.bin": b"pickle", "chinese.pt": b"unused"},
        (speech, "refs/pr/1"): speech_files | {"pytorch_model.bin": b"pickle", "model.safetensors": weights},
        (talk, "main"): {f"{kind}/infinitetalk.safetensors": adapter for kind in ("single", "multi")},
    }
    with Hub(files) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def fetch(hub: Hub, folder: Path) -> subprocess.CompletedProcess:
    endpoint = f"http://127.0.0.1:{hub.server_address[1]}"
    hidden = {name: value for name, value in os.environ.items() if "PROXY" not in name.upper()}
    return subprocess.run(
        [sys.executable, "-m", "talkinghead_lab", "fetch", str(folder)],
        env=hidden | {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "0"},
        capture_output=True,
        text=True,
    )


def test_what_is_fetched_is_complete_and_loads(hub, tmp_path):
    done = fetch(hub, tmp_path)
    assert done.returncode == 0, done.stderr
    variables = dict(line.removeprefix("export ").split("=") for line in done.stdout.splitlines())
    assert list(variables) == ["CKPT_DIR", "WAV2VEC_DIR", "INFINITETALK_DIR"]
    folders = {name.lower(): folder for name, folder in variables.items()}
    for speakers in (1, 2):
        assert {row["state"] for row in inventory("released", speakers, folders)} == {"complete"}
    assert (tmp_path / "chinese-wav2vec2-base" / "model.safetensors").is_file()
    unused = {"pytorch_model.bin", "chinese.pt", "README.md", "examples/a.jpg"}
    assert unused.isdisjoint(name for _, name in hub.sent)
    before = len(hub.sent)
    assert fetch(hub, tmp_path).returncode == 0
    assert len(hub.sent) == before, "files that are there are not downloaded again"


def test_every_part_names_its_revision_and_files():
    assert {part.folder for part in PARTS} == set(checkpoints.RELEASED_REPOSITORIES)
    assert all(part.revision and part.patterns for part in PARTS)


def test_the_pickle_of_the_speech_encoder_s_main_branch_is_read(checkpoint, tmp_path):
    folder = Path(shutil.copytree(checkpoint / "wav2vec_dir", tmp_path / "wav2vec_dir"))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    folders = {name: str(checkpoint / name) for name in checkpoints.RELEASED_REPOSITORIES}
    rows = inventory("released", 1, folders | {"wav2vec_dir": str(folder)})
    assert {row["state"] for row in rows} == {"complete"}
    files = checkpoints.locate("released", 1, folders | {"wav2vec_dir": str(folder)})
    assert "wav2vec2/pytorch_model.bin" in checkpoints.weight_files(files)
