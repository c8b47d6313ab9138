"""A server on this machine that answers what a test tells it to, in OpenAI's protocol or not."""

import json
import threading
from collections.abc import Iterable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from qwencli.text.chat.answers import Content, Event, Reasoning

WAIT = b"\0wait"
"""A piece that is not sent: the server waits until the client has closed the connection."""


class Request(NamedTuple):
    method: str
    path: str
    headers: Mapping[str, str]
    body: Any


class Reply(NamedTuple):
    """What to answer. Each of `pieces` is a chunk of its own on the wire, so that the client reads it alone. `broken`: it has no end."""

    pieces: Iterable[bytes]
    status: int = 200
    headers: Mapping[str, str] = {"Content-Type": "text/event-stream"}
    broken: bool = False


def event(value: Any) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def delta(finish: str | None = None, **fields: Any) -> dict[str, Any]:
    return {
        "object": "chat.completion.chunk",
        "choices": [{"index": 0, "delta": fields, "finish_reason": finish}],
    }


def stream(*chunks: Any, done: bool = True) -> bytes:
    return b"".join(map(event, chunks)) + (b"data: [DONE]\n\n" if done else b"")


def as_json(value: Any, status: int = 200, **headers: str) -> Reply:
    return Reply([json.dumps(value).encode()], status, {"Content-Type": "application/json"} | headers)


def joined(answer: Iterator[Event]) -> list[Event]:
    """Events with neighbours of one kind joined: where they are cut does not matter."""
    whole: list[Event] = []
    for piece in answer:
        if whole and isinstance(piece, (Content, Reasoning)) and type(whole[-1]) is type(piece):
            whole[-1] = type(piece)(whole[-1].text + piece.text)  # type: ignore[union-attr]
        else:
            whole.append(piece)
    return whole


class OpenAIServer(ThreadingHTTPServer):
    """Gives its `replies` one after the other, each list of models apart, and keeps the `requests`. A context manager."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, *replies: Reply, models: Reply | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies: Iterator[Reply] = iter(replies)
        self.models = models or as_json({"object": "list", "data": [{"id": "tiny"}, {"id": "other"}]})
        self.requests: list[Request] = []
        self.left = threading.Event()
        """Set when a client has left before the end of an answer."""
        self.asked = threading.Event()
        """Set when a client has asked for an answer."""
        self.url = f"http://127.0.0.1:{self.server_port}"
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> "OpenAIServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def handle_error(self, *_: object) -> None:
        """Clients that leave are expected."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: OpenAIServer

    def do_GET(self) -> None:
        self.answer(None, self.server.models if self.path.endswith("/models") else next(self.server.replies))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.answer(body, next(self.server.replies))

    def answer(self, body: Any, reply: Reply) -> None:
        self.server.requests.append(Request(self.command, self.path, dict(self.headers), body))
        if body is not None:
            self.server.asked.set()
        self.close_connection = True
        try:
            self.send(reply)
        except ConnectionError:
            self.server.left.set()

    def send(self, reply: Reply) -> None:
        self.send_response(reply.status)
        for name, value in ({"Transfer-Encoding": "chunked"} | dict(reply.headers)).items():
            self.send_header(name, value)
        self.end_headers()
        for piece in reply.pieces:
            if piece == WAIT:
                self.connection.settimeout(60)
                self.connection.recv(1)
                self.server.left.set()
                return
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        if not reply.broken:
            self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_: object) -> None:
        """Log nothing."""
