"""A server with the page's files and scripted answers, to see what the page does with them: standard library only."""

from __future__ import annotations

import json
import select
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

WEB = Path(__file__).parents[1] / "qwencli" / "server" / "web"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; manifest-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
    ".webmanifest": "application/manifest+json",
}
USAGE = {
    "prompt_tokens": 1234,
    "completion_tokens": 56,
    "total_tokens": 1290,
    "prompt_tokens_details": {"cached_tokens": 1200},
}


class Thought(str):
    """A piece of reasoning_content."""


class Raw(bytes):
    """Bytes that go out as they are."""


@dataclass
class Answer:
    """What a question gets. Strings are pieces of the answer, an Event is waited for, `cut` is how many bytes leave at once."""

    pieces: list[str | Thought | Raw | threading.Event] = field(default_factory=list)
    status: int = 200
    error: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    newline: str = "\n"
    cut: int = 0
    done: bool = True
    finish: str = "stop"

    def chunks(self) -> Iterator[bytes | threading.Event]:
        for piece in self.pieces:
            if isinstance(piece, threading.Event | Raw):
                yield piece
            else:
                name = "reasoning_content" if isinstance(piece, Thought) else "content"
                yield self.event({"choices": [{"index": 0, "delta": {name: piece}}]})
        if self.done:
            yield self.event({"choices": [{"index": 0, "delta": {}, "finish_reason": self.finish}]})
            yield self.event({"choices": [], "usage": USAGE, "timings": {"predicted_per_second": 23.45}})
            yield f"data: [DONE]{self.newline * 2}".encode()

    def event(self, value: Any) -> bytes:
        return f"data: {json.dumps(value, ensure_ascii=False)}{self.newline * 2}".encode()


class FakeServer:
    """`answers` has what each question gets; `requests` what was asked; `left` counts clients that left before the end."""

    def __init__(self) -> None:
        self.ending = threading.Event()
        self.reset()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"fake": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        threading.Thread(target=self._server.serve_forever, args=[0.02], daemon=True).start()

    def reset(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.requests: list[dict[str, Any]] = []
        self.polls: list[str] = []
        self.left = threading.Semaphore(0)
        self.key = ""
        self.texts: dict[str, str] = {}

    def close(self) -> None:
        self.ending.set()
        self._server.shutdown()
        self._server.server_close()


class Handler(BaseHTTPRequestHandler):
    fake: FakeServer

    def do_GET(self) -> None:
        name = self.path.split("?")[0].lstrip("/") or "index.html"
        if (WEB / name).is_file():
            self.send(
                200, (WEB / name).read_bytes(), TYPES[Path(name).suffix], {"Cache-Control": "max-age=3600"}
            )
        elif self.is_allowed():
            self.fake.polls.append(name)
            text = self.fake.texts.get(name)
            self.send(
                404 if text is None else 200,
                (text or '{"error": {"message": "not there"}}').encode(),
                "text/plain",
            )

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.is_allowed():
            return
        self.fake.requests.append(body)
        answer = self.fake.answers.get(body["messages"][-1]["content"], Answer(["Hello."]))
        if answer.status != 200:
            self.send(
                answer.status,
                json.dumps({"error": {"message": answer.error}}).encode(),
                "application/json",
                answer.headers,
            )
            return
        self.send(200, None, "text/event-stream")
        try:
            for chunk in answer.chunks():
                if isinstance(chunk, threading.Event):
                    self.wait(chunk)
                    continue
                step = answer.cut or len(chunk)
                for at in range(0, len(chunk), step):
                    self.wfile.write(chunk[at : at + step])
        except ConnectionError:
            self.fake.left.release()

    def wait(self, event: threading.Event) -> None:
        while not event.wait(0.02) and not self.fake.ending.is_set():
            if select.select([self.connection], [], [], 0)[0]:
                raise ConnectionResetError

    def is_allowed(self) -> bool:
        if not self.fake.key or self.headers["Authorization"] == f"Bearer {self.fake.key}":
            return True
        self.send(
            401,
            b'{"error": {"message": "the API key is missing or wrong", "code": "invalid_api_key"}}',
            "application/json",
        )
        return False

    def send(self, status: int, body: bytes | None, type: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": type,
            "Content-Security-Policy": POLICY,
            "Connection": "close",
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        if body is not None:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, *args: Any) -> None:
        pass
