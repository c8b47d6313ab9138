"""A server that speaks as much of the Hugging Face hub's API as fetching a model needs, and fails as it is told.

The API: https://huggingface.co/docs/hub/api; the headers of files: huggingface_hub's constants.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """`files` are those of each repository. What it does wrong: it answers everything with `status` or the API with `body`, `gated` and
    `private` repositories need `token`, `lies` are files whose SHA-256 is given wrong, `etag` is given for any file; the next download of
    a file ends after `broken_after[file]` bytes (or `hangs` there), and a download of the rest has `status_after_break`. With `redirects`
    files lie on another host. A download begins when `n_askers` have asked for the file's facts. `requests` are what was asked: method,
    path, Range, whether with the token."""

    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    status: int | None = None
    status_after_break: int | None = None
    body: bytes | None = None
    etag: str | None = None
    redirects: bool = False
    gated: set[str] = field(default_factory=set)
    private: set[str] = field(default_factory=set)
    token: str = "hf_right"
    lies: set[str] = field(default_factory=set)
    broken_after: dict[str, int] = field(default_factory=dict)
    hangs: bool = False
    n_askers: int = 0
    reached: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    requests: list[tuple[str, str, str | None, bool]] = field(default_factory=list)
    url: str = ""

    def ranges(self, file: str) -> list[str | None]:
        """The Range of each download of a file."""
        return [
            range_
            for method, path, range_, _ in self.requests
            if method == "GET" and path.endswith(f"/resolve/main/{file}")
        ]

    def sha256(self, file: str, content: bytes) -> str:
        return hashlib.sha256(content + (b"lie" if file in self.lies else b"")).hexdigest()


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, url = self.hub, urlsplit(self.path)
        if url.path == "/api/agent-harnesses":  # newer versions of the library ask for this
            return self.refuse(404)
        token = self.headers.get("Authorization")
        hub.requests.append(
            (self.command, unquote(url.path), self.headers.get("Range"), token == f"Bearer {hub.token}")
        )
        parts = unquote(url.path).strip("/").split("/")
        if hub.status:
            return self.refuse(hub.status)
        if hub.body is not None:
            return self.send(hub.body)
        if parts[0] == "elsewhere":
            return self.send_file("/".join(parts[3:]), hub.files["/".join(parts[1:3])])
        if parts == ["api", "models"]:
            query = {key: values[0] for key, values in parse_qs(url.query).items()}
            found = [
                repo
                for repo in hub.files
                if query["search"].lower() in repo.lower() and repo.startswith(query.get("author", ""))
            ]
            return self.answer([{"id": repo, "private": False, "tags": [], "downloads": 0} for repo in found])
        repo = "/".join(parts[2:4] if parts[:2] == ["api", "models"] else parts[:2])
        allowed = token == f"Bearer {hub.token}"
        if token and not allowed:
            return self.refuse(401, message="Invalid credentials in Authorization header")
        if repo not in hub.files or (repo in hub.private and not allowed):
            return self.refuse(404 if allowed else 401, "RepoNotFound" if allowed else None)
        if parts[:2] == ["api", "models"]:
            return self.answer(
                {
                    "id": repo,
                    "modelId": repo,
                    "sha": COMMIT,
                    "private": False,
                    "gated": repo in hub.gated,
                    "tags": [],
                    "downloads": 0,
                    "siblings": [
                        {
                            "rfilename": name,
                            "size": len(content),
                            "blobId": "0" * 40,
                            "lfs": {
                                "sha256": hub.sha256(name, content),
                                "size": len(content),
                                "pointerSize": 130,
                            },
                        }
                        for name, content in hub.files[repo].items()
                    ],
                }
            )
        if repo in hub.gated and not allowed:
            return self.refuse(403 if token else 401, "GatedRepo")
        assert parts[2:4] == ["resolve", "main"], self.path
        if hub.redirects and self.command == "GET":
            self.send_response(302)
            self.send_header(
                "Location",
                f"http://localhost:{self.server.server_address[1]}/elsewhere/{repo}/{'/'.join(parts[4:])}",
            )
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_file("/".join(parts[4:]), hub.files[repo])

    def answer(self, content: object) -> None:
        self.send(json.dumps(content).encode())

    def send(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def refuse(self, status: int, code: str | None = None, message: str | None = None) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        if message:
            self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send_file(self, name: str, files: dict[str, bytes]) -> None:
        hub = self.hub
        if name not in files:
            return self.refuse(404, "EntryNotFound")
        content, wanted = files[name], self.headers.get("Range")
        if wanted and hub.status_after_break:
            return self.refuse(hub.status_after_break)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        self.send_response(206 if wanted else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", '"not the linked one"')
        self.send_header("X-Linked-ETag", f'"{hub.etag or hub.sha256(name, content)}"')
        self.send_header("X-Linked-Size", str(len(content)))
        self.send_header("Accept-Ranges", "bytes")
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        while sum(method == "HEAD" for method, *_ in hub.requests) < hub.n_askers and not hub.ended.wait(
            0.01
        ):
            pass
        end = hub.broken_after.pop(name, len(content))
        self.wfile.write(content[start:end])
        if end < len(content):
            self.wfile.flush()
            hub.reached.set()
            if hub.hangs:
                hub.ended.wait(60)
            self.close_connection = True


@contextmanager
def serve(files: dict[str, dict[str, bytes]]) -> Iterator[Hub]:
    """A hub on a free port, in a thread."""
    hub = Hub(files)
    handler = type("HubHandler", (Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield hub
        finally:
            hub.ended.set()
            server.shutdown()
            thread.join()
