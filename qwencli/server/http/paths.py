"""Paths under the server's prefix."""

from __future__ import annotations

from collections.abc import Iterable

from starlette.responses import RedirectResponse
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Receive, Scope, Send

from .errors import MESSAGES, ApiError


def path_under(prefix: str, path: str) -> str:
    """A path without the prefix, "" where it has another."""
    return path.removeprefix(prefix) if path.startswith(prefix + "/") else ""


def leads_to(routes: Iterable[BaseRoute], scope: Scope, path: str) -> bool:
    """Whether a request for `path` is answered by one of these."""
    at = {"type": "http", "method": scope["method"], "path": path}
    return any(route.matches(at)[0] is Match.FULL for route in routes)


class Prefixed:
    """Refuses paths that don't begin with `prefix`; those that do are known to the routes without it."""

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self._app, self._prefix = app, prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if scope["path"] == self._prefix:  # the page's files are found from where it ends with a slash
                return await RedirectResponse(self._prefix + "/", 308)(scope, receive, send)
            if not path_under(self._prefix, scope["path"]):
                raise ApiError(MESSAGES[404], 404)
            scope = {**scope, "root_path": self._prefix}
        await self._app(scope, receive, send)
