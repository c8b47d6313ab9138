"""The chat page's files, read once at the start."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ... import __version__

TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "webmanifest": "application/manifest+json",
    "svg": "image/svg+xml",
    "png": "image/png",
    "ico": "image/x-icon",
}
VERSION = "/_app/version.json"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; manifest-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The page loads files from here and nothing else, runs no inline scripts, and is shown in no other page."""


def routes() -> list[Route]:
    """A path for each file, which is its name; index.html is at / too. Requests never look for files.

    Pages of llama-server that are still open in a browser ask VERSION whether they are out of date, and load themselves again.
    """
    found = [Route(VERSION, sender(json.dumps({"version": __version__}).encode(), "application/json"))]
    for file in files(__package__.rpartition(".")[0]).joinpath("web").iterdir():
        if type := TYPES.get(file.name.rpartition(".")[2]):
            endpoint = sender(file.read_bytes(), type)
            found += [
                Route(path, endpoint) for path in ["/"] * (file.name == "index.html") + ["/" + file.name]
            ]
    return found


def sender(content: bytes, type: str) -> Callable[[Request], Awaitable[Response]]:
    tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
    # no-cache: the file may be kept, but has to be asked for again
    headers = {"ETag": tag, "Cache-Control": "no-cache", "Content-Security-Policy": POLICY}

    async def send(request: Request) -> Response:
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=type, headers=headers)

    return send
