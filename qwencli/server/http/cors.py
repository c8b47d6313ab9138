"""Which pages of other sites may use the server, and how a browser is told (https://fetch.spec.whatwg.org/#http-cors-protocol)."""

from __future__ import annotations

import re
from collections.abc import Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOCAL = re.compile(r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?")
ALL, THIS_MACHINE = "*", "localhost"
"""What may stand for origins."""
METHODS = b"GET, POST, DELETE, OPTIONS"
EXPOSED = b"X-Request-Id, Retry-After"
MAX_AGE = b"600"
"""Seconds for which a browser needn't ask again."""


def invites(origins: Collection[str], origin: str) -> bool:
    """Whether pages from an origin may use the server, for `origins` as in ServerOptions. Both are in lower case."""
    return (
        ALL in origins
        or origin in origins
        or (THIS_MACHINE in origins and LOCAL.fullmatch(origin) is not None)
    )


class CrossOrigin:
    """The outermost middleware: answers what browsers ask before they send a request, and lets invited pages read answers.

    As in llama-server, OPTIONS is answered by 200 on every path, and only the header with the origin says whether a page is invited. Pages
    may send the browser's own credentials for this server only where their site is named: with all sites invited, any page could act as the
    person who looks at it.
    """

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        self._app, self._origins = app, origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        given = dict(scope["headers"])
        allowed = self._allowed(given.get(b"origin", b""))
        if scope["method"] == "OPTIONS":
            wanted = given.get(b"access-control-request-headers", b"") if allowed else b""
            return await self._preflight(send, allowed, wanted or b"*")

        async def send_allowed(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *allowed]
            await send(message)

        if allowed:
            allowed.append((b"access-control-expose-headers", EXPOSED))
        await self._app(scope, receive, send_allowed if allowed else send)

    def _allowed(self, origin: bytes) -> list[tuple[bytes, bytes]]:
        """The headers for an invited origin, none for others."""
        if not origin or not invites(self._origins, origin.decode("latin-1").lower()):
            return []
        if ALL in self._origins:
            return [(b"access-control-allow-origin", b"*")]
        return [
            (b"access-control-allow-origin", origin),
            (b"access-control-allow-credentials", b"true"),
            (b"vary", b"Origin"),
        ]

    async def _preflight(self, send: Send, allowed: list[tuple[bytes, bytes]], headers: bytes) -> None:
        about = [
            *allowed,
            (b"access-control-allow-methods", METHODS),
            (b"access-control-allow-headers", headers),
            (b"access-control-max-age", MAX_AGE),
            (b"content-length", b"0"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": about})
        await send({"type": "http.response.body", "body": b""})
