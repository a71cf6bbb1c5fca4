"""Small stand-ins for the services before ours in the workflow; they keep to the published interfaces.

yttools and vibevoice-api: github.com/petebytes/localai. ComfyUI: its routes /prompt, /history/{id} and /view.
"""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.parser import BytesParser
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

Answer = tuple[int, str, bytes]


def as_json(value: object, status: int = 200) -> Answer:
    return status, "application/json", json.dumps(value).encode()


class Upstream:
    """One server that answers as all three services; `calls` lists what it was sent."""

    def __init__(self, voice: Path, portrait: Path) -> None:
        self.voice, self.portrait = voice.read_bytes(), portrait.read_bytes()
        self.calls: list[tuple[str, object]] = []
        self.failing = ""
        self.questions = {"yttools": 0, "comfyui": 0}

    def answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Answer:
        path, query = urlsplit(target).path, parse_qs(urlsplit(target).query, keep_blank_values=True)
        match method, *path.strip("/").split("/"):
            case "POST", "api", "download":
                return self.download(json.loads(body))
            case "GET", "api", "status", "t1":
                return self.status()
            case "GET", "api", "download", "t1", "audio":
                return 200, "audio/mpeg", self.voice
            case "POST", "api", "tts":
                return self.speak(headers, body)
            case "POST", "prompt":
                return self.prompt(json.loads(body))
            case "GET", "history", "p1":
                return self.history()
            case "GET", "view":
                assert query == {"filename": ["portrait_00001_.png"], "subfolder": [""], "type": ["output"]}
                return 200, "image/png", self.portrait
        return as_json({"detail": f"{method} {path} is unknown"}, 404)

    def download(self, request: dict) -> Answer:
        self.calls.append(("yttools", request))
        assert set(request) == {"url", "start_time", "end_time", "audio_format", "enable_whisper"}
        return as_json({"task_id": "t1"})

    def status(self) -> Answer:
        self.questions["yttools"] += 1
        if self.failing == "yttools":
            return as_json({"status": "failed", "error": "Video unavailable"})
        return as_json({"status": "downloading" if self.questions["yttools"] == 1 else "completed"})

    def speak(self, headers: dict[str, str], body: bytes) -> Answer:
        message = BytesParser(policy=HTTP).parsebytes(
            f"Content-Type: {headers['Content-Type']}\r\n\r\n".encode() + body
        )
        parts = {
            part.get_param("name", header="content-disposition"): part.get_payload(decode=True)
            for part in message.iter_parts()
        }
        self.calls.append(("vibevoice", parts))
        if self.failing == "vibevoice":
            return as_json({"detail": "Generation failed: CUDA out of memory"}, 500)
        sound = base64.b64encode(self.voice).decode()
        return as_json(
            {"audio_base64": sound, "sample_rate": 24000, "format": "wav", "duration_seconds": 0.5}
        )

    def prompt(self, request: dict) -> Answer:
        self.calls.append(("comfyui", request["prompt"]))
        for node in request["prompt"].values():
            links = [value[0] for value in node["inputs"].values() if isinstance(value, list)]
            assert node["class_type"] and all(link in request["prompt"] for link in links)
        return as_json({"prompt_id": "p1", "number": 1, "node_errors": {}})

    def history(self) -> Answer:
        self.questions["comfyui"] += 1
        if self.questions["comfyui"] == 1:
            return as_json({})
        if self.failing == "comfyui":
            messages = [["execution_error", {"exception_message": "ckpt_name not found"}]]
            status = {"status_str": "error", "completed": False, "messages": messages}
            return as_json({"p1": {"outputs": {}, "status": status}})
        image = {"filename": "portrait_00001_.png", "subfolder": "", "type": "output"}
        status = {"status_str": "success", "completed": True, "messages": []}
        return as_json({"p1": {"outputs": {"7": {"images": [image]}}, "status": status}})


@contextmanager
def serve(upstream: Upstream) -> Iterator[str]:
    """Serve on any free port of the loopback interface; yields the address."""

    class Handler(BaseHTTPRequestHandler):
        def do(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, kind, content = upstream.answer(self.command, self.path, dict(self.headers), body)
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
